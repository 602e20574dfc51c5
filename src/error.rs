//! The one error of the service, and the one place where it becomes a gRPC
//! status (AIP-193). Rooms behind the wire say what went wrong by a `Reason`;
//! code and details follow from it here. A cause (`source`) is for the log
//! only and never leaves the process.

use std::{borrow::Cow, collections::HashMap, error::Error as StdError, fmt, time::Duration};

pub use countersign_proto::v1::Reason;
use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::domain::{CorrelationId, Violations, violation::Violation};

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "countersign";

/// When to try again, where nothing is known that says more.
const RETRY: Duration = Duration::from_secs(1);

/// How the texts begin by which tonic and prost refuse what a caller sent. They
/// call it internal, but it is the caller's doing.
const MALFORMED: [&str; 6] = [
    "Missing request message",
    "Unexpected EOF decoding stream",
    "protocol error: received message with",
    "failed to decode Protobuf message",
    "Error decompressing",
    "Content is compressed with",
];

/// Tells a client's retry machinery when to come back (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

type Cause = Box<dyn StdError + Send + Sync>;

/// Why a call failed.
pub struct Error(Box<Parts>);

struct Parts {
    reason: Reason,
    message: Cow<'static, str>,
    violations: Violations,
    metadata: Vec<(&'static str, String)>,
    quota: Option<&'static str>,
    retry_after: Option<Duration>,
    cause: Option<Cause>,
}

/// The result of most things here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with the message that its reason usually has.
    pub fn new(reason: Reason) -> Self {
        Self(Box::new(Parts {
            reason,
            message: Cow::Borrowed(message(reason)),
            violations: Violations::default(),
            metadata: Vec::new(),
            quota: None,
            retry_after: matches!(
                reason,
                Reason::OutcomeUnknown | Reason::NotReady | Reason::TrustStale | Reason::FeedLagged
            )
            .then_some(RETRY),
            cause: None,
        }))
    }

    /// A fault of the service; the cause goes to the log.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::new(Reason::Internal).because(cause)
    }

    /// The caller lacks a permission.
    pub fn permission_denied(permission: &'static str) -> Self {
        let mut error = Self::new(Reason::PermissionDenied).with("permission", permission);
        error.0.message = format!("the caller lacks the permission {permission}").into();
        error
    }

    /// The credential is good, but of a kind that may not do this.
    pub fn kind_not_allowed(kind: &'static str) -> Self {
        Self::new(Reason::CredentialKindNotAllowed).with("kind", kind)
    }

    /// Something that the call needs does not answer.
    pub fn unavailable(dependency: &'static str, retry_after: Duration) -> Self {
        let mut error = Self::new(Reason::DependencyUnavailable)
            .with("dependency", dependency)
            .retry_after(retry_after);
        error.0.message = format!("the {dependency} does not answer; try again later").into();
        error
    }

    /// The node is starting or stopping.
    pub fn not_ready() -> Self {
        Self::new(Reason::NotReady)
    }

    /// The node has no room for this kind of work now.
    pub fn overloaded(retry_after: Duration) -> Self {
        Self::new(Reason::Overloaded).retry_after(retry_after)
    }

    /// Too many calls; `limit` names the limit for people.
    pub fn rate_limited(limit: &'static str, retry_after: Duration) -> Self {
        let mut error = Self::new(Reason::RateLimited).retry_after(retry_after);
        error.0.quota = Some(limit);
        error
    }

    /// Too many wrong passwords; the next one is looked at after so long. Whole
    /// seconds: whoever waits for less waits in vain.
    pub fn login_throttled(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1_000);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        Self::new(Reason::LoginThrottled).retry_after(Duration::from_secs(seconds))
    }

    /// A signing key is to be published for so long still, and so many nodes and
    /// validators do not know it.
    pub fn key_not_published(wait: Duration, nodes: usize, validators: u32) -> Self {
        // Whoever waits for less than a second waits in vain.
        let seconds = wait.as_millis().div_ceil(1_000);
        let mut error = Self::new(Reason::KeyNotPublished)
            .with("wait_seconds", seconds.to_string())
            .with("nodes", nodes.to_string())
            .with("validators", validators.to_string())
            .retry_after(wait.max(RETRY));
        error.0.message = format!(
            "not everybody may know the signing key yet: it is to be published for {seconds} more \
             seconds, {nodes} nodes and {validators} validators do not have it"
        )
        .into();
        error
    }

    /// One field breaks its rules.
    pub fn invalid(field: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Violations::one(field, reason).into()
    }

    /// Adds the cause, for the log only.
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Adds an entry to ErrorInfo's metadata.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.metadata.push((key, value.into()));
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// What went wrong.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// The gRPC code that goes with the reason.
    pub fn code(&self) -> Code {
        code(self.0.reason)
    }
}

/// The name of a reason on the wire: that of the enum without its prefix.
pub fn reason_name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

