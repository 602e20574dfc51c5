//! The access table: one row for each RPC that this process answers. An RPC
//! without a row is refused, so nothing is open by default.
//!
//! A row says who may call, which limit the call counts against, and whether it
//! needs the database. What depends on the request itself (one's own account or
//! another's) is for the service behind it.

use std::sync::LazyLock;

use Class::{Hash, Read, Stream, Validate, Write};
use Permission::{
    AuditRead, AuditVerify, KeysRead, KeysRotate, RolesGrant, RolesRead, RolesWrite, TokensExplain,
    TrustWatch, UsersDelete, UsersRead, UsersSetPassword, UsersWrite,
};
use Who::{Caller, Needs, OptionalCaller, Public};

use crate::domain::{
    Permission,
    call::{BATCH_BYTES, CHECK_BYTES, MESSAGE_BYTES},
};

/// What holds for one RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The path on the wire: `/countersign.v1.AuthService/Login`.
    pub path: &'static str,
    /// Who may call.
    pub who: Who,
    /// By what kinds of credential.
    pub kinds: Kinds,
    /// Which concurrency limit it counts against.
    pub class: Class,
    /// The largest message of a request, in bytes.
    pub most_bytes: usize,
    /// What becomes of a larger one.
    pub larger: Larger,
    /// Whether it fails without the database; then it is refused at once while
    /// the breaker is open.
    pub needs_database: bool,
    /// How often one peer may call.
    pub rate: Option<Rate>,
}

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everyone; a credential is not looked at.
    Public,
    /// Everyone, but a credential that is given must be good.
    OptionalCaller,
    /// Whoever has a good credential; the service decides on the rest.
    Caller,
    /// A caller with this permission.
    Needs(Permission),
}

/// Which kinds of credential an RPC takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Access tokens, API keys, and the certificates of workloads. An API key may
    /// do what its scopes say and a workload what the configuration says; neither
    /// has an account of its own, so that without a permission an RPC is of little
    /// use to them.
    All,
    /// Access tokens only. Whoever has stolen an API key or a certificate must not
    /// be able to make themselves a credential that outlives it.
    AccessTokens,
}

/// Kinds of work. Each has its own limit, so that logins that wait for a hash
/// lane never use up the places of validations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Answered from memory.
    Validate,
    /// Reads the database.
    Read,
    /// Changes the database.
    Write,
    /// Hashes a password.
    Hash,
    /// Lives as long as the caller listens.
    Stream,
}

/// What becomes of a message that is larger than its row allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Larger {
    /// The call fails.
    Fails,
    /// The handler sees an empty message: its caller must have an answer,
    /// whatever a stranger has put into the message.
    IsEmptied,
}

/// Limits per peer, on what lets strangers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Guessing a password.
    Login,
    /// Creating accounts.
    Register,
    /// Presenting refresh tokens.
    Refresh,
}

