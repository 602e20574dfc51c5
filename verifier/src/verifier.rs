//! The decision: is this token good, by what is known now?
//!
//! The order is from cheap to dear, and nothing in a token is believed before its signature: form,
//! key, signature, claims, revocation. No I/O, no lock on the way of a decision, no cache of verdicts.
//!
//! It does not fetch its knowledge. A feed hands it states and tells it when it has heard that there
//! is nothing newer; from that the verifier knows its own staleness. What to do about staleness is
//! the caller's choice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};

use crate::token::Token;
use crate::{Caller, CallerKind, Claims, Clock, Rejection, TrustState};

/// How strict a verifier is where the standards leave a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How far this machine's clock may be off when it looks at `exp`, `nbf` and `iat`. 5 seconds by
    /// default: clocks kept by NTP differ by much less. Counts as [`Policy::MAX_LEEWAY`] if larger.
    pub leeway: Duration,
}

/// Decides whether tokens are good, by the trust state that it was last given.
#[derive(Debug)]
pub struct Verifier {
    state: ArcSwapOption<TrustState>,
    /// Held while a state is made and put in place, so that no change is lost. Readers never take it.
    writer: Mutex<()>,
    /// Nanoseconds of the monotonic clock at which the state was last known to be the newest.
    known_as_of: AtomicU64,
    clock: Arc<dyn Clock>,
    leeway: SignedDuration,
}

impl Policy {
    /// The most that `leeway` can be: 30 seconds.
    pub const MAX_LEEWAY: Duration = Duration::from_secs(30);
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            leeway: Duration::from_secs(5),
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
            known_as_of: AtomicU64::new(0),
            clock,
            leeway: SignedDuration::try_from(leeway).unwrap_or_default(),
        }
    }

    /// Puts a state in place of whatever was there. The first one counts as heard now; after that only
    /// [`heard`](Self::heard) resets the staleness.
    pub fn replace(&self, state: TrustState) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.load().is_none() {
            self.heard();
        }
        self.state.store(Some(Arc::new(state)));
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
        let nanoseconds = u64::try_from(instant.as_nanos()).unwrap_or(u64::MAX);
        self.known_as_of.fetch_max(nanoseconds, Ordering::Relaxed);
    }

    /// How old the state's knowledge is; `None` before the first state.
    pub fn staleness(&self) -> Option<Duration> {
        self.state.load().as_ref()?;
        let known_as_of = Duration::from_nanos(self.known_as_of.load(Ordering::Relaxed));
        Some(self.clock.monotonic().saturating_sub(known_as_of))
    }

    /// The state that decisions are made by; `None` before the first.
    pub fn state(&self) -> Option<Arc<TrustState>> {
        self.state.load_full()
    }

    /// Number of the last trust log entry that decisions are made by; `None` before the first state.
    pub fn applied_seq(&self) -> Option<i64> {
        self.state.load().as_ref().map(|state| state.seq)
    }

    /// Decides whether an access token is good, and says whom it speaks for.
    ///
    /// Its `aud` must contain `audience` exactly; without one, any of the configured audiences.
    ///
    /// # Errors
    ///
    /// The exact [`Rejection`], which the sender of the token must not learn.
    pub fn verify(&self, token: &str, audience: Option<&str>) -> Result<Caller, Rejection> {
        let state = self.state.load();
        let state = state.as_deref().ok_or(Rejection::NotReady)?;
        let claims = authentic_claims(state, token)?;
        self.check_claims(state, &claims, audience)?;
        check_revocations(state, &claims)?;
        caller(claims)
    }

    fn check_claims(
        &self,
        state: &TrustState,
        claims: &Claims,
        audience: Option<&str>,
    ) -> Result<(), Rejection> {
        if claims.iss != state.issuer {
            return Err(Rejection::Issuer);
        }
        let meant_for_us = match audience {
            Some(audience) => claims.aud.iter().any(|meant| meant == audience),
            None => claims
                .aud
                .iter()
                .any(|meant| state.audiences.contains(meant)),
        };
        if !meant_for_us {
            return Err(Rejection::Audience);
        }
        let now = self.clock.now();
        // "On or after" exp it must not be accepted (RFC 7519, section 4.1.4).
        if now.duration_since(timestamp(claims.exp)?) >= self.leeway {
            return Err(Rejection::Expired);
        }
        if timestamp(claims.nbf)?.duration_since(now) > self.leeway {
            return Err(Rejection::NotYetValid);
        }
        if timestamp(claims.iat)?.duration_since(now) > self.leeway {
            return Err(Rejection::IssuedInFuture);
        }
        Ok(())
    }
}

/// The claims of a token, once its signature says that they are ours.
fn authentic_claims(state: &TrustState, token: &str) -> Result<Claims, Rejection> {
    let token = Token::parse(token)?;
    if state.revocations.is_key_revoked(&token.kid) {
        return Err(Rejection::KeyRevoked);
    }
    let key = state.keys.get(&token.kid).ok_or(Rejection::UnknownKey)?;
    if token.algorithm != key.algorithm().name() {
        return Err(Rejection::Algorithm);
    }
    if !key.verifies(token.signed, &token.signature) {
        return Err(Rejection::Signature);
    }
    serde_json::from_slice(&token.claims).map_err(|_| Rejection::Malformed("claims"))
}

fn check_revocations(state: &TrustState, claims: &Claims) -> Result<(), Rejection> {
    if state.revocations.is_session_revoked(claims.sid) {
        return Err(Rejection::SessionRevoked);
    }
    match state.revocations.min_epoch(claims.sub) {
        Some(min_epoch) if claims.epoch < min_epoch => Err(Rejection::UserRevoked),
        _ => Ok(()),
    }
}

fn caller(claims: Claims) -> Result<Caller, Rejection> {
    Ok(Caller {
        subject: claims.sub,
        kind: CallerKind::User,
        session_id: claims.sid,
        client_id: claims.client_id,
        roles: claims.roles,
        scopes: claims
            .scope
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        audience: claims.aud,
        issued_at: timestamp(claims.iat)?,
        expires_at: timestamp(claims.exp)?,
        auth_methods: claims.amr,
        authenticated_at: timestamp(claims.auth_time)?,
        epoch: claims.epoch,
        token_id: claims.jti,
    })
}

/// An integer so large that no calendar has it is a malformed claim.
fn timestamp(seconds: i64) -> Result<Timestamp, Rejection> {
    Timestamp::from_second(seconds).map_err(|_| Rejection::Malformed("claims"))
}
