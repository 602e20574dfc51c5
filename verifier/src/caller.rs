//! Whom a good credential speaks for.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::ApiKeyHash;

/// Whom a good credential speaks for, as the credential says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who acts.
    pub subject: Subject,
    /// By what it was proved.
    pub credential: Credential,
    /// The workload that asked for the token (`client_id`); for an API key, `api_key:` and
    /// the name that its owner gave it.
    pub client_id: String,
    /// Names of the roles that the subject held when the token was minted. An API key has none: it
    /// carries scopes only.
    pub roles: Vec<String>,
    /// What the caller may do (`scope`).
    pub scopes: Vec<String>,
    /// Whom the credential is meant for (`aud`).
    pub audience: Vec<String>,
    /// When the credential was made (`iat`).
    pub issued_at: Timestamp,
    /// From when on it is refused (`exp`), leeway aside. None for an API key that does not expire.
    pub expires_at: Option<Timestamp>,
}

/// Who acts. Written as text it is the claim `sub`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user, by id: who logged in, or who owns the API key.
    User(Uuid),
    /// A workload, by the name in its certificate, such as a SPIFFE id.
    Workload(Arc<str>),
}

/// By what the subject was proved, and what only that kind of credential says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// An access token.
    AccessToken {
        /// The session that the token was minted in (`sid`).
        session_id: Uuid,
        /// The token's own id (`jti`).
        token_id: Uuid,
        /// The signing key (`kid`).
        key_id: String,
        /// The user's epoch that the token was minted under.
        epoch: i64,
        /// How the subject proved who it is (`amr`, RFC 8176).
        auth_methods: Vec<String>,
        /// When the subject last proved who it is (`auth_time`).
        authenticated_at: Timestamp,
    },
    /// An API key.
    ApiKey {
        /// Which.
        id: Uuid,
        /// The digest of the secret that was presented; a rotated key has two for a while.
        hash: ApiKeyHash,
    },
    /// A client certificate (mutual TLS).
    Certificate,
}

impl Caller {
    /// Whether the credential carries exactly this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| held == scope)
    }

    /// Whether the subject held exactly this role when the credential was made.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }

    /// The user who acts; none for a workload.
    pub fn user_id(&self) -> Option<Uuid> {
        match self.subject {
            Subject::User(id) => Some(id),
            Subject::Workload(_) => None,
        }
    }

    /// The session that the access token was minted in; none for other credentials.
    pub fn session_id(&self) -> Option<Uuid> {
        match self.credential {
            Credential::AccessToken { session_id, .. } => Some(session_id),
            Credential::ApiKey { .. } | Credential::Certificate => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => id.fmt(f),
            Self::Workload(name) => name.fmt(f),
        }
    }
}
