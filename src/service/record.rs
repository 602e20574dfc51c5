//! Audit events, made from the call that causes them, sealed and stored.

use crate::{
    crypto::AuditKeys,
    domain::{
        ApiKeyId, AuditEvent, Call, RoleId, SessionId, UserId,
        audit::{Action, Outcome},
        id,
    },
    error::Result,
    service::{Core, audit::sample::Read, authority},
    store::{Conn, audit, keys},
};

/// An event of this call, which ended as asked unless said otherwise.
pub(super) fn event(core: &Core, call: &Call, action: Action) -> AuditEvent {
    let now = core.clock.now();
    AuditEvent {
        id: id::uuid_v7(now, &*core.entropy),
        at: now,
        action,
        outcome: Outcome::Success,
        actor: call.user_id(),
        workload: call.workload.clone(),
        subject: None,
        session_id: call.session_id(),
        role_id: None,
        api_key_id: call.api_key_id(),
        kid: None,
        correlation_id: call.correlation_id.to_string(),
        address: call.peer.address,
        user_agent: call.user_agent.clone(),
        represents: 1,
    }
}

/// Records an event. Call it in the transaction of what it tells of.
pub(super) async fn insert(core: &Core, tx: &mut Conn, event: &AuditEvent) -> Result<()> {
    if let Ok(keys) = core.keyring.keys() {
        return insert_under(&keys.audit, core, tx, event).await;
    }
    // Commands load none: one that was altered must not be in their way.
    let secrets = keys::secret_keys(tx).await?;
    let keys = AuditKeys::open(&secrets, core.keyring.sealer())?;
    insert_under(&keys, core, tx, event).await
}

/// Records a failure that anybody can cause at will, with what `work` writes; a
/// flood of them is counted only. `work` says whether there is anything to record.
pub(super) async fn failure(
    core: &Core,
    call: &Call,
    event: AuditEvent,
    work: impl AsyncFnOnce(&mut Conn) -> Result<bool>,
) -> Result<()> {
    let is_recorded = core.sampler.records(event.action, core.clock.monotonic());
    let written = core
        .store
        .write(call, async |tx| {
            let happened = work(tx).await?;
            if happened && is_recorded {
                insert(core, tx, &event).await?;
            }
            Ok(happened)
        })
        .await?;
    if written.value && !is_recorded {
        leave_out(core, event);
    }
    Ok(())
}

/// Counts an event that is not recorded by itself.
pub(super) fn leave_out(core: &Core, event: AuditEvent) {
    let action = event.action.as_str();
    metrics::counter!("countersign_audit_left_out_total", "action" => action).increment(1);
    core.sampler.leave_out(event, &*core.entropy);
}

/// Records that the caller reads what is another's. Call it before the answer: what
/// cannot be recorded is not shown. The process itself reads for nobody.
pub(super) async fn reading(
    core: &Core,
    call: &Call,
    action: Action,
    subject: Option<UserId>,
) -> Result<()> {
    reading_each(core, call, action, [subject]).await
}

/// The same of several, a record for each.
pub(super) async fn reading_each(
    core: &Core,
    call: &Call,
    action: Action,
    subjects: impl IntoIterator<Item = Option<UserId>>,
) -> Result<()> {
    let Some(caller) = authority::caller_id(call) else {
        return Ok(());
    };
    let (api_key, now) = (call.api_key_id(), core.clock.monotonic());
    let reads = subjects.into_iter().map(|subject| Read {
        caller,
        api_key,
        action,
        subject,
    });
    let reads: Vec<Read> = reads
        .filter(|read| core.sampler.is_new(read, now))
        .collect();
    if reads.is_empty() {
        return Ok(());
    }
    let write = async |tx: &mut Conn| {
        for read in &reads {
            let mut event = event(core, call, action);
            event.subject = read.subject;
            insert(core, tx, &event).await?;
        }
        Ok(())
    };
    core.store.write(call, write).await?;
    for read in reads {
        core.sampler.recorded(read, now);
    }
    Ok(())
}

/// The same as [`insert`], under the keys that there will be.
pub(super) async fn insert_under(
    keys: &AuditKeys,
    core: &Core,
    tx: &mut Conn,
    event: &AuditEvent,
) -> Result<()> {
    audit::insert(tx, keys.seal(event, core.entropy.array())).await
}

impl AuditEvent {
    pub(super) fn failed(mut self) -> Self {
        self.outcome = Outcome::Failure;
        self
    }

    pub(super) fn about(mut self, subject: UserId) -> Self {
        self.subject = Some(subject);
        self
    }

    pub(super) fn by(mut self, actor: UserId) -> Self {
        self.actor = Some(actor);
        self
    }

    pub(super) fn session(mut self, session_id: SessionId) -> Self {
        self.session_id = Some(session_id);
        self
    }

    pub(super) fn api_key(mut self, api_key_id: ApiKeyId) -> Self {
        self.api_key_id = Some(api_key_id);
        self
    }

    pub(super) fn key(mut self, kid: &str) -> Self {
        self.kid = Some(kid.to_owned());
        self
    }

    pub(super) fn role(mut self, role_id: RoleId) -> Self {
        self.role_id = Some(role_id);
        self
    }
}
