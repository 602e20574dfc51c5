//! How queries fail: which failures are the database's, which are those of the
//! query, and which mean only that somebody else was in the way.

use diesel::result::{DatabaseErrorKind as Kind, Error as Diesel};

use super::health::Health;
use crate::error::{Error, Result};

/// How a query failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no such row.
    NotFound,
    /// Another row has the same key.
    Conflict,
    /// A row that this one points at is missing, or one that is deleted is
    /// pointed at.
    Reference,
    /// The statement was refused and has had no effect.
    Refused(Error),
    /// No answer that can be relied on: what was sent may have been done.
    Lost(Error),
}

/// Messages of a database that works and in which somebody else was in the way.
const BUSY: [&str; 3] = [
    "is locked",
    "canceling statement due to lock timeout",
    "deadlock detected",
];

/// Messages of a database that does not work, or is another one by now.
const LOST: [&str; 7] = [
    "canceling statement due to statement timeout",
    "terminating connection",
    "the database system is",
    "during recovery",
    "Input/output error",
    "disk I/O error",
    "unable to open database file",
];

/// What a query's outcome is turned into.
pub(super) trait Outcome<T> {
    /// No row is `None`.
    fn optional(self) -> Result<Option<T>>;
    /// A key that another row has is `None`. A transaction is over by then.
    fn unless_conflict(self) -> Result<Option<T>>;
}

impl<T> Outcome<T> for Result<T, Failure> {
    fn optional(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    fn unless_conflict(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(Failure::Conflict) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }
}

impl Failure {
    pub(super) fn closed() -> Self {
        Self::Lost(Error::internal("a query on a connection that was given up"))
    }

    /// Which failures are the database's, and which the query's.
    pub(super) fn of(error: Diesel, health: &Health) -> Self {
        let Diesel::DatabaseError(kind, ref information) = error else {
            return match error {
                Diesel::NotFound => Self::NotFound,
                other => Self::Refused(Error::internal(other)),
            };
        };
        let message = information.message();
        match kind {
            Kind::UniqueViolation => Self::Conflict,
            Kind::ForeignKeyViolation => Self::Reference,
            Kind::SerializationFailure => Self::Refused(Health::busy().because(error)),
            Kind::ClosedConnection | Kind::UnableToSendCommand => {
                Self::Lost(health.unavailable().because(error))
            }
            // Codes that diesel does not know by name come without their code.
            Kind::Unknown if says(message, &BUSY) => Self::Refused(Health::busy().because(error)),
            Kind::Unknown if says(message, &LOST) => {
                Self::Lost(health.unavailable().because(error))
            }
            // It has answered, and the same query would fail again.
            _ => Self::Refused(Error::internal(error)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound => Self::internal("a row that must be there is missing"),
            Failure::Conflict => Self::internal("a key is taken already"),
            Failure::Reference => Self::internal("a reference is broken"),
            Failure::Refused(error) | Failure::Lost(error) => error,
        }
    }
}

fn says(message: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| message.contains(part))
}
