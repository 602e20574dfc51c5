//! Decides, in process and from memory alone, whether a Countersign credential is good.
//!
//! A two-minute tour:
//!
//! - [`TrustState`] is everything a decision rests on, as a value: issuer, audiences, public keys
//!   ([`KeySet`]), what has been revoked ([`Revocations`]), and the live API keys ([`ApiKeys`]). Copies
//!   are cheap, so whoever hears of a change makes the next state from the last and puts it in place
//!   whole.
//! - [`Verifier`] holds the current state and answers [`Verifier::verify`] without a database or a
//!   network. It remembers which signatures it has checked, bounded by [`Policy::cached_tokens`], and
//!   knows how old its knowledge is ([`Verifier::staleness`]).
//! - A good access token or API key gives a [`Caller`]. A bad one gives a [`Rejection`], the exact
//!   reason, which is for logs and metrics; whoever sent the token learns only that it is not valid.
//!   [`Verifier::explain`] says more, to someone with the permission to ask.
//! - [`Claims`] is the wire form of an access token (RFC 9068), shared with the side that mints.
//! - [`Clock`] is passed in; [`SystemClock`] is the one place that reads the time.
//!
//! ```
//! use std::sync::Arc;
//! use countersign_verifier::{
//!     Algorithm, ApiKeys, KeySet, KeyState, Policy, PublicKey, Rejection, Revocations, SystemClock,
//!     TrustState, Verifier,
//! };
//!
//! let verifier = Verifier::new(Arc::new(SystemClock), Policy::default());
//! // Nothing is known yet, so nothing is good.
//! assert_eq!(verifier.verify("a.b.c", None), Err(Rejection::NotReady));
//!
//! // The public key of RFC 8037, appendix A.2.
//! let public = [
//!     0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
//!     0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
//! ];
//! let mut keys = KeySet::default();
//! keys.insert(PublicKey::new("2026-01", Algorithm::Ed25519, KeyState::Active, &public)?);
//! verifier.replace(TrustState {
//!     issuer: "https://auth.example.com".into(),
//!     audiences: vec!["orders".into()],
//!     keys,
//!     revocations: Revocations::default(),
//!     api_keys: ApiKeys::default(),
//!     seq: 0,
//!     nonce: uuid::Uuid::nil(),
//! });
//!
//! match verifier.verify("not a token", Some("orders")) {
//!     Ok(caller) => println!("{} may {:?}", caller.subject, caller.scopes),
//!     Err(rejection) => println!("refused: {}", rejection.label()),
//! }
//! # Ok::<(), countersign_verifier::InvalidKey>(())
//! ```
//!
//! The feature `layer` adds a tower layer for tonic and axum.
//!
//! What it does not do: fetch anything, mint anything, or decide what a caller may do; it says who
//! the caller is and which scopes the token carries.

mod api_key;
mod cache;
mod caller;
mod claims;
#[cfg(feature = "client")]
pub mod client;
mod clock;
mod explanation;
mod key;
#[cfg(feature = "layer")]
pub mod layer;
mod object;
mod proof;
mod rejection;
mod revocations;
mod token;
mod trust_state;
mod verifier;
#[cfg(feature = "wire")]
pub mod wire;

pub use api_key::{
    API_KEY_LENGTH, API_KEY_PREFIX, ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, api_key_text,
};
pub use cache::CacheCounts;
pub use caller::{Caller, Credential, Subject};
pub use claims::Claims;
pub use clock::{Clock, SystemClock};
pub use explanation::Explanation;
pub use key::{Algorithm, InvalidKey, Jwk, KeySet, KeyState, PublicKey};
pub use rejection::Rejection;
pub use revocations::Revocations;
pub use token::{MAX_TOKEN_BYTES, TOKEN_TYPE};
pub use trust_state::{Delta, TrustState};
pub use verifier::{Policy, Verifier};
