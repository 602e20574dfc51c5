//! Idempotency (AIP-155): the same `request_id` with the same body has its
//! effect once and gets the first answer again, for 24 hours.

use std::fmt;

use jiff::SignedDuration;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Core, authority};
use crate::{
    domain::{Call, UserId},
    error::{Error, Reason, Result},
    store::{Conn, idempotency},
};

/// How long an answer is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// What the wire knows of a request that may be repeated.
pub struct Repeatable<T> {
    /// The RPC's name.
    pub method: &'static str,
    /// The caller's id for the request; none means that it is not repeated.
    pub request_id: Option<Uuid>,
    /// The whole request in one form.
    pub body: Zeroizing<Vec<u8>>,
    /// Writes the answer that a repetition gets.
    pub encode: fn(&T) -> Vec<u8>,
}

/// The answer may hold personal data.
impl<T> fmt::Debug for Made<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now(…)",
            Self::Before(_) => "Before(…)",
        })
    }
}

/// The body may hold a password.
impl<T> fmt::Debug for Repeatable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repeatable")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl<T> Repeatable<T> {
    /// A request that is not repeated.
    pub fn once() -> Self {
        Self {
            method: "",
            request_id: None,
            body: Zeroizing::default(),
            encode: |_| Vec::new(),
        }
    }
}

/// The answer to a request that may be repeated.
pub enum Made<T> {
    /// It had its effect now.
    Now(T),
    /// It had its effect before; this is the answer it got, as it was encoded.
    Before(Vec<u8>),
}

/// A request id that was not seen before, ready to be claimed.
pub(super) struct Claim<T> {
    method: &'static str,
    key: Option<(Uuid, Zeroizing<Vec<u8>>)>,
    encode: fn(&T) -> Vec<u8>,
}

/// Looks for an earlier answer; comes before anything that costs.
pub(super) async fn earlier<T>(
    core: &Core,
    call: &Call,
    request: Repeatable<T>,
) -> Result<Result<Claim<T>, Vec<u8>>> {
    let Repeatable {
        method,
        request_id,
        body,
        encode,
    } = request;
    let Some(request_id) = request_id else {
        return Ok(Ok(Claim {
            method,
            key: None,
            encode,
        }));
    };
    let claim = Claim {
        method,
        key: Some((request_id, body)),
        encode,
    };
    let mut conn = core.store.read(call).await?;
    match claim.answer(core, call, &mut conn).await? {
        Some(reply) => Ok(Err(reply)),
        None => Ok(Ok(claim)),
    }
}

impl<T> Claim<T> {
    /// Writes the answer in the effect's transaction, before the effect. False
    /// if a racing call has done so: end the transaction and read its answer.
    /// `subject` is the account that the answer names, with which it is erased.
    pub(super) async fn take(
        &self,
        core: &Core,
        call: &Call,
        tx: &mut Conn,
        made: &T,
        subject: Option<UserId>,
    ) -> Result<bool> {
        let Some((request_id, body)) = &self.key else {
            return Ok(true);
        };
        let (keys, now) = (core.keyring.keys()?, core.clock.now());
        let body_mac = keys.request.body_mac(now, self.method, body);
        let expires_at = now + KEPT;
        let record = idempotency::NewRecord {
            method: self.method,
            caller: authority::caller_id(call),
            request_id: *request_id,
            body_mac: &body_mac,
            reply: &(self.encode)(made),
            subject,
            expires_at,
        };
        idempotency::insert(tx, &record).await
    }

    /// The answer of the call that won the race.
    pub(super) async fn winner(&self, core: &Core, call: &Call) -> Result<Vec<u8>> {
        let mut conn = core.store.read(call).await?;
        self.answer(core, call, &mut conn)
            .await?
            .ok_or_else(|| Error::internal("a request id was taken and its answer is not there"))
    }

    async fn answer(&self, core: &Core, call: &Call, conn: &mut Conn) -> Result<Option<Vec<u8>>> {
        let Some((request_id, body)) = &self.key else {
            return Ok(None);
        };
        let keys = core.keyring.keys()?;
        let now = core.clock.now();
        let caller = authority::caller_id(call);
        let found = idempotency::find(conn, self.method, caller, *request_id, now).await?;
        match found {
            Some(record)
                if keys
                    .request
                    .is_body_mac(self.method, body, &record.body_mac) =>
            {
                if record.reply.is_empty() {
                    // What it was about has been erased.
                    return Err(Reason::UserNotFound.into());
                }
                Ok(Some(record.reply))
            }
            Some(_) => Err(Reason::RequestIdReused.into()),
            None => Ok(None),
        }
    }
}