/// The gRPC code of each reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest | Reason::RequestIdReused | Reason::PageTokenInvalid => {
            Code::InvalidArgument
        }
        Reason::CredentialsMissing
        | Reason::TokenInvalid
        | Reason::LoginFailed
        | Reason::RefreshTokenInvalid => Code::Unauthenticated,
        Reason::PermissionDenied
        | Reason::CurrentPasswordIncorrect
        | Reason::TargetOutranksCaller
        | Reason::CredentialKindNotAllowed => Code::PermissionDenied,
        Reason::UserNotFound
        | Reason::RoleNotFound
        | Reason::SessionNotFound
        | Reason::StreamNotFound
        | Reason::ApiKeyNotFound
        | Reason::KeyNotFound => Code::NotFound,
        Reason::EmailTaken | Reason::UsernameTaken | Reason::RoleExists => Code::AlreadyExists,
        Reason::LastAdmin
        | Reason::RoleBuiltIn
        | Reason::RoleInUse
        | Reason::TooManyRoles
        | Reason::TooManyApiKeys
        | Reason::KeyAlreadyStaged
        | Reason::KeyNotPublished
        | Reason::KeyNotNext
        | Reason::KeyActive
        | Reason::TooManyKeys
        | Reason::AuditLogBroken => Code::FailedPrecondition,
        Reason::RateLimited
        | Reason::Overloaded
        | Reason::RequestTooLarge
        | Reason::LoginThrottled => Code::ResourceExhausted,
        Reason::DependencyUnavailable
        | Reason::NotReady
        | Reason::TrustStale
        | Reason::ClockSkewed => Code::Unavailable,
        Reason::OutcomeUnknown => Code::Unknown,
        Reason::FeedLagged => Code::Aborted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Cancelled => Code::Cancelled,
        Reason::MethodUnknown => Code::Unimplemented,
        Reason::Unspecified | Reason::Internal => Code::Internal,
    }
}

fn message(reason: Reason) -> &'static str {
    match reason {
        Reason::InvalidRequest => "the request breaks the rules of its fields",
        Reason::RequestIdReused => "the request_id was used before with another body",
        Reason::PageTokenInvalid => "the page token is not valid for this caller and filter",
        Reason::CredentialsMissing => "send exactly one `authorization: Bearer <access token>`",
        Reason::TokenInvalid => "the access token is not valid",
        Reason::LoginFailed => "identifier or password is wrong",
        Reason::RefreshTokenInvalid => "the refresh token is not valid; log in again",
        Reason::PermissionDenied => "the caller may not do this",
        Reason::CurrentPasswordIncorrect => "the current password is wrong",
        Reason::TargetOutranksCaller => {
            "the account or role holds permissions of countersign that the caller lacks"
        }
        Reason::CredentialKindNotAllowed => "this method takes no credential of this kind",
        Reason::UserNotFound => "there is no such user",
        Reason::RoleNotFound => "there is no such role",
        Reason::SessionNotFound => "there is no such live session",
        Reason::StreamNotFound => "this node has no such stream of WatchTrust",
        Reason::FeedLagged => "the reader was too slow; watch again from the last position",
        Reason::ApiKeyNotFound => "there is no such live API key",
        Reason::KeyNotFound => "there is no such signing key",
        Reason::EmailTaken => "another account has this e-mail address",
        Reason::UsernameTaken => "another account has this username",
        Reason::RoleExists => "there is a role of this name",
        Reason::LastAdmin => "no active user would be left with the role admin",
        Reason::RoleBuiltIn => "the built-in role cannot be changed or deleted",
        Reason::RoleInUse => "users still hold the role; revoke it from them first",
        Reason::TooManyRoles => "the user would hold more than 8 roles",
        Reason::TooManyApiKeys => "the user has as many live API keys as may be; revoke one first",
        Reason::KeyAlreadyStaged => "there is a next signing key; activate it, or retire it first",
        Reason::KeyNotPublished => "not everybody may know the signing key yet",
        Reason::KeyNotNext => "the signing key is not the next one",
        Reason::KeyActive => {
            "the active signing key cannot be retired; activate the next one, with \
             retire_previous to take this one away with it"
        }
        Reason::TooManyKeys => "there are 64 signing keys; the retired ones go within the hour",
        Reason::RateLimited => "too many calls from this peer; try again later",
        Reason::Overloaded => "the node is at its limit for this kind of work; try again later",
        Reason::RequestTooLarge => "the request message is too large",
        Reason::LoginThrottled => "too many wrong passwords under this name; try again later",
        Reason::DependencyUnavailable => "something that the call needs does not answer",
        Reason::NotReady => "the node is starting or stopping; try another one, or again later",
        Reason::TrustStale => "what this server knows is older than the caller accepts",
        Reason::ClockSkewed => "the node's clock is off, so it mints no tokens; try another one",
        Reason::OutcomeUnknown => {
            "the change may or may not have happened; look, or retry with the same request_id \
             where there is one"
        }
        Reason::DeadlineExceeded => "the deadline has passed or could not be met",
        Reason::Cancelled => "the caller left",
        Reason::MethodUnknown => "this server has no such method",
        Reason::AuditLogBroken => {
            "the audit log does not go on from this position: records are missing, its end was cut \
             off, or an older copy of the database was restored"
        }
        Reason::Unspecified | Reason::Internal => {
            "internal error; the correlation id finds it in the log"
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

impl From<Violations> for Error {
    fn from(violations: Violations) -> Self {
        let mut error = Self::new(Reason::InvalidRequest);
        error.0.violations = violations;
        error
    }
}

impl From<Error> for Status {
    /// Logs the cause, once: from here on it is gone.
    fn from(error: Error) -> Self {
        let code = error.code();
        let Parts {
            reason,
            message,
            violations,
            metadata,
            quota,
            retry_after,
            cause,
        } = *error.0;
        if let Some(cause) = &cause {
            let cause = chain(cause.as_ref());
            let reason = reason_name(reason);
            if code == Code::Internal {
                tracing::error!(reason, cause, "call failed");
            } else {
                tracing::warn!(reason, cause, "call failed");
            }
        }
        let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v));
        let mut details = ErrorDetails::new();
        details.set_error_info(
            reason_name(reason),
            DOMAIN,
            metadata.collect::<HashMap<_, _>>(),
        );
        let violations: Vec<_> = violations.as_slice().iter().map(field_violation).collect();
        if !violations.is_empty() {
            details.set_bad_request(violations);
        }
        if let Some(limit) = quota {
            details.add_quota_failure_violation("peer", limit);
        }
        if let Some(delay) = retry_after {
            details.set_retry_info(Some(delay));
        }
        let mut status = Self::with_error_details(code, message, details);
        if let Some(delay) = retry_after {
            status.metadata_mut().insert(
                PUSHBACK,
                u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).into(),
            );
        }
        status
    }
}