/// All rows of a node.
pub static ROWS: &[Row] = &[
    row(
        "/countersign.v1.TokenService/ValidateToken",
        Public,
        Validate,
    ),
    row(
        "/countersign.v1.TokenService/ValidateTokens",
        Public,
        Validate,
    )
    .batch(),
    row(
        "/countersign.v1.TokenService/ExplainToken",
        Needs(TokensExplain),
        Validate,
    ),
    row("/countersign.v1.TokenService/GetJwks", Public, Validate),
    row("/countersign.v1.AuthService/Register", Public, Hash)
        .stored()
        .limited(Rate::Register),
    row("/countersign.v1.AuthService/Login", Public, Hash)
        .stored()
        .limited(Rate::Login),
    row("/countersign.v1.AuthService/Refresh", Public, Write)
        .stored()
        .limited(Rate::Refresh),
    // What it ends is the session of the token.
    row("/countersign.v1.AuthService/Logout", OptionalCaller, Write)
        .stored()
        .in_person(),
    row("/countersign.v1.AuthService/WhoAmI", Caller, Read).stored(),
    // Whoever has stolen a token could go on to guess the current password.
    row("/countersign.v1.AuthService/ChangePassword", Caller, Hash)
        .stored()
        .in_person()
        .limited(Rate::Login),
    row(
        "/countersign.v1.UserService/CreateUser",
        Needs(UsersWrite),
        Hash,
    )
    .stored(),
    row("/countersign.v1.UserService/GetUser", Caller, Read).stored(),
    row(
        "/countersign.v1.UserService/BatchGetUsers",
        Needs(UsersRead),
        Read,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/ListUsers",
        Needs(UsersRead),
        Read,
    )
    .stored(),
    row("/countersign.v1.UserService/UpdateUser", Caller, Write).stored(),
    row(
        "/countersign.v1.UserService/DeleteUser",
        Needs(UsersDelete),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/DisableUser",
        Needs(UsersWrite),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/EnableUser",
        Needs(UsersWrite),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/UnlockUser",
        Needs(UsersWrite),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/SetPassword",
        Needs(UsersSetPassword),
        Hash,
    )
    .stored()
    .in_person(),
    row(
        "/countersign.v1.UserService/GrantRole",
        Needs(RolesGrant),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.UserService/RevokeRole",
        Needs(RolesGrant),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.RoleService/CreateRole",
        Needs(RolesWrite),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.RoleService/ListRoles",
        Needs(RolesRead),
        Read,
    )
    .stored(),
    row(
        "/countersign.v1.RoleService/UpdateRole",
        Needs(RolesWrite),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.RoleService/DeleteRole",
        Needs(RolesWrite),
        Write,
    )
    .stored(),
    row("/countersign.v1.SessionService/ListSessions", Caller, Read).stored(),
    row(
        "/countersign.v1.SessionService/RevokeSession",
        Caller,
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.SessionService/RevokeAllSessions",
        Caller,
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.TrustService/WatchTrust",
        Needs(TrustWatch),
        Stream,
    ),
    row(
        "/countersign.v1.TrustService/AckTrust",
        Needs(TrustWatch),
        Validate,
    ),
    // Public as validation is: the credential in the message is the proof.
    row(
        "/envoy.service.auth.v3.Authorization/Check",
        Public,
        Validate,
    )
    .about_requests(),
    row("/countersign.v1.ApiKeyService/CreateApiKey", Caller, Write)
        .stored()
        .in_person(),
    row("/countersign.v1.ApiKeyService/ListApiKeys", Caller, Read).stored(),
    row("/countersign.v1.ApiKeyService/RotateApiKey", Caller, Write)
        .stored()
        .in_person(),
    row("/countersign.v1.ApiKeyService/RevokeApiKey", Caller, Write)
        .stored()
        .in_person(),
    row("/countersign.v1.KeyService/ListKeys", Needs(KeysRead), Read).stored(),
    row(
        "/countersign.v1.KeyService/StageKey",
        Needs(KeysRotate),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.KeyService/ActivateKey",
        Needs(KeysRotate),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.KeyService/RetireKey",
        Needs(KeysRotate),
        Write,
    )
    .stored(),
    row(
        "/countersign.v1.AuditService/ListEvents",
        Needs(AuditRead),
        Read,
    )
    .stored(),
    row(
        "/countersign.v1.AuditService/WatchEvents",
        Needs(AuditRead),
        Stream,
    )
    .stored(),
    row(
        "/countersign.v1.AuditService/VerifyLog",
        Needs(AuditVerify),
        Read,
    )
    .stored(),
    row("/grpc.health.v1.Health/Check", Public, Validate),
    row("/grpc.health.v1.Health/Watch", Public, Stream),
    row(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Public,
        Stream,
    ),
    row(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Public,
        Stream,
    ),
];

/// The rows of a process that has no store: what is answered from memory, and
/// not to those who would follow it.
pub fn from_memory() -> &'static [Row] {
    static FROM_MEMORY: LazyLock<Vec<Row>> = LazyLock::new(|| {
        let follows = |row: &Row| row.service() == "countersign.v1.TrustService";
        let rows = ROWS
            .iter()
            .filter(|row| !row.needs_database && !follows(row));
        rows.copied().collect()
    });
    &FROM_MEMORY
}

const fn row(path: &'static str, who: Who, class: Class) -> Row {
    Row {
        path,
        who,
        kinds: Kinds::All,
        class,
        most_bytes: MESSAGE_BYTES,
        larger: Larger::Fails,
        needs_database: false,
        rate: None,
    }
}

impl Row {
    const fn stored(mut self) -> Self {
        self.needs_database = true;
        self
    }

    const fn in_person(mut self) -> Self {
        self.kinds = Kinds::AccessTokens;
        self
    }

    const fn batch(mut self) -> Self {
        self.most_bytes = BATCH_BYTES;
        self
    }

    const fn about_requests(mut self) -> Self {
        self.most_bytes = CHECK_BYTES;
        self.larger = Larger::IsEmptied;
        self
    }

    const fn limited(mut self, rate: Rate) -> Self {
        self.rate = Some(rate);
        self
    }

    /// The RPC's name in logs and metrics: `countersign.v1.AuthService/Login`.
    pub fn rpc(&self) -> &'static str {
        self.path.trim_start_matches('/')
    }

    /// The service that the RPC belongs to: `countersign.v1.AuthService`.
    pub fn service(&self) -> &'static str {
        self.rpc().split('/').next().unwrap_or_default()
    }
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Validate,
        Self::Read,
        Self::Write,
        Self::Hash,
        Self::Stream,
    ];

    /// The name in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Read => "read",
            Self::Write => "write",
            Self::Hash => "hash",
            Self::Stream => "stream",
        }
    }
}

impl Rate {
    /// The name in errors and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Register => "register",
            Self::Refresh => "refresh",
        }
    }

    /// The same of the limit on a whole network.
    pub fn network_label(self) -> &'static str {
        match self {
            Self::Login => "login_of_network",
            Self::Register => "register_of_network",
            Self::Refresh => "refresh_of_network",
        }
    }
}

#[cfg(test)]
mod tests;
