//! Keys that the service signs or seals with, as they are stored.

use std::str::FromStr;

use countersign_verifier::{Algorithm, KeyState};
use jiff::{SignedDuration, Timestamp};

use super::Invalid;

/// A stored key pair for access tokens. The private half is sealed under the
/// master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Key id, in the header of every token it signs.
    pub kid: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// Next, active or retired.
    pub state: KeyState,
    /// The public half.
    pub public_key: Vec<u8>,
    /// The private half, sealed.
    pub sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it entered its state.
    pub changed_at: Timestamp,
    /// Of a retired key: until when tokens of it may be presented.
    pub verify_until: Option<Timestamp>,
}

/// What a stored symmetric key is for. Each purpose has keys of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// MACs of refresh tokens.
    Refresh,
    /// MACs of page tokens, of device tokens and of request bodies for
    /// idempotency.
    Request,
    /// MACs of the names by which failed logins are counted. There is one for
    /// ever: under another all counts would begin anew.
    Throttle,
    /// MACs, chain and checkpoints of the audit log.
    Audit,
    /// Seals of password hashes, where they are sealed.
    Password,
}

/// A stored symmetric key, sealed under the master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretKey {
    /// Its id, in every token that it made.
    pub id: i32,
    /// What it is for.
    pub purpose: Purpose,
    /// The key, sealed.
    pub sealed: Vec<u8>,
    /// When it was made. The newest of a purpose is the one in use, from
    /// [`SecretKey::AHEAD`] on.
    pub created_at: Timestamp,
}

impl SecretKey {
    /// How long a key is known to all nodes before it makes anything.
    pub const AHEAD: SignedDuration = SignedDuration::from_mins(1);
}

impl Purpose {
    /// The name in the database and in the associated data of the seal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Request => "request",
            Self::Throttle => "throttle",
            Self::Audit => "audit",
            Self::Password => "password",
        }
    }
}

impl FromStr for Purpose {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        [
            Self::Refresh,
            Self::Request,
            Self::Throttle,
            Self::Audit,
            Self::Password,
        ]
        .into_iter()
        .find(|purpose| purpose.as_str() == name)
        .ok_or_else(|| Invalid::new("must be refresh, request, throttle, audit or password"))
    }
}
