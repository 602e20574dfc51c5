//! The decision: is this token good, by what is known now?
//!
//! The order is from cheap to dear, and nothing in a token is believed before its signature: form,
//! key, signature, claims, revocation. No I/O, and no lock that a writer of states holds. That a signature
//! is good is remembered (see `cache`), a verdict never.
//!
//! It does not fetch its knowledge. A feed hands it states and tells it when it has heard that there
//! is nothing newer; from that the verifier knows its own staleness. What to do about staleness is
//! the caller's choice.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};

use crate::cache::TokenCache;
use crate::proof::{Proof, check_audience, check_expiry, check_revocations, trusted_key};
use crate::{
    API_KEY_PREFIX, ApiKeyHash, CacheCounts, Caller, Clock, Credential, Explanation,
    MAX_TOKEN_BYTES, Rejection, TrustState,
};

/// How strict a verifier is where the standards leave a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How far this machine's clock may be off when it looks at `exp`, `nbf` and `iat`. 5 seconds by
    /// default: clocks kept by NTP differ by much less. Counts as [`Policy::MAX_LEEWAY`] if larger.
    pub leeway: Duration,
    /// How many verified access tokens are remembered, so that their signatures need not be checked
    /// again; about a kilobyte each. 10,000 by default; 0 checks every signature every time. Counts as
    /// [`Policy::MAX_CACHED_TOKENS`] if larger.
    pub cached_tokens: usize,
}

/// Decides whether tokens are good, by the trust state that it was last given.
#[derive(Debug)]
pub struct Verifier {
    state: ArcSwapOption<TrustState>,
    /// Held while a state is made and put in place, so that no change is lost. Readers never take it.
    writer: Mutex<()>,
    /// Nanoseconds of the monotonic clock at which the state was last known to be the newest. Negative
    /// for what was known before that clock began.
    known_as_of: AtomicI64,
    clock: Arc<dyn Clock>,
    leeway: SignedDuration,
    tokens: TokenCache,
}

impl Policy {
    /// The most that `leeway` can be: 30 seconds.
    pub const MAX_LEEWAY: Duration = Duration::from_secs(30);

    /// The most that `cached_tokens` can be: ten million.
    pub const MAX_CACHED_TOKENS: usize = 10_000_000;
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(5),
            cached_tokens: 10_000,
        }
    }
}

impl Verifier {
    /// Makes a verifier that knows nothing yet and so refuses every token as
    /// [`Rejection::NotReady`].
    pub fn new(clock: Arc<dyn Clock>, policy: Policy) -> Self {
        let leeway = policy.leeway.min(Policy::MAX_LEEWAY);
        Self {
            state: ArcSwapOption::empty(),
            writer: Mutex::new(()),
            known_as_of: AtomicI64::new(i64::MIN),
            clock,
            tokens: TokenCache::new(policy.cached_tokens.min(Policy::MAX_CACHED_TOKENS)),
            leeway: SignedDuration::try_from(leeway).unwrap_or_default(),
        }
    }

