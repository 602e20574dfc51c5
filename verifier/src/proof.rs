//! A decision in its two halves: what a signature proves, which stays true for as long as its key is
//! trusted, and whether that is good enough now, which is asked at every decision.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::token::{Header, Token};
use crate::{Caller, Claims, Credential, PublicKey, Rejection, Subject, TrustState};

/// What a good signature proved.
#[derive(Debug)]
pub(crate) struct Proof {
    caller: Arc<Caller>,
    /// `iss`.
    issuer: String,
    /// `nbf`.
    not_before: Timestamp,
    /// What the signature was checked with.
    key: Arc<PublicKey>,
}

impl Proof {
    /// Checks form, key and signature. Nothing in a token is believed before.
    pub(crate) fn of(token: &str, state: &TrustState) -> Result<Self, Rejection> {
        let token = Token::parse(token)?;
        let key = match state.keys.with_header(token.header) {
            // The header is as the issuer writes it for this key: there is nothing to read in it.
            Some(key) => trusted_key(state, key.kid())?,
            None => named_key(state, &Header::parse(token.header)?)?,
        };
        Self::from_claims(token.verified_by(key)?, Arc::clone(key))
    }

    fn from_claims(claims: Claims, key: Arc<PublicKey>) -> Result<Self, Rejection> {
        let scopes = claims.scope.split_ascii_whitespace();
        let caller = Caller {
            subject: Subject::User(claims.sub),
            credential: Credential::AccessToken {
                session_id: claims.sid,
                token_id: claims.jti,
                key_id: key.kid().to_owned(),
                epoch: claims.epoch,
                auth_methods: claims.amr,
                authenticated_at: timestamp(claims.auth_time)?,
            },
            client_id: claims.client_id,
            roles: claims.roles,
            scopes: scopes.map(str::to_owned).collect(),
            audience: claims.aud,
            issued_at: timestamp(claims.iat)?,
            expires_at: Some(timestamp(claims.exp)?),
        };
        Ok(Self {
            caller: Arc::new(caller),
            issuer: claims.iss,
            not_before: timestamp(claims.nbf)?,
            key,
        })
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    pub(crate) fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub(crate) fn into_issuer(self) -> String {
        self.issuer
    }

    /// Whether the key that gave this proof is trusted, and not just another one of the same id.
    pub(crate) fn holds(&self, state: &TrustState) -> bool {
        trusted_key(state, self.key.kid())
            .is_ok_and(|key| Arc::ptr_eq(key, &self.key) || key.is_same(&self.key))
    }

    /// Whether what was proved is good enough now.
    pub(crate) fn judge(
        &self,
        state: &TrustState,
        now: Timestamp,
        leeway: SignedDuration,
        audience: Option<&str>,
    ) -> Result<(), Rejection> {
        if self.issuer != state.issuer {
            return Err(Rejection::Issuer);
        }
        check_expiry(&self.caller, now, leeway)?;
        if self.not_before.duration_since(now) > leeway {
            return Err(Rejection::NotYetValid);
        }
        if self.caller.issued_at.duration_since(now) > leeway {
            return Err(Rejection::IssuedInFuture);
        }
        check_audience(state, &self.caller.audience, audience)?;
        check_revocations(state, &self.caller)
    }
}

/// The key that a header names, if the header means that key's algorithm.
fn named_key<'a>(state: &'a TrustState, header: &Header) -> Result<&'a Arc<PublicKey>, Rejection> {
    let key = trusted_key(state, header.kid()?)?;
    if header.alg == key.algorithm().name() {
        Ok(key)
    } else {
        Err(Rejection::Algorithm)
    }
}

/// The key with this id, unless it is revoked.
pub(crate) fn trusted_key<'a>(
    state: &'a TrustState,
    kid: &str,
) -> Result<&'a Arc<PublicKey>, Rejection> {
    if state.revocations.is_key_revoked(kid) {
        return Err(Rejection::KeyRevoked);
    }
    state.keys.shared(kid).ok_or(Rejection::UnknownKey)
}

/// "On or after" `exp` a token must not be accepted (RFC 7519, section 4.1.4).
pub(crate) fn check_expiry(
    caller: &Caller,
    now: Timestamp,
    leeway: SignedDuration,
) -> Result<(), Rejection> {
    match caller.expires_at {
        Some(expires_at) if now.duration_since(expires_at) >= leeway => Err(Rejection::Expired),
        _ => Ok(()),
    }
}

/// Whether it is meant for `audience` exactly; without one, for any of the configured audiences.
pub(crate) fn check_audience(
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

/// Whether the session or the user has been revoked; only access tokens have a session.
pub(crate) fn check_revocations(state: &TrustState, caller: &Caller) -> Result<(), Rejection> {
    let (
        Some(user_id),
        Credential::AccessToken {
            session_id, epoch, ..
        },
    ) = (caller.user_id(), &caller.credential)
    else {
        return Ok(());
    };
    if state.revocations.is_session_revoked(*session_id) {
        return Err(Rejection::SessionRevoked);
    }
    match state.revocations.min_epoch(user_id) {
        Some(min_epoch) if *epoch < min_epoch => Err(Rejection::UserRevoked),
        _ => Ok(()),
    }
}

/// An integer so large that no calendar has it is a malformed claim.
fn timestamp(seconds: i64) -> Result<Timestamp, Rejection> {
    Timestamp::from_second(seconds).map_err(|_| Rejection::Malformed("claims"))
}