fn field_violation(violation: &Violation) -> FieldViolation {
    FieldViolation {
        reason: violation.reason.code().to_owned(),
        ..FieldViolation::new(&*violation.field, violation.reason.to_string())
    }
}

/// Finishes the headers of a response on its way out: every failed call, also
/// one that tonic refused by itself, leaves with one of our reasons and with
/// the correlation id among its details. Returns the reason's name if the call
/// failed.
pub fn seal(headers: &mut HeaderMap, correlation_id: &CorrelationId) -> Option<String> {
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Ok {
        return None;
    }
    let mut details = status.get_error_details();
    let sealed = if let Some(info) = details.error_info() {
        let reason = info.reason.clone();
        details.set_request_info(correlation_id.as_str(), "");
        let status = Status::with_error_details(status.code(), status.message(), details);
        (reason, status)
    } else {
        let reason = reason_of_foreign(&status);
        // The protocol wants this code for a compression that is not known
        // (gRPC, "Compression").
        let code = match status.code() {
            Code::Unimplemented => Code::Unimplemented,
            _ => code(reason),
        };
        details.set_error_info(reason_name(reason), DOMAIN, HashMap::new());
        details.set_request_info(correlation_id.as_str(), "");
        let status = Status::with_error_details(code, message(reason), details);
        (reason_name(reason).to_owned(), status)
    };
    let pushback = headers.get(PUSHBACK).cloned();
    let (reason, status) = sealed;
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        headers.remove(name);
    }
    if status.add_header(headers).is_err() {
        tracing::error!("a status could not be written as headers");
    }
    if let Some(pushback) = pushback {
        headers.insert(PUSHBACK, pushback);
    }
    Some(reason)
}

/// What a status that tonic made by itself means here.
fn reason_of_foreign(status: &Status) -> Reason {
    let says = |text: &str| status.message().starts_with(text);
    match status.code() {
        Code::Internal | Code::Unimplemented if MALFORMED.into_iter().any(says) => {
            Reason::InvalidRequest
        }
        // The stream was reset while its requests were read.
        _ if says("h2 protocol error") => Reason::Cancelled,
        Code::Unimplemented => Reason::MethodUnknown,
        // A message larger than the limit, as it is or decompressed.
        Code::OutOfRange => Reason::RequestTooLarge,
        Code::Cancelled => Reason::Cancelled,
        Code::DeadlineExceeded => Reason::DeadlineExceeded,
        Code::NotFound | Code::InvalidArgument => Reason::InvalidRequest,
        Code::ResourceExhausted if says("Error decompressing") => Reason::RequestTooLarge,
        _ => Reason::Internal,
    }
}

/// A cause and what caused it, in one line.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("reason", &self.0.reason)
            .field("cause", &self.0.cause)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        for violation in self.0.violations.as_slice() {
            write!(f, "; {} {}", violation.field, violation.reason)?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_ref().map(|cause| cause.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_retry_settles_says_when_to_retry() {
        for reason in [Reason::OutcomeUnknown, Reason::NotReady, Reason::TrustStale] {
            let status = Status::from(Error::new(reason));
            let details = status.get_error_details();
            let retry = details.retry_info().and_then(|info| info.retry_delay);
            assert_eq!(retry, Some(Duration::from_secs(1)), "{reason:?}");
            assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "1000");
        }
        let status = Status::from(Error::new(Reason::LoginFailed));
        assert!(status.get_error_details().retry_info().is_none());
    }
}
