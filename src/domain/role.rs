//! Roles: named sets of permissions.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;

use super::{Invalid, Permission, PermissionName, RoleId, text};

/// A role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its id; names never change, but ids are what rows point at.
    pub id: RoleId,
    /// Its name.
    pub name: RoleName,
    /// For people.
    pub description: String,
    /// What it permits.
    pub permissions: BTreeSet<PermissionName>,
    /// Whether it belongs to Countersign and cannot be changed.
    pub built_in: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// 1 to 64 of a-z, 0-9, `_`, `-`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(String);

impl Role {
    /// The most roles an account may hold. With [`Role::MOST_BYTES`] it keeps
    /// every access token below the 8 KiB that verifiers accept.
    pub const MOST_PER_USER: usize = 8;
    /// The most permissions of a role.
    pub const MOST_PERMISSIONS: usize = 32;
    /// The most bytes that a role's permissions may have together.
    pub const MOST_BYTES: usize = 512;

    /// What the built-in role `admin` permits: all that there is.
    pub fn admin_permissions() -> BTreeSet<PermissionName> {
        Permission::ALL.iter().map(|p| (*p).into()).collect()
    }

    /// Checks a set of permissions for a role.
    pub fn check_permissions(set: &BTreeSet<PermissionName>) -> Result<(), Invalid> {
        let bytes: usize = set.iter().map(|p| p.as_str().len()).sum();
        if set.len() > Self::MOST_PERMISSIONS || bytes > Self::MOST_BYTES {
            return Err(Invalid::new(
                "must be at most 32 permissions of together at most 512 bytes",
            ));
        }
        Ok(())
    }

    /// Checks a description.
    pub fn check_description(text: &str) -> Result<(), Invalid> {
        text::check(text, 512)
    }
}

impl RoleName {
    /// The built-in role that may do everything.
    pub const ADMIN: &str = "admin";

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the built-in role `admin`.
    pub fn is_admin(&self) -> bool {
        self.0 == Self::ADMIN
    }

    /// The built-in role that may do everything.
    pub fn admin() -> Self {
        Self(Self::ADMIN.to_owned())
    }
}

impl FromStr for RoleName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        if !(1..=64).contains(&name.len()) || !text::is_slug(name, "_-") {
            return Err(Invalid::new(
                "must be 1 to 64 of a-z, 0-9, `_`, `-`, starting with a letter",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
