//! Permissions: Countersign's own, which its access table checks, and any
//! others, which it carries for the services behind it.

use std::{fmt, str::FromStr};

use super::{Invalid, text};

/// A permission by name, Countersign's own or another service's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermissionName(String);

macro_rules! permissions {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// A permission of Countersign itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Permission {
            $($(#[$doc])+ $variant,)+
        }

        impl Permission {
            /// All of them; what the built-in role `admin` holds.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in a role and in the claim `scope`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

permissions! {
    /// See every account.
    UsersRead = "countersign.users.read",
    /// Create, update, disable and enable accounts.
    UsersWrite = "countersign.users.write",
    /// Delete accounts.
    UsersDelete = "countersign.users.delete",
    /// Set another's password.
    UsersSetPassword = "countersign.users.set_password",
    /// See roles.
    RolesRead = "countersign.roles.read",
    /// Create, update and delete roles.
    RolesWrite = "countersign.roles.write",
    /// Grant roles to accounts, and revoke them.
    RolesGrant = "countersign.roles.grant",
    /// See everyone's sessions.
    SessionsRead = "countersign.sessions.read",
    /// End everyone's sessions.
    SessionsRevoke = "countersign.sessions.revoke",
    /// Learn why an access token or API key is refused, and what it would stand for.
    TokensExplain = "countersign.tokens.explain",
    /// Follow what validators are told: keys, revocations, API keys.
    TrustWatch = "countersign.trust.watch",
    /// See everyone's API keys.
    ApiKeysRead = "countersign.api_keys.read",
    /// Create, rotate and revoke API keys for others.
    ApiKeysWrite = "countersign.api_keys.write",
    /// See signing keys.
    KeysRead = "countersign.keys.read",
    /// Stage, activate and retire signing keys.
    KeysRotate = "countersign.keys.rotate",
    /// Read the audit log, with the addresses that calls came from.
    AuditRead = "countersign.audit.read",
    /// Check that the audit log is whole.
    AuditVerify = "countersign.audit.verify",
}

impl PermissionName {
    /// What Countersign's own permissions start with.
    pub const OWN_PREFIX: &str = "countersign.";

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of Countersign's own.
    pub fn is_own(&self) -> bool {
        self.0.starts_with(Self::OWN_PREFIX)
    }
}

impl FromStr for PermissionName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        if !(1..=64).contains(&name.len()) || !text::is_slug(name, "_-.:") {
            return Err(Invalid::new(
                "must be 1 to 64 of a-z, 0-9, `_`, `-`, `.`, `:`, starting with a letter",
            ));
        }
        let own = name.starts_with(Self::OWN_PREFIX);
        if own && !Permission::ALL.iter().any(|p| p.name() == name) {
            return Err(Invalid::new(
                "starts with \"countersign.\" and is no permission that Countersign knows",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl From<Permission> for PermissionName {
    fn from(permission: Permission) -> Self {
        Self(permission.name().to_owned())
    }
}

impl fmt::Display for PermissionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
