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
use crate::{
    API_KEY_PREFIX, ApiKeyHash, Caller, Claims, Clock, Credential, Rejection, Subject, TrustState,
};

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

    /// Decides whether an access token or an API key is good, and says whom it speaks for.
    ///
    /// It must be meant for `audience` exactly; without one, for any of the configured audiences.
    ///
    /// # Errors
    ///
    /// The exact [`Rejection`], which the sender of the credential must not learn.
    pub fn verify(&self, credential: &str, audience: Option<&str>) -> Result<Caller, Rejection> {
        let state = self.state.load();
        let state = state.as_deref().ok_or(Rejection::NotReady)?;
        if credential.starts_with(API_KEY_PREFIX) {
            let hash = ApiKeyHash::of(credential).ok_or(Rejection::Malformed("api key"))?;
            let caller = state.api_keys.caller(hash, self.clock.now())?;
            check_audience(state, &caller.audience, audience)?;
            return Ok(caller);
        }
        let (claims, key_id) = authentic_claims(state, credential)?;
        self.check_claims(state, &claims)?;
        check_audience(state, &claims.aud, audience)?;
        let caller = caller(claims, key_id)?;
        check_revocations(state, &caller)?;
        Ok(caller)
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
                if state.keys.get(key_id).is_none() {
                    return Err(Rejection::UnknownKey);
                }
                check_expiry(caller, now, self.leeway)?;
                check_revocations(state, caller)
            }
            Credential::ApiKey { hash, .. } => {
                let known = state.api_keys.caller(*hash, now)?;
                if known.scopes != caller.scopes {
                    return Err(Rejection::ScopesChanged);
                }
                Ok(())
            }
            Credential::Certificate => check_expiry(caller, now, SignedDuration::ZERO),
        }
    }

    fn check_claims(&self, state: &TrustState, claims: &Claims) -> Result<(), Rejection> {
        if claims.iss != state.issuer {
            return Err(Rejection::Issuer);
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
fn authentic_claims(state: &TrustState, token: &str) -> Result<(Claims, String), Rejection> {
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
    let claims = serde_json::from_slice(&token.claims);
    let claims = claims.map_err(|_| Rejection::Malformed("claims"))?;
    Ok((claims, token.kid))
}

fn check_expiry(caller: &Caller, now: Timestamp, leeway: SignedDuration) -> Result<(), Rejection> {
    match caller.expires_at {
        Some(expires_at) if now.duration_since(expires_at) >= leeway => Err(Rejection::Expired),
        _ => Ok(()),
    }
}

fn check_audience(
    state: &TrustState,
    meant_for: &[String],
    audience: Option<&str>,
) -> Result<(), Rejection> {
    let meant_for_us = match audience {
        Some(audience) => meant_for.iter().any(|meant| meant == audience),
        None => meant_for
            .iter()
            .any(|meant| state.audiences.contains(meant)),
    };
    if meant_for_us {
        Ok(())
    } else {
        Err(Rejection::Audience)
    }
}

fn check_revocations(state: &TrustState, caller: &Caller) -> Result<(), Rejection> {
    let (
        Some(user_id),
        Credential::AccessToken {
            session_id,
            key_id,
            epoch,
            ..
        },
    ) = (caller.user_id(), &caller.credential)
    else {
        return Ok(());
    };
    if state.revocations.is_key_revoked(key_id) {
        return Err(Rejection::KeyRevoked);
    }
    if state.revocations.is_session_revoked(*session_id) {
        return Err(Rejection::SessionRevoked);
    }
    match state.revocations.min_epoch(user_id) {
        Some(min_epoch) if *epoch < min_epoch => Err(Rejection::UserRevoked),
        _ => Ok(()),
    }
}

fn caller(claims: Claims, key_id: String) -> Result<Caller, Rejection> {
    Ok(Caller {
        subject: Subject::User(claims.sub),
        credential: Credential::AccessToken {
            session_id: claims.sid,
            token_id: claims.jti,
            key_id,
            epoch: claims.epoch,
            auth_methods: claims.amr,
            authenticated_at: timestamp(claims.auth_time)?,
        },
        client_id: claims.client_id,
        roles: claims.roles,
        scopes: claims
            .scope
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        audience: claims.aud,
        issued_at: timestamp(claims.iat)?,
        expires_at: Some(timestamp(claims.exp)?),
    })
}

/// An integer so large that no calendar has it is a malformed claim.
fn timestamp(seconds: i64) -> Result<Timestamp, Rejection> {
    Timestamp::from_second(seconds).map_err(|_| Rejection::Malformed("claims"))
}
