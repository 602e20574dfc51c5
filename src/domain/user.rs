//! Accounts.

use std::{collections::BTreeMap, str::FromStr};

use jiff::Timestamp;

use super::{DisplayName, Email, Invalid, RoleName, UserId, Username, text};

/// An account as the service knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Never used twice.
    pub id: UserId,
    /// None on a tombstone.
    pub email: Option<Email>,
    /// Whether the address was proved to be the account's.
    pub email_verified: bool,
    /// The second name to log in with.
    pub username: Option<Username>,
    /// For people.
    pub display_name: DisplayName,
    /// Whether it may log in.
    pub status: UserStatus,
    /// Names of its roles, sorted.
    pub roles: Vec<RoleName>,
    /// Free labels.
    pub metadata: Metadata,
    /// Tokens that carry a smaller epoch are refused.
    pub epoch: i64,
    /// Sessions that began in a smaller epoch are dead.
    pub min_session_epoch: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Whether an account may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserStatus {
    /// It may.
    Active,
    /// It may not, until it is enabled.
    Disabled,
    /// Its personal data are erased; it never may again.
    Deleted,
}

impl UserStatus {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
        }
    }
}

impl FromStr for UserStatus {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        [Self::Active, Self::Disabled, Self::Deleted]
            .into_iter()
            .find(|status| status.as_str() == name)
            .ok_or_else(|| Invalid::new("must be active, disabled or deleted"))
    }
}

/// Free labels on an account: at most 32, each value at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    /// The most labels.
    pub const MOST: usize = 32;
    /// The most bytes of a value.
    pub const MOST_BYTES: usize = 512;

    /// Checks labels and takes them in.
    pub fn new(labels: impl IntoIterator<Item = (String, String)>) -> Result<Self, Invalid> {
        let mut metadata = Self::default();
        for (key, value) in labels {
            metadata.set(key, value)?;
        }
        Ok(metadata)
    }

    /// Sets one label.
    pub fn set(&mut self, key: String, value: String) -> Result<(), Invalid> {
        Self::check_key(&key)?;
        Self::check_value(&value)?;
        self.0.insert(key, value);
        if self.0.len() > Self::MOST {
            return Err(Invalid::new("must be at most 32 labels"));
        }
        Ok(())
    }

    /// Removes one label.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Checks the name of a label.
    pub fn check_key(key: &str) -> Result<(), Invalid> {
        if !(1..=64).contains(&key.len()) || !text::is_slug(key, "_-") {
            return Err(Invalid::new(
                "keys must be 1 to 64 of a-z, 0-9, `_`, `-`, starting with a letter",
            ));
        }
        Ok(())
    }

    /// Checks what a label says.
    pub fn check_value(value: &str) -> Result<(), Invalid> {
        if value.len() > Self::MOST_BYTES {
            return Err(Invalid::new("values must be at most 512 bytes"));
        }
        text::check(value, Self::MOST_BYTES)
    }

    /// The labels by key.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// The labels by key.
    pub fn into_labels(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// Which accounts to list. All conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserFilter {
    /// The normalised address starts with this.
    pub email_prefix: Option<String>,
    /// None: active and disabled ones.
    pub status: Option<UserStatus>,
    /// Holds this role.
    pub role: Option<RoleName>,
    /// Created at or after.
    pub created_from: Option<Timestamp>,
    /// Created before.
    pub created_before: Option<Timestamp>,
}

/// What UpdateUser is to change; what is None stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserChange {
    /// A new address, which counts as not verified.
    pub email: Option<Email>,
    /// A new username, or none any more.
    pub username: Option<Option<Username>>,
    /// A new name for people.
    pub display_name: Option<DisplayName>,
    /// All labels anew.
    pub metadata: Option<Metadata>,
    /// Single labels: a new value, or none any more.
    pub labels: BTreeMap<String, Option<String>>,
}

impl UserChange {
    /// Whether it touches only what a person may change on their own account.
    pub fn is_personal(&self) -> bool {
        self.email.is_none() && self.metadata.is_none() && self.labels.is_empty()
    }
}
