//! Whom a good credential speaks for.

use jiff::Timestamp;
use uuid::Uuid;

/// The kind of subject that a credential speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerKind {
    /// A user who logged in.
    User,
}

/// Whom a good credential speaks for, as the credential says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user's id (`sub`).
    pub subject: Uuid,
    /// What kind of subject this is.
    pub kind: CallerKind,
    /// The session that the token was minted in (`sid`).
    pub session_id: Uuid,
    /// The workload that asked for the token (`client_id`).
    pub client_id: String,
    /// Names of the roles that the subject held when the token was minted.
    pub roles: Vec<String>,
    /// What the roles permitted when the token was minted (`scope`).
    pub scopes: Vec<String>,
    /// Whom the token is meant for (`aud`).
    pub audience: Vec<String>,
    /// When the token was minted (`iat`).
    pub issued_at: Timestamp,
    /// From when on the token is refused (`exp`), leeway aside.
    pub expires_at: Timestamp,
    /// How the subject proved who it is (`amr`, RFC 8176).
    pub auth_methods: Vec<String>,
    /// When the subject last proved who it is (`auth_time`).
    pub authenticated_at: Timestamp,
    /// The user's epoch that the token was minted under.
    pub epoch: i64,
    /// The token's own id (`jti`).
    pub token_id: Uuid,
}

impl Caller {
    /// Whether the token carries exactly this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| held == scope)
    }

    /// Whether the subject held exactly this role when the token was minted.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }
}
