//! API keys: what a program holds that acts for an account without logging in.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};

use super::{ApiKeyId, Invalid, PermissionName, UserId, text};

/// An API key, as lists show it. Of its secrets nothing is kept but digests,
/// which stay in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// The account that it acts for.
    pub owner: UserId,
    /// What its owner calls it.
    pub name: ApiKeyName,
    /// What it was given. What it may do is the part of it that its owner still
    /// holds.
    pub scopes: BTreeSet<PermissionName>,
    /// Whom it is meant for.
    pub audiences: BTreeSet<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends; none: when it is revoked.
    pub expires_at: Option<Timestamp>,
    /// When it got its current secret, if that is not its first.
    pub rotated_at: Option<Timestamp>,
    /// Until when a secret from before the last rotation is good.
    pub overlap_until: Option<Timestamp>,
}

/// 1 to 64 characters for people.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyName(String);

/// How long the secrets from before a rotation stay good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap(SignedDuration);

impl ApiKey {
    /// The most scopes.
    pub const MOST_SCOPES: usize = 64;
    /// The most secrets that are good at once; a rotation beyond ends the oldest.
    pub const MOST_SECRETS: usize = 5;
}

impl Overlap {
    /// From nothing, which ends them at once, to 30 days.
    pub fn new(wish: SignedDuration) -> Result<Self, Invalid> {
        let most = SignedDuration::from_hours(30 * 24);
        if (SignedDuration::ZERO..=most).contains(&wish) {
            Ok(Self(wish))
        } else {
            Err(Invalid::new("must be 0 to 30 days"))
        }
    }

    /// Until when they are good.
    pub fn until(self, now: Timestamp) -> Timestamp {
        now + self.0
    }
}

impl Default for Overlap {
    fn default() -> Self {
        Self(SignedDuration::from_hours(24))
    }
}

impl ApiKeyName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKeyName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        text::check(name, 64)?;
        if name.is_empty() || name.trim() != name {
            return Err(Invalid::new(
                "must be 1 to 64 characters and must not begin or end with a blank",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

/// Whoever names a key may name a person.
impl fmt::Debug for ApiKeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeyName(…)")
    }
}
