//! Audit events.

use countersign_proto::v1;
use prost::Message;
use uuid::Uuid;

use super::{complete, moment, page, timestamp};
use crate::{
    domain::{
        Invalid, Violations,
        audit::{Checkpoint, EventFilter, Outcome, StoredEvent},
    },
    error::Result,
    service::{audit::read::Shown, page::PageRequest},
};

pub(in crate::grpc) fn list_events(m: v1::ListEventsRequest) -> Result<(EventFilter, PageRequest)> {
    let mut v = Violations::default();
    let wish = m.filter.unwrap_or_default();
    let scope = [b"events:".as_slice(), &wish.encode_to_vec()].concat();
    let page = page(&mut v, m.page_size, m.page_token, scope);
    let outcome = match v1::AuditOutcome::try_from(wish.outcome) {
        Ok(v1::AuditOutcome::Unspecified) => None,
        Ok(v1::AuditOutcome::Success) => Some(Outcome::Success),
        Ok(v1::AuditOutcome::Failure) => Some(Outcome::Failure),
        Err(_) => {
            let reason = Invalid::new("is no outcome that is known here");
            v.add("filter.outcome", reason);
            None
        }
    };
    let filter = EventFilter {
        actor: v.parse_optional("filter.actor_id", &wish.actor_id),
        subject: v.parse_optional("filter.subject_id", &wish.subject_id),
        session_id: v.parse_optional("filter.session_id", &wish.session_id),
        action: v.parse_optional("filter.action", &wish.action),
        outcome,
        from: v
            .check("filter.event_from", moment(wish.event_from))
            .flatten(),
        before: v
            .check("filter.event_before", moment(wish.event_before))
            .flatten(),
    };
    v.finish()?;
    Ok((filter, complete(page)?))
}

pub(in crate::grpc) fn verify_log(m: v1::VerifyLogRequest) -> Result<(i64, Option<Checkpoint>)> {
    let mut v = Violations::default();
    if m.after_batch < 0 {
        v.add("after_batch", Invalid::new("must not be negative"));
    }
    let anchor = v.parse_optional("anchor", &m.anchor);
    v.finish()?;
    Ok((m.after_batch, anchor))
}

pub(in crate::grpc) fn audit_event(shown: Shown) -> v1::AuditEvent {
    let StoredEvent {
        record,
        position,
        origin,
        ..
    } = shown.event;
    let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let outcome = match record.outcome.as_str() {
        name if name == Outcome::Success.as_str() => v1::AuditOutcome::Success,
        name if name == Outcome::Failure.as_str() => v1::AuditOutcome::Failure,
        _ => v1::AuditOutcome::Unspecified,
    };
    let (address, user_agent) = match origin {
        Some((_, origin)) => (origin.address.unwrap_or_default(), origin.user_agent),
        None => Default::default(),
    };
    v1::AuditEvent {
        event_id: record.id.to_string(),
        event_time: Some(timestamp(record.at)),
        action: record.action,
        outcome: outcome.into(),
        actor_id: id(record.actor),
        workload: record.workload.unwrap_or_default(),
        subject_id: id(record.subject),
        session_id: id(record.session_id),
        role_id: id(record.role_id),
        api_key_id: id(record.api_key_id),
        kid: record.kid.unwrap_or_default(),
        correlation_id: record.correlation_id,
        address,
        user_agent,
        position: position.unwrap_or_default().max(0),
        authentic: shown.is_authentic,
        represents: record.represents,
    }
}