    /// Puts a state in place of whatever was there. The first one counts as heard now; after that only
    /// [`heard`](Self::heard) resets the staleness.
    pub fn replace(&self, state: TrustState) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = self.state.load().is_none();
        self.state.store(Some(Arc::new(state)));
        if is_first {
            self.heard();
        }
    }

    /// Like [`replace`](Self::replace), for a state whose knowledge is this old already: it comes from
    /// elsewhere, which had it read before, or from a disk.
    pub fn replace_aged(&self, state: TrustState, age: Duration) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // In this order: what was known before must not seem fresher than it is.
        self.state.store(Some(Arc::new(state)));
        self.heard_aged(age);
    }

    /// Changes a copy of the state and puts it in place. Decisions see the state before or after,
    /// never between. Does nothing before the first [`replace`](Self::replace): that state will
    /// contain the change.
    pub fn update(&self, change: impl FnOnce(&mut TrustState)) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = self.state.load_full() {
            let mut next = TrustState::clone(&current);
            change(&mut next);
            self.state.store(Some(Arc::new(next)));
        }
    }

    /// Notes that the head of the trust log was read just now and the state contains all of it.
    pub fn heard(&self) {
        self.heard_as_of(self.clock.monotonic());
    }

    /// Like [`heard`](Self::heard), for a read that began at `instant` of the clock's monotonic time:
    /// what was committed while the read took its time is not known. An earlier instant than the
    /// last one changes nothing.
    pub fn heard_as_of(&self, instant: Duration) {
        self.known_as_of
            .fetch_max(nanoseconds(instant), Ordering::Relaxed);
    }

    /// Notes that the state contains all that had been committed this long ago, as its source says.
    pub fn heard_aged(&self, age: Duration) {
        let now = nanoseconds(self.clock.monotonic());
        let as_of = now.saturating_sub(nanoseconds(age));
        self.known_as_of.fetch_max(as_of, Ordering::Relaxed);
    }

    /// How old the state's knowledge is; `None` before the first state.
    pub fn staleness(&self) -> Option<Duration> {
        self.state.load().as_ref()?;
        let now = nanoseconds(self.clock.monotonic());
        let staleness = now.saturating_sub(self.known_as_of.load(Ordering::Relaxed));
        Some(Duration::from_nanos(u64::try_from(staleness).unwrap_or(0)))
    }

    /// What this verifier tells the time by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The time line that revocations are kept by: the monotonic clock as a timestamp. A wall clock
    /// that steps must not make a verifier forget a revocation.
    pub fn uptime(&self) -> Timestamp {
        let uptime = SignedDuration::try_from(self.clock.monotonic());
        Timestamp::UNIX_EPOCH + uptime.unwrap_or(SignedDuration::ZERO)
    }

    /// The state that decisions are made by; `None` before the first.
    pub fn state(&self) -> Option<Arc<TrustState>> {
        self.state.load_full()
    }

    /// Number of the last trust log entry that decisions are made by; `None` before the first state.
    pub fn applied_seq(&self) -> Option<i64> {
        self.state.load().as_ref().map(|state| state.seq)
    }

    /// Decides whether an access token or an API key is good, and says whom it speaks for.
    ///
    /// It must be meant for `audience` exactly; without one, for any of the configured audiences.
    ///
    /// # Errors
    ///
    /// The exact [`Rejection`], which the sender of the credential must not learn.
    pub fn verify(
        &self,
        credential: &str,
        audience: Option<&str>,
    ) -> Result<Arc<Caller>, Rejection> {
        let state = self.state.load();
        let state = state.as_deref().ok_or(Rejection::NotReady)?;
        if credential.starts_with(API_KEY_PREFIX) {
            let hash = ApiKeyHash::of(credential).ok_or(Rejection::Malformed("api key"))?;
            let caller = state.api_keys.caller(hash, self.clock.now())?;
            check_audience(state, &caller.audience, audience)?;
            return Ok(Arc::clone(caller));
        }
        if credential.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::TooLong);
        }
        let digest = self.tokens.digest(credential);
        let known = self.tokens.get(digest.as_ref(), |proof| proof.holds(state));
        let is_new = known.is_none();
        let proof = match known {
            Some(proof) => proof,
            None => Arc::new(Proof::of(credential, state)?),
        };
        let verdict = proof.judge(state, self.clock.now(), self.leeway, audience);
        match verdict {
            Ok(()) if is_new => self.tokens.insert(digest, Arc::clone(&proof)),
            // Another audience's: it stays as good as it was.
            Ok(()) | Err(Rejection::Audience) => {}
            Err(_) => self.tokens.remove(digest.as_ref()),
        }
        verdict.map(|()| Arc::clone(proof.caller()))
    }

    /// Says why a credential is good or not, and what it would stand for: to someone with the
    /// permission to ask, which whoever sent it need not have. The verdict is that of
    /// [`verify`](Self::verify).
    ///
    /// # Errors
    ///
    /// [`Rejection::NotReady`] alone.
    pub fn explain(
        &self,
        credential: &str,
        audience: Option<&str>,
    ) -> Result<Explanation, Rejection> {
        let rejection = self.verify(credential, audience).err();
        let state = self.state().ok_or(Rejection::NotReady)?;
        let now = self.clock.now();
        Ok(Explanation::of(credential, rejection, &state, now))
    }

    /// How often a token's signature had been checked before, and how many tokens are remembered.
    pub fn cache_counts(&self) -> CacheCounts {
        self.tokens.counts()
    }

    /// Decides whether a credential that was good is so still: for work that outlives one decision,
    /// such as a stream. Much cheaper than [`verify`](Self::verify), as no signature is checked again.
    ///
    /// # Errors
    ///
    /// Why it is not: expired, revoked, its key gone, or (an API key) changed in what it may do.
    pub fn recheck(&self, caller: &Caller) -> Result<(), Rejection> {
        let state = self.state.load();
        let state = state.as_deref().ok_or(Rejection::NotReady)?;
        let now = self.clock.now();
        match &caller.credential {
            Credential::AccessToken { key_id, .. } => {
                trusted_key(state, key_id)?;
                check_expiry(caller, now, self.leeway)?;
                check_revocations(state, caller)
            }
            Credential::ApiKey { hash, .. } => {
                let known = state.api_keys.caller(*hash, now)?;
                if known.scopes != caller.scopes || known.audience != caller.audience {
                    return Err(Rejection::ScopesChanged);
                }
                Ok(())
            }
            Credential::Certificate => check_expiry(caller, now, SignedDuration::ZERO),
        }
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
