//! What the audit log records: who did what to whom, and how it ended. Ids
//! only; addresses and user agents are kept apart, so that a person can be
//! erased. [`Record`] is an event as it is kept, [`Checkpoint`] the signed word
//! on all of them.

mod checkpoint;
mod record;

use std::{net::IpAddr, str::FromStr, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

pub use self::{
    checkpoint::Checkpoint,
    record::{Origin, Record, Seal, SealedEvent, StoredEvent},
};
use super::{ApiKeyId, Invalid, RoleId, SessionId, UserId};

/// One security-relevant event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// UUID of version 7.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// What.
    pub action: Action,
    /// How it ended.
    pub outcome: Outcome,
    /// The user who did it, also by an API key; none for workloads, anonymous
    /// callers and the command line.
    pub actor: Option<UserId>,
    /// The workload that did it, or through which the user came.
    pub workload: Option<Arc<str>>,
    /// The account concerned.
    pub subject: Option<UserId>,
    /// The session concerned.
    pub session_id: Option<SessionId>,
    /// The role concerned.
    pub role_id: Option<RoleId>,
    /// The API key concerned, else the one by which it was done.
    pub api_key_id: Option<ApiKeyId>,
    /// The key concerned: the id of a signing or master key, purpose and id of a
    /// symmetric key.
    pub kid: Option<String>,
    /// Finds the call in the log.
    pub correlation_id: String,
    /// Where the call came from; stored apart.
    pub address: Option<IpAddr>,
    /// What the call said it was; stored apart.
    pub user_agent: String,
    /// How many events it stands for: 1, but where not all are recorded one by
    /// one.
    pub represents: i64,
}

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Success,
    /// Refused.
    Failure,
}

impl Outcome {
    /// The name in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

/// Which events to list; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Done by this account.
    pub actor: Option<UserId>,
    /// About this account.
    pub subject: Option<UserId>,
    /// About this session.
    pub session_id: Option<SessionId>,
    /// Of this kind.
    pub action: Option<Action>,
    /// That ended so.
    pub outcome: Option<Outcome>,
    /// From this time on.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub before: Option<Timestamp>,
}

impl EventFilter {
    /// Whether every event of its time is one.
    pub fn is_by_time_alone(&self) -> bool {
        let of_time = Self {
            from: self.from,
            before: self.before,
            ..Self::default()
        };
        *self == of_time
    }
}

impl FromStr for Action {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        let mut all = Self::ALL.iter().copied();
        all.find(|action| action.as_str() == name)
            .ok_or_else(|| Invalid::new("is no action that is known here"))
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action {
            $($(#[$doc])+ $variant,)+
        }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in the database.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

actions! {
    /// An account was registered by its owner.
    UserRegistered = "user.registered",
    /// An account was created by another.
    UserCreated = "user.created",
    /// Another's account was read.
    UserRead = "user.read",
    /// Accounts were listed, or several read at once.
    UsersListed = "user.listed",
    /// An account was changed.
    UserUpdated = "user.updated",
    /// An account was disabled.
    UserDisabled = "user.disabled",
    /// An account was enabled.
    UserEnabled = "user.enabled",
    /// The failed logins of an account were forgotten.
    UserUnlocked = "user.unlocked",
    /// An account was deleted.
    UserDeleted = "user.deleted",
    /// A session was opened, or a login failed.
    Login = "session.login",
    /// A password was not looked at, as too many before it were wrong. Once for each wait.
    LoginThrottled = "session.login_throttled",
    /// Another's sessions were listed.
    SessionsListed = "session.listed",
    /// Logins from a network (that of the event's address), or on a whole node, began to
    /// look like credential stuffing. Once for each episode.
    StuffingBegan = "session.stuffing_began",
    /// They do no more.
    StuffingEnded = "session.stuffing_ended",
    /// A session was ended by its owner.
    Logout = "session.logout",
    /// A session was ended, by its owner or another.
    SessionRevoked = "session.revoked",
    /// All sessions of an account were ended.
    SessionsRevoked = "session.revoked_all",
    /// A refresh token was presented again within the grace.
    RefreshReplayed = "session.refresh_replayed",
    /// An old refresh token was presented; the session was ended.
    RefreshStolen = "session.refresh_stolen",
    /// A password was changed by its owner.
    PasswordChanged = "password.changed",
    /// A password was set by another.
    PasswordSet = "password.set",
    /// A stored password was hashed anew with the parameters in force.
    PasswordRehashed = "password.rehashed",
    /// A role was granted.
    RoleGranted = "role.granted",
    /// A role was revoked.
    RoleRevoked = "role.revoked",
    /// A role was created.
    RoleCreated = "role.created",
    /// A role was changed.
    RoleUpdated = "role.updated",
    /// A role was deleted.
    RoleDeleted = "role.deleted",
    /// An API key was created.
    ApiKeyCreated = "api_key.created",
    /// Another's API keys were listed.
    ApiKeysListed = "api_key.listed",
    /// An API key got a new secret.
    ApiKeyRotated = "api_key.rotated",
    /// An API key was revoked.
    ApiKeyRevoked = "api_key.revoked",
    /// The first signing key was created.
    KeyCreated = "key.created",
    /// A symmetric key was created: the newest of its purpose is put to work soon after.
    SecretKeyCreated = "secret_key.created",
    /// A symmetric key was taken away: what was made with it is refused.
    SecretKeyRemoved = "secret_key.removed",
    /// All keys were sealed under another master key.
    KeysRewrapped = "key.rewrapped",
    /// A signing key was created, to sign later.
    KeyStaged = "key.staged",
    /// A signing key signs from then on, and the one before it no more.
    KeyActivated = "key.activated",
    /// A signing key was taken away: its tokens are refused.
    KeyRemoved = "key.removed",
    /// The audit log was listed, or somebody began to follow it.
    AuditRead = "audit.read",
    /// Records went by age. It stands for all that have, up to that position.
    AuditExpired = "audit.expired",
}
