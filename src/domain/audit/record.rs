//! Events as they are kept. What a MAC covers is what is stored, texts and all:
//! a record that somebody has altered need not be a legal event, and an older
//! program meets actions that it does not know.

use jiff::Timestamp;
use uuid::Uuid;

use super::AuditEvent;

/// The columns of an event that its MAC covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// UUID of version 7.
    pub id: Uuid,
    /// When, in microseconds.
    pub at: Timestamp,
    /// The action's name.
    pub action: String,
    /// `success` or `failure`.
    pub outcome: String,
    /// The user who did it.
    pub actor: Option<Uuid>,
    /// The workload that did it, or through which the user came.
    pub workload: Option<String>,
    /// The account concerned.
    pub subject: Option<Uuid>,
    /// The session concerned.
    pub session_id: Option<Uuid>,
    /// The role concerned.
    pub role_id: Option<Uuid>,
    /// The API key concerned, else the one by which it was done.
    pub api_key_id: Option<Uuid>,
    /// The signing key concerned.
    pub kid: Option<String>,
    /// Finds the call in the log.
    pub correlation_id: String,
    /// Digest of the origin; none if there never was one.
    pub origin_digest: Option<Vec<u8>>,
    /// How many events it stands for.
    pub represents: i64,
}

/// Where the call came from, kept apart. The digest in the record binds it; with
/// the salt gone the digest says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Random; without it nobody finds the rest by trying.
    pub salt: Vec<u8>,
    /// The client's address.
    pub address: Option<String>,
    /// What the call said it was.
    pub user_agent: String,
}

/// What proves that we wrote a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Which key the MAC is under.
    pub key_id: i32,
    /// Over the whole record.
    pub mac: Vec<u8>,
}

/// An event that can be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedEvent {
    /// What is covered.
    pub record: Record,
    /// Where it came from, if that is known.
    pub origin: Option<Origin>,
    /// What covers it.
    pub seal: Seal,
}

/// An event as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// What is covered.
    pub record: Record,
    /// None if it was recorded before there were any.
    pub seal: Option<Seal>,
    /// Its place in the chain; none until the chain has come to it.
    pub position: Option<i64>,
    /// Binds it to all before it.
    pub link: Option<Vec<u8>>,
    /// Whose origin, and the origin; none if it is erased or never was.
    pub origin: Option<(Option<Uuid>, Origin)>,
}

impl Record {
    /// The record of an event, as yet without its origin.
    pub fn of(event: &AuditEvent) -> Self {
        Self {
            id: event.id,
            at: event.at,
            action: event.action.as_str().to_owned(),
            outcome: event.outcome.as_str().to_owned(),
            actor: event.actor.map(|id| id.0),
            workload: event.workload.as_deref().map(str::to_owned),
            subject: event.subject.map(|id| id.0),
            session_id: event.session_id.map(|id| id.0),
            role_id: event.role_id.map(|id| id.0),
            api_key_id: event.api_key_id.map(|id| id.0),
            kid: event.kid.clone(),
            correlation_id: event.correlation_id.clone(),
            origin_digest: None,
            represents: event.represents,
        }
    }

    /// Whose address and user agent its origin holds, as far as that is known.
    pub fn person(&self) -> Option<Uuid> {
        self.actor.or(self.subject)
    }
}
