//! What Envoy is told: how to change a request that may pass, or what to answer
//! to one that may not.
//!
//! The service behind Envoy believes `x-countersign-*`. So an answer sets each of
//! these headers or has it removed, and has removed whatever else of that name
//! the client sent. Envoy removes after it sets: what is set is never listed.

use std::{collections::BTreeSet, time::Duration};

use countersign_proto::envoy::{
    config::core::v3::{HeaderValue, HeaderValueOption},
    service::auth::v3::{
        CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
    },
    r#type::v3::{HttpStatus, StatusCode},
};
use countersign_verifier::{Caller, Credential};
use http::HeaderMap;
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::{Code, Status};

use super::{Denial, Lack, asked::Asked, route::Route};
use crate::error::{Error, Reason, reason_name};

const PREFIX: &str = "x-countersign-";

const SUBJECT: &str = "x-countersign-subject";
const KIND: &str = "x-countersign-kind";
const SESSION: &str = "x-countersign-session";
const ROLES: &str = "x-countersign-roles";
const SCOPE: &str = "x-countersign-scope";
const STALENESS: &str = "x-countersign-staleness";

const ALL: [&str; 6] = [SUBJECT, KIND, SESSION, ROLES, SCOPE, STALENESS];

/// Lets a request pass, as this caller or as nobody. None if what is known of
/// the caller cannot be written into headers.
pub(super) fn allowed(
    asked: Asked<'_>,
    route: &Route<'_>,
    caller: Option<&Caller>,
    staleness: Duration,
) -> Option<CheckResponse> {
    let age = (STALENESS, staleness.as_secs().to_string());
    let mut set: Vec<_> = caller.map(identity).into_iter().flatten().collect();
    set.push(age);
    // What is empty is not sent at all, and so is removed.
    set.retain(|(_, value)| !value.is_empty());
    let plain = |value: &str| value.bytes().all(|b| matches!(b, b' '..=b'~'));
    if !set.iter().all(|(_, value)| plain(value)) {
        tracing::error!("a caller's name or scopes do not fit into headers");
        return None;
    }
    let is_set = |name: &str| set.iter().any(|(known, _)| *known == name);
    let mut remove: BTreeSet<&str> = ALL.into_iter().filter(|name| !is_set(name)).collect();
    let sent = asked.headers().map(|(name, _)| name);
    remove.extend(sent.filter(|name| is_ours(name) && !is_set(&name.to_ascii_lowercase())));
    if route.strip_token {
        remove.insert("authorization");
    }
    let ok = OkHttpResponse {
        headers: set.into_iter().map(|(k, v)| header(k, v)).collect(),
        headers_to_remove: remove.into_iter().map(str::to_owned).collect(),
    };
    Some(CheckResponse {
        status: Some(tonic_types::Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: Some(metadata(caller, staleness)),
    })
}

/// Whether a header's name is one of ours, or is to those servers that take `_`
/// for `-`.
fn is_ours(name: &str) -> bool {
    let start = name.as_bytes().get(..PREFIX.len());
    start.is_some_and(|start| {
        start.iter().zip(PREFIX.bytes()).all(|(given, ours)| {
            let given = if *given == b'_' { b'-' } else { *given };
            given.eq_ignore_ascii_case(&ours)
        })
    })
}

fn identity(caller: &Caller) -> [(&'static str, String); 5] {
    let session = caller.session_id().map(|id| id.to_string());
    [
        (SUBJECT, caller.subject.to_string()),
        (KIND, kind(caller).to_owned()),
        (SESSION, session.unwrap_or_default()),
        (ROLES, caller.roles.join(",")),
        (SCOPE, caller.scopes.join(" ")),
    ]
}

fn kind(caller: &Caller) -> &'static str {
    match caller.credential {
        Credential::AccessToken { .. } => "user",
        Credential::ApiKey { .. } => "api_key",
        Credential::Certificate => "workload",
    }
}

/// The same for Envoy's other filters and its access log.
fn metadata(caller: Option<&Caller>, staleness: Duration) -> Struct {
    let text = |text: &str| value(Kind::StringValue(text.to_owned()));
    let list = |items: &[String]| {
        let values = items.iter().map(|item| text(item)).collect();
        value(Kind::ListValue(ListValue { values }))
    };
    let age = value(Kind::NumberValue(staleness.as_secs_f64()));
    let mut fields = vec![("staleness", age)];
    if let Some(caller) = caller {
        fields.extend([
            ("subject", text(&caller.subject.to_string())),
            ("kind", text(kind(caller))),
            ("client_id", text(&caller.client_id)),
            ("roles", list(&caller.roles)),
            ("scopes", list(&caller.scopes)),
        ]);
        if let Some(session) = caller.session_id() {
            fields.push(("session", text(&session.to_string())));
        }
    }
    structure(fields)
}

/// Answers a request that may not pass. A gRPC client finds our error in it,
/// with its details, as from any RPC of ours.
pub(super) fn denied(denial: &Denial, asked: Option<Asked<'_>>) -> CheckResponse {
    let (status, error) = match denial {
        Denial::Missing => (StatusCode::Unauthorized, Reason::CredentialsMissing.into()),
        Denial::Bad => (StatusCode::Unauthorized, Reason::TokenInvalid.into()),
        Denial::Lacking(Lack::Role) => (StatusCode::Forbidden, Reason::PermissionDenied.into()),
        Denial::Lacking(Lack::Scope(scope)) => {
            let error = Error::new(Reason::PermissionDenied).with("scope", scope);
            (StatusCode::Forbidden, error)
        }
        Denial::Unreadable => (StatusCode::BadRequest, Reason::InvalidRequest.into()),
        Denial::Broken => (StatusCode::InternalServerError, Reason::Internal.into()),
    };
    let reason = reason_name(error.reason());
    let error = Status::from(error);
    let mut headers: Vec<_> = challenge(denial).into_iter().collect();
    let body = if asked.is_some_and(Asked::is_grpc) {
        headers.extend(trailers(&error));
        error.message().to_owned()
    } else {
        headers.push(header("content-type", "application/json".to_owned()));
        serde_json::json!({"detail": error.message(), "error_code": reason}).to_string()
    };
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus {
            code: status.into(),
        }),
        headers,
        body,
    };
    let reason = value(Kind::StringValue(reason.to_owned()));
    CheckResponse {
        status: Some(tonic_types::Status {
            code: error.code().into(),
            message: error.message().to_owned(),
            details: Vec::new(),
        }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        dynamic_metadata: Some(structure([("reason", reason)])),
    }
}

