//! Following the trust log: the one way by which this node's memory learns of
//! revocations and keys, its own included. Other nodes and the command line
//! are thereby heard alike.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use countersign_verifier::{ApiKeys, Delta, Revocations, TrustState};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Core, Feed, keyring, skew, token};
use crate::{
    domain::{
        Call,
        trust::{TrustChange, TrustEntry},
    },
    error::{Reason, Result},
    store::{
        api_keys::{self, Found, Which},
        trust,
    },
};

/// How many entries are read at once.
const BATCH: i64 = 1_000;

/// How long a call waits to see its own change applied. The change is
/// committed; past this, whether this node has heard of it is not known.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often what has expired is forgotten.
const PRUNE_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// What this process has heard of the log so far.
#[derive(Debug, Clone)]
pub struct Trust {
    /// None in a process that follows nothing.
    applied: Option<watch::Sender<i64>>,
    wake: Arc<Notify>,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            applied: Some(watch::Sender::new(0)),
            wake: Arc::default(),
        }
    }
}

impl Trust {
    /// For the command line, which validates nothing: nodes hear of its changes
    /// through the log.
    pub fn unattended() -> Self {
        Self {
            applied: None,
            wake: Arc::default(),
        }
    }

    /// Has the follower look at the log now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until the entry of this number is in force here, so that a
    /// revoking call answers only then.
    pub async fn reach(&self, seq: Option<i64>) -> Result<()> {
        let (Some(seq), Some(applied)) = (seq, &self.applied) else {
            return Ok(());
        };
        self.wake();
        let mut applied = applied.subscribe();
        match timeout(PATIENCE, applied.wait_for(|applied| *applied >= seq)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Reason::OutcomeUnknown.into()),
        }
    }
}

/// Waits until a change is in force here that had been made before: by another
/// node, or by a call whose answer was lost. All that is committed is enough.
pub(super) async fn reach_head(core: &Core, call: &Call) -> Result<()> {
    let (head, _) = {
        let mut conn = core.store.read(call).await?;
        trust::head(&mut conn).await?
    };
    core.trust.reach(Some(head)).await
}

/// The task that follows the log.
#[derive(Debug)]
pub struct Follower {
    core: Arc<Core>,
    feed: Arc<Feed>,
    poll: Duration,
    call: Call,
    cursor: Cursor,
    prune_at: Timestamp,
}

/// The last entry that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    seq: i64,
    nonce: Uuid,
}

