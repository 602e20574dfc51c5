//! What has been revoked.
//!
//! No times are compared to decide: that fails on skewed clocks, on commit order and on `iat` in
//! whole seconds. A session and a key are revoked by id, a user by the least epoch that its tokens
//! must carry. So two sets of revocations compose by the union of ids and the maximum of integers,
//! and it does not matter in which order, or how often, an entry is heard.
//!
//! The maps are persistent: a copy costs nothing and shares all that does not change.

use std::fmt;

use jiff::Timestamp;
use rpds::{HashTrieMapSync, HashTrieSetSync};
use uuid::Uuid;

/// What has been revoked and may not have died by itself yet.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Until when each entry is kept, by session.
    sessions: HashTrieMapSync<Uuid, Timestamp>,
    users: HashTrieMapSync<Uuid, UserEntry>,
    keys: HashTrieSetSync<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct UserEntry {
    min_epoch: i64,
    keep_until: Timestamp,
}

impl Revocations {
    /// Revokes every token of a session. `keep_until` is when the last of them has expired.
    pub fn revoke_session(&mut self, session_id: Uuid, keep_until: Timestamp) {
        let keep_until = match self.sessions.get(&session_id) {
            Some(known) => keep_until.max(*known),
            None => keep_until,
        };
        self.sessions.insert_mut(session_id, keep_until);
    }

    /// Revokes every token of a user whose epoch is less than `min_epoch`. `keep_until` is when the
    /// last of them has expired.
    pub fn revoke_user(&mut self, user_id: Uuid, min_epoch: i64, keep_until: Timestamp) {
        let entry = match self.users.get(&user_id) {
            Some(known) => UserEntry {
                min_epoch: min_epoch.max(known.min_epoch),
                keep_until: keep_until.max(known.keep_until),
            },
            None => UserEntry {
                min_epoch,
                keep_until,
            },
        };
        self.users.insert_mut(user_id, entry);
    }

    /// Revokes a signing key for good: no token signed by it is accepted again, whether or not the key
    /// set has it. Such entries are few and are never pruned.
    pub fn revoke_key(&mut self, kid: impl Into<String>) {
        self.keys.insert_mut(kid.into());
    }

    /// Forgets the entries whose `keep_until` is before `now`. Looks at every entry.
    pub fn prune(&mut self, now: Timestamp) {
        let sessions = self
            .sessions
            .iter()
            .filter(|(_, keep_until)| **keep_until < now);
        for session_id in sessions.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.sessions.remove_mut(&session_id);
        }
        let users = self
            .users
            .iter()
            .filter(|(_, entry)| entry.keep_until < now);
        for user_id in users.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.users.remove_mut(&user_id);
        }
    }

    /// The revoked sessions, and until when each entry is kept.
    pub fn sessions(&self) -> impl Iterator<Item = (Uuid, Timestamp)> {
        self.sessions.iter().map(|(id, keep)| (*id, *keep))
    }

    /// The users with revoked tokens: the least epoch that is good, and until when each entry is kept.
    pub fn users(&self) -> impl Iterator<Item = (Uuid, i64, Timestamp)> {
        let entries = self.users.iter();
        entries.map(|(id, entry)| (*id, entry.min_epoch, entry.keep_until))
    }

    /// Adds everything that another set of revocations holds.
    pub fn merge(&mut self, other: &Self) {
        for (session_id, keep_until) in other.sessions() {
            self.revoke_session(session_id, keep_until);
        }
        for (user_id, min_epoch, keep_until) in other.users() {
            self.revoke_user(user_id, min_epoch, keep_until);
        }
        for kid in other.keys.iter() {
            self.revoke_key(kid);
        }
    }

    /// Whether this session is revoked.
    pub fn is_session_revoked(&self, session_id: Uuid) -> bool {
        self.sessions.contains_key(&session_id)
    }

    /// The least epoch that this user's tokens must carry, if any has been set.
    pub fn min_epoch(&self, user_id: Uuid) -> Option<i64> {
        self.users.get(&user_id).map(|entry| entry.min_epoch)
    }

    /// Whether this signing key is revoked.
    pub fn is_key_revoked(&self, kid: &str) -> bool {
        self.keys.contains(kid)
    }

    /// How many entries there are, of all kinds.
    pub fn len(&self) -> usize {
        self.sessions.size() + self.users.size() + self.keys.size()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Counts, not entries: there may be a million of them.
impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("sessions", &self.sessions.size())
            .field("users", &self.users.size())
            .field("keys", &self.keys.size())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn entries_compose_to_the_union_and_the_maximum_in_any_order() {
        let entries: [&dyn Fn(&mut Revocations); 6] = [
            &|r| r.revoke_session(id(1), at(100)),
            &|r| r.revoke_session(id(1), at(50)),
            &|r| r.revoke_session(id(2), at(10)),
            &|r| r.revoke_user(id(1), 7, at(20)),
            &|r| r.revoke_user(id(1), 3, at(90)),
            &|r| r.revoke_key("k"),
        ];
        let mut forward = Revocations::default();
        for apply in entries {
            apply(&mut forward);
        }
        let mut backward = Revocations::default();
        for apply in entries.iter().rev() {
            apply(&mut backward);
        }
        let mut twice = backward.clone();
        for apply in entries {
            apply(&mut twice);
        }

        assert!(forward == backward && backward == twice);
        assert_eq!(forward.len(), 4);
        assert!(forward.is_session_revoked(id(1)) && forward.is_session_revoked(id(2)));
        assert!(!forward.is_session_revoked(id(3)));
        assert_eq!(forward.min_epoch(id(1)), Some(7));
        assert_eq!(forward.min_epoch(id(2)), None);

        // Each took the later `keep_until`.
        forward.prune(at(90));
        assert!(forward.is_session_revoked(id(1)));
        assert_eq!(forward.min_epoch(id(1)), Some(7));
    }

    #[test]
    fn pruning_keeps_an_entry_until_its_time_and_a_key_for_good() {
        let mut revocations = Revocations::default();
        revocations.revoke_session(id(1), at(100));
        revocations.revoke_user(id(2), 5, at(100));
        revocations.revoke_key("k");

        revocations.prune(at(100));
        assert_eq!(revocations.len(), 3);
        revocations.prune(at(101));
        assert!(!revocations.is_session_revoked(id(1)));
        assert_eq!(revocations.min_epoch(id(2)), None);
        assert!(revocations.is_key_revoked("k"));
        revocations.prune(Timestamp::MAX);
        assert_eq!(revocations.len(), 1);
        assert!(!revocations.is_empty());
    }

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut revocations = Revocations::default();
        revocations.revoke_session(id(1), at(100));
        let copy = revocations.clone();
        revocations.revoke_session(id(2), at(100));
        revocations.prune(Timestamp::MAX);
        assert!(copy.is_session_revoked(id(1)));
        assert!(!copy.is_session_revoked(id(2)));
    }

    #[test]
    fn debug_shows_counts_only() {
        let mut revocations = Revocations::default();
        revocations.revoke_key("some-kid");
        assert_eq!(
            format!("{revocations:?}"),
            "Revocations { sessions: 0, users: 0, keys: 1 }"
        );
    }
}
