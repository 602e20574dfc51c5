//! Why a credential is good or not, for someone with the permission to ask.
//!
//! What is said of the contents of a token is what its signature proves and nothing else: of a
//! forged one nothing is shown, and the reason says no more than that it is one.

use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::proof::Proof;
use crate::{ApiKeyHash, Caller, Credential, Rejection, TrustState};

/// What there is to say of a credential. It carries nothing of the credential itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Why it is refused; none if it is good. The first reason, if there are several, in the order
    /// in which a verifier asks.
    pub rejection: Option<Rejection>,
    /// Whom it speaks for, or would: once its signature was found good, or it was found among the
    /// API keys.
    pub caller: Option<Arc<Caller>>,
    /// The claim `iss`, likewise.
    pub issuer: Option<String>,
    /// The claim `nbf`, likewise.
    pub not_before: Option<Timestamp>,
    /// For how long it has been too late, or will be too early. The leeway is not in it.
    pub off_by: Option<SignedDuration>,
    /// The least epoch that the user's tokens must have, if it lacks that.
    pub min_epoch: Option<i64>,
}

impl Explanation {
    /// Puts beside a verdict what is known of the credential.
    pub(crate) fn of(
        credential: &str,
        rejection: Option<Rejection>,
        state: &TrustState,
        now: Timestamp,
    ) -> Self {
        // An API key is no token, so it proves nothing here.
        let proof = Proof::of(credential, state).ok();
        let caller = match &proof {
            Some(proof) => Some(Arc::clone(proof.caller())),
            None => ApiKeyHash::of(credential).and_then(|hash| state.api_keys.known(hash).cloned()),
        };
        let not_before = proof.as_ref().map(Proof::not_before);
        let off_by = caller.as_ref().and_then(|caller| match rejection? {
            Rejection::Expired => Some(now.duration_since(caller.expires_at?)),
            Rejection::NotYetValid => Some(not_before?.duration_since(now)),
            Rejection::IssuedInFuture => Some(caller.issued_at.duration_since(now)),
            _ => None,
        });
        let user_id = caller.as_ref().and_then(|caller| caller.user_id());
        let min_epoch = user_id.and_then(|user_id| state.revocations.min_epoch(user_id));
        Self {
            min_epoch: min_epoch.filter(|_| rejection == Some(Rejection::UserRevoked)),
            rejection,
            caller,
            issuer: proof.map(Proof::into_issuer),
            not_before,
            off_by,
        }
    }

    fn epoch(&self) -> Option<i64> {
        match self.caller.as_ref()?.credential {
            Credential::AccessToken { epoch, .. } => Some(epoch),
            Credential::ApiKey { .. } | Credential::Certificate => None,
        }
    }

    fn by(&self, f: &mut fmt::Formatter<'_>, how: &str) -> fmt::Result {
        match self.off_by {
            Some(off_by) => write!(f, ", {} seconds {how}", off_by.as_secs()),
            None => Ok(()),
        }
    }
}

/// A sentence for people.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rejection) = self.rejection else {
            return f.write_str("the credential is good");
        };
        write!(f, "{rejection}")?;
        match rejection {
            Rejection::UnknownKey => {
                f.write_str(": it is another issuer's, was taken away, or is not known here yet")
            }
            Rejection::Signature => f.write_str(": the token was forged or altered"),
            Rejection::UnknownApiKey => f.write_str(
                ": there never was one, it was revoked or has ended, or its owner is gone",
            ),
            Rejection::SessionRevoked => f.write_str(
                ": somebody has logged out or ended it, or its refresh token was presented twice",
            ),
            Rejection::UserRevoked => {
                f.write_str(
                    ": since then the account was disabled or deleted, or its password or roles \
                     have changed",
                )?;
                match (self.epoch(), self.min_epoch) {
                    (Some(epoch), Some(min)) => {
                        write!(f, " (its epoch is {epoch}, the least {min})")
                    }
                    _ => Ok(()),
                }
            }
            Rejection::Expired => self.by(f, "ago"),
            Rejection::NotYetValid | Rejection::IssuedInFuture => self.by(f, "too early"),
            _ => Ok(()),
        }
    }
}
