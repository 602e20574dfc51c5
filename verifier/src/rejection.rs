//! Why a credential was refused.
//!
//! The exact reason is for the issuer's side: metrics, logs, and explaining a token to someone with
//! the permission to ask. A caller is told one and the same thing for all of them, [`NotReady`]
//! aside, which says nothing about the token.
//!
//! [`NotReady`]: Rejection::NotReady

use thiserror::Error;

/// Why a credential was refused. Carries nothing of the credential itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Rejection {
    /// No trust state has been heard yet; no token can be judged.
    #[error("no trust state has been heard yet")]
    NotReady,
    /// Longer than [`MAX_TOKEN_BYTES`](crate::MAX_TOKEN_BYTES).
    #[error("the token is too long")]
    TooLong,
    /// Not a compact JWS with a readable header and readable claims; names the part at fault.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The header has `crit` (RFC 7515, section 4.1.11); no extension is understood.
    #[error("the header has critical extensions")]
    Critical,
    /// The header brings or points to a key of its own: `jku`, `jwk`, `x5u`, `x5c`, `x5t` or `x5t#S256`.
    #[error("the header brings its own key")]
    OwnKey,
    /// `typ` is absent or not `at+jwt` (RFC 9068, section 4).
    #[error("the token is not an access token")]
    Type,
    /// The key that `kid` names has been revoked.
    #[error("the signing key is revoked")]
    KeyRevoked,
    /// No key has the id `kid`.
    #[error("the signing key is unknown")]
    UnknownKey,
    /// `alg` is not the algorithm of the key that `kid` names.
    #[error("the algorithm is not the key's")]
    Algorithm,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
    /// `iss` is not the issuer.
    #[error("another issuer")]
    Issuer,
    /// `aud` does not contain the audience asked for, or none of the configured ones.
    #[error("another audience")]
    Audience,
    /// `exp` has come, or the API key's end.
    #[error("the credential has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iat` has not come.
    #[error("the token was issued in the future")]
    IssuedInFuture,
    /// No live API key has this text: it never was one, is revoked, or its owner is gone.
    #[error("the API key is unknown")]
    UnknownApiKey,
    /// The API key may not do the same any more as when it was first judged.
    #[error("the API key's scopes have changed")]
    ScopesChanged,
    /// The session `sid` has been revoked.
    #[error("the session is revoked")]
    SessionRevoked,
    /// `epoch` is behind the least epoch that the user's tokens must have.
    #[error("the user's tokens of this epoch are revoked")]
    UserRevoked,
}

impl Rejection {
    /// A short, stable name, fit for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::TooLong => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Critical => "critical",
            Self::OwnKey => "own_key",
            Self::Type => "type",
            Self::KeyRevoked => "key_revoked",
            Self::UnknownKey => "unknown_key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuedInFuture => "issued_in_future",
            Self::UnknownApiKey => "unknown_api_key",
            Self::ScopesChanged => "scopes_changed",
            Self::SessionRevoked => "session_revoked",
            Self::UserRevoked => "user_revoked",
        }
    }
}
