//! Ids: UUIDs of version 7 (RFC 9562), each kind its own type, so that a
//! session is never looked up among the users.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Entropy, Invalid};

macro_rules! id {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {$(
        #[$doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id: ordered by time, 74 random bits.
            pub fn new(now: Timestamp, entropy: &dyn Entropy) -> Self {
                Self(uuid_v7(now, entropy))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                uuid(text).map(Self)
            }
        }
    )+};
}

id! {
    /// Names an account.
    UserId,
    /// Names a session; the claim `sid`.
    SessionId,
    /// Names a role.
    RoleId,
    /// Names an API key; not its secret.
    ApiKeyId,
}

/// A UUID of version 7 from the clock and the randomness passed in.
pub fn uuid_v7(now: Timestamp, entropy: &dyn Entropy) -> Uuid {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &entropy.array()).into_uuid()
}

/// The first id that could be made at this time.
pub fn first_at(time: Timestamp) -> Uuid {
    let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

/// The time that an id was made at, in milliseconds; none of another version.
pub fn time_of(id: Uuid) -> Option<Timestamp> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    Timestamp::new(seconds.try_into().ok()?, nanos.try_into().ok()?).ok()
}

/// Reads a UUID in its hyphenated form.
pub fn uuid(text: &str) -> Result<Uuid, Invalid> {
    if text.len() != 36 {
        return Err(Invalid::new("must be a UUID of 36 characters"));
    }
    Uuid::try_parse(text).map_err(|_| Invalid::new("must be a UUID of 36 characters"))
}