impl Follower {
    /// Tells `feed` what is in the log, looking every `poll` and when woken.
    pub fn new(core: Arc<Core>, feed: Arc<Feed>, poll: Duration) -> Self {
        let cursor = Cursor {
            seq: 0,
            nonce: Uuid::nil(),
        };
        Self {
            core,
            feed,
            poll,
            call: Call::internal("trust-log"),
            cursor,
            prune_at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Reads everything once, for the command line: it changes nothing.
    pub async fn load(mut self) -> Result<()> {
        self.snapshot(Revocations::default()).await
    }

    /// Prepares the database (schema, first keys), takes the first snapshot
    /// and follows from there. While the database is away it tries again, and
    /// validation goes on with what is known. Fails only where trying again
    /// cannot help: a schema newer than the binary, or a master key that does
    /// not open the keys.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<()> {
        shutdown
            .run_until_cancelled(self.follow_for_ever())
            .await
            .unwrap_or(Ok(()))
    }

    async fn follow_for_ever(&mut self) -> Result<()> {
        let mut quiet = false;
        while let Err(error) = self.start().await {
            if error.reason() == Reason::Internal {
                return Err(error);
            }
            if !quiet {
                let cause = crate::error::chain(&error);
                tracing::warn!(
                    cause,
                    "not ready: the database does not answer; trying again"
                );
            }
            quiet = true;
            sleep(self.poll).await;
        }
        tracing::info!(
            seq = self.cursor.seq,
            "ready: keys and revocations are loaded"
        );
        quiet = false;
        loop {
            tokio::select! {
                () = self.core.trust.wake.notified() => {}
                () = sleep(self.poll) => {}
            }
            let outcome = self.follow().await;
            if let Err(error) = &outcome
                && !quiet
            {
                let cause = crate::error::chain(error);
                tracing::error!(
                    cause,
                    "the trust log cannot be read; going on with what is known"
                );
            }
            quiet = outcome.is_err();
            if let Some(age) = self.feed.verifier().staleness() {
                metrics::gauge!("countersign_trust_age_seconds").set(age.as_secs_f64());
            }
            self.prune();
        }
    }

    async fn start(&mut self) -> Result<()> {
        self.core.store.migrate_up().await?;
        keyring::create_missing(&self.core, &self.call).await?;
        // Before the first login, which then need not ask.
        skew::measure(&self.core, &self.call).await?;
        self.snapshot(Revocations::default()).await
    }

    /// Reads everything. The head comes first: what is appended meanwhile is
    /// then read twice, never missed, and applying twice is harmless.
    async fn snapshot(&mut self, known: Revocations) -> Result<()> {
        let began = self.core.clock.monotonic();
        let (seq, nonce) = {
            let mut conn = self.core.store.read(&self.call).await?;
            trust::head(&mut conn).await?
        };
        let keys = self.core.keyring.reload(&self.core, &self.call).await?;
        let mut state = TrustState {
            issuer: self.core.policy.issuer.clone(),
            audiences: self.core.policy.audiences.clone(),
            keys: keys.public.clone(),
            revocations: known,
            api_keys: ApiKeys::default(),
            seq,
            nonce,
        };
        let mut from = 0;
        loop {
            let entries = self.entries(from).await?;
            let Some(last) = entries.last() else { break };
            from = last.seq;
            state.apply(&self.revoked(&entries, Cursor { seq, nonce }));
            if from >= seq {
                break;
            }
        }
        for key in self.api_keys(&[Which::All]).await?.live {
            state.api_keys.insert(key);
        }
        // It is as old as the look at the head, with which this began.
        let age = self.core.clock.monotonic().saturating_sub(began);
        self.feed.replace(state, age);
        self.reached(Cursor { seq, nonce });
        Ok(())
    }

    /// Applies what was appended since the last look.
    async fn follow(&mut self) -> Result<()> {
        loop {
            let began = self.core.clock.monotonic();
            let (head, nonce) = {
                let mut conn = self.core.store.read(&self.call).await?;
                trust::head(&mut conn).await?
            };
            let at = self.cursor;
            if head == at.seq && nonce == at.nonce {
                self.feed.verifier().heard_as_of(began);
                return Ok(());
            }
            // One entry back, to see that it is still the one that we know.
            let entries = self.entries(at.seq - 1).await?;
            let goes_on = head > at.seq
                && entries.first().is_some_and(|first| {
                    (first.seq, first.nonce) == (at.seq, at.nonce) || first.seq == at.seq + 1
                });
            let new: Vec<_> = entries
                .into_iter()
                .filter(|entry| entry.seq > at.seq)
                .collect();
            let Some(last) = new.last().filter(|_| goes_on) else {
                // A restored backup; or what we lack has been cleared away, as
                // no token that it speaks of lives any more.
                tracing::warn!(
                    head,
                    applied = at.seq,
                    "the trust log does not go on from what is known; reading it whole"
                );
                let state = self.feed.verifier().state();
                let known = state.map(|s| s.revocations.clone()).unwrap_or_default();
                return self.snapshot(known).await;
            };
            let cursor = Cursor {
                seq: last.seq,
                nonce: last.nonce,
            };
            let mut delta = self.revoked(&new, cursor);
            match self.changed_api_keys(&new).await {
                Ok(Found { live, dead }) => {
                    delta.api_keys = live;
                    delta.removed_api_keys = dead.into_iter().map(|id| id.0).collect();
                }
                // The revocations must wait for no other read.
                Err(error) => {
                    self.feed.publish(Delta {
                        seq: at.seq,
                        nonce: at.nonce,
                        ..delta
                    });
                    return Err(error);
                }
            }
            if new.iter().any(TrustEntry::is_about_keys) {
                // First, and from where we were: a key that does not open must
                // keep no revocation from being heard.
                self.feed.publish(Delta {
                    seq: at.seq,
                    nonce: at.nonce,
                    ..delta.clone()
                });
                let keys = self.core.keyring.reload(&self.core, &self.call).await?;
                delta.keys = Some(keys.public.clone());
            }
            self.feed.publish(delta);
            self.reached(cursor);
            if cursor.seq >= head {
                self.feed.verifier().heard_as_of(began);
            }
        }
    }

    async fn entries(&self, after: i64) -> Result<Vec<TrustEntry>> {
        let mut conn = self.core.store.read(&self.call).await?;
        trust::since(&mut conn, after, BATCH).await
    }

    /// What the entries revoke, up to a position.
    fn revoked(&self, entries: &[TrustEntry], to: Cursor) -> Delta {
        let keep_until = self.uptime() + token::RETENTION;
        let mut delta = Delta {
            seq: to.seq,
            nonce: to.nonce,
            ..Delta::default()
        };
        for entry in entries {
            match entry.change {
                TrustChange::SessionRevoked { session_id } => {
                    delta.sessions.push((session_id.0, keep_until));
                }
                TrustChange::UserEpoch { user_id, min_epoch } => {
                    delta.users.push((user_id.0, min_epoch, keep_until));
                }
                TrustChange::ApiKey { .. } | TrustChange::SigningKeys | TrustChange::SecretKeys => {
                }
            }
        }
        delta
    }

    /// The API keys that the entries may have changed, as they are now. What an
    /// account may do, and whether it may do anything, changes with its epoch.
    async fn changed_api_keys(&self, entries: &[TrustEntry]) -> Result<Found> {
        let (mut ids, mut owners) = (BTreeSet::new(), BTreeSet::new());
        for entry in entries {
            match entry.change {
                TrustChange::ApiKey { api_key_id } => _ = ids.insert(api_key_id),
                TrustChange::UserEpoch { user_id, .. } => _ = owners.insert(user_id),
                _ => {}
            }
        }
        let ids: Vec<_> = ids.into_iter().collect();
        let owners: Vec<_> = owners.into_iter().collect();
        self.api_keys(&[Which::Owners(&owners), Which::Ids(&ids)])
            .await
    }

    async fn api_keys(&self, wanted: &[Which<'_>]) -> Result<Found> {
        let mut all = Found::default();
        for which in wanted.iter().filter(|which| !which.is_nothing()) {
            let mut conn = self.core.store.read(&self.call).await?;
            let found = api_keys::live(&mut conn, *which, self.core.now()).await?;
            all.live.extend(found.live);
            all.dead.extend(found.dead);
        }
        Ok(all)
    }

    /// Forgets what has expired; looks at every entry, so not at every poll.
    fn prune(&mut self) {
        let now = self.uptime();
        if now >= self.prune_at {
            self.prune_at = now + PRUNE_EVERY;
            let verifier = self.feed.verifier();
            verifier.update(|state| state.revocations.prune(now));
        }
    }

    fn uptime(&self) -> Timestamp {
        self.feed.verifier().uptime()
    }

    fn reached(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        if let Some(applied) = &self.core.trust.applied {
            applied.send_replace(cursor.seq);
        }
    }
}