/// RFC 6750, section 3: whoever sent no credential is told no error.
fn challenge(denial: &Denial) -> Option<HeaderValueOption> {
    let error = match denial {
        Denial::Missing => String::new(),
        Denial::Bad => {
            r#", error="invalid_token", error_description="the access token is not valid""#.into()
        }
        Denial::Lacking(Lack::Role) => r#", error="insufficient_scope""#.into(),
        Denial::Lacking(Lack::Scope(scope)) => {
            format!(r#", error="insufficient_scope", scope="{scope}""#)
        }
        Denial::Unreadable | Denial::Broken => return None,
    };
    let challenge = format!(r#"Bearer realm="countersign"{error}"#);
    Some(header("www-authenticate", challenge))
}

/// The status as gRPC writes it into headers; Envoy relays them.
fn trailers(status: &Status) -> Vec<HeaderValueOption> {
    debug_assert!(status.code() != Code::Ok);
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        return Vec::new();
    }
    let written = headers.iter().filter_map(|(name, value)| {
        let value = value.to_str().ok()?;
        Some(header(name.as_str(), value.to_owned()))
    });
    written.collect()
}

/// A header that stands in place of any other of its name.
fn header(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value,
            raw_value: Vec::new(),
        }),
        append: Some(false),
    }
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn structure(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    let fields = fields.into_iter();
    Struct {
        fields: fields.map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}
