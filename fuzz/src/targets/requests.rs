//! What a caller sends: messages and headers.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use countersign::{
    domain::Call,
    grpc::{ext_authz::Authorization, fuzzing::READERS},
    middleware::{
        deadline,
        peer::{self, Connection, Trusted},
        trace_context::TraceContext,
    },
};
use countersign_proto::{
    envoy::service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse, attribute_context,
        attribute_context::HttpRequest, check_response::HttpResponse,
    },
    v1,
};
use countersign_verifier::SystemClock;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use opentelemetry::trace::TraceContextExt as _;
use prost::{Message, bytes::Bytes};
use tonic::{Code, Status};
use tower::{Service as _, filter::Predicate as _};

use super::{seed, tokens};

/// A status and its details travel in trailers, which clients bound.
const MOST_MESSAGE: usize = 1024;
const MOST_DETAILS: usize = 4 * 1024;

/// One byte that names the RPC, and the message: it is read or refused, and a refusal
/// fits into trailers.
pub fn requests(data: &[u8]) {
    let Some((&number, message)) = data.split_first() else {
        return;
    };
    let (name, read) = READERS[usize::from(number) % READERS.len()];
    if let Err(error) = read(message) {
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}");
        assert!(status.message().len() <= MOST_MESSAGE, "{name}");
        assert!(status.details().len() <= MOST_DETAILS, "{name}");
    }
}

/// What Envoy asks. There is always an answer, and it lets nobody pass without a good
/// credential unless the route says so.
pub fn check_request(data: &[u8]) {
    let length = u32::try_from(data.len()).expect("fits");
    let framed = [&[0], length.to_be_bytes().as_slice(), data].concat();
    let request = Request::post("/envoy.service.auth.v3.Authorization/Check");
    let request = request
        .body(Full::new(Bytes::from(framed)))
        .expect("a request");
    let mut service = Authorization::new(tokens::verifier());
    let Ok(response) = service
        .call(request)
        .now_or_never()
        .expect("it waits for nothing");
    let body = response.into_body().collect().now_or_never();
    let body = body.expect("it is there").expect("no failure");
    let status = body.trailers().and_then(Status::from_header_map);
    assert_eq!(status.expect("a status").code(), Code::Ok);
    let answer = body.to_bytes();
    let answer = CheckResponse::decode(answer.get(5..).expect("a frame")).expect("a message");
    let passes = answer
        .status
        .as_ref()
        .is_some_and(|status| status.code == 0);
    let ok = matches!(answer.http_response, Some(HttpResponse::OkResponse(_)));
    assert_eq!(passes, ok);
    if passes {
        let asked = CheckRequest::decode(data).expect("what cannot be read does not pass");
        let attributes = asked.attributes.expect("a request");
        let route = attributes.context_extensions;
        let says = |key: &str| route.get(key).is_some_and(|value| value == "true");
        let http = attributes.request.and_then(|request| request.http);
        let http = http.expect("a request");
        let is_open = says("optional") || (says("preflight") && http.method == "OPTIONS");
        let joined = http.headers.values().map(String::as_bytes);
        let raw = http.header_map.iter().flat_map(|map| &map.headers);
        let raw = raw.flat_map(|header| [header.raw_value.as_slice(), header.value.as_bytes()]);
        let brings_a_good_one = joined.chain(raw).any(|value| {
            let value = str::from_utf8(value).unwrap_or_default();
            value
                .split_once(' ')
                .is_some_and(|(_, it)| tokens::is_good(it.trim_start_matches(' ')))
        });
        assert!(brings_a_good_one || is_open);
        // Neither of the good ones has more.
        let mut scopes = route
            .get("scope")
            .into_iter()
            .flat_map(|all| all.split(' '));
        assert!(is_open || scopes.all(|scope| ["orders.read", "orders.write"].contains(&scope)));
    }
}

/// Headers, `name: value` by line, as the layers read them.
pub fn headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        let (name, value) = line.split_at(colon);
        let value = HeaderValue::from_bytes(value[1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    forwarded(&headers);
    if let Some(context) = TraceContext::from_headers(&headers) {
        let id = context.trace_id().to_string();
        let value = headers["traceparent"].to_str().expect("it was read");
        assert!(id.len() == 32 && value.contains(&id), "{value}");
        assert!(context.to_remote().span().span_context().is_valid());
    }
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    request.extensions_mut().insert(Call::internal("fuzz"));
    let longest = Duration::from_secs(30);
    if let Ok(request) = (deadline::Read { longest }).check(request) {
        let deadline = request
            .extensions()
            .get()
            .and_then(|call: &Call| call.deadline);
        assert!(deadline.expect("each call has one") <= Instant::now() + longest);
    }
}

/// Nobody chooses the address that they come from.
fn forwarded(headers: &HeaderMap) {
    let proxies = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let trusted = Trusted {
        proxies: proxies.into(),
        workloads: Vec::new(),
    };
    let client = |address: &str| {
        let connection = Connection {
            address: Some(address.parse().expect("an address")),
            certificate: None,
        };
        let client = trusted.client(&connection, headers, &SystemClock);
        client.expect("it has an address")
    };
    let stranger: IpAddr = "203.0.113.7".parse().expect("an address");
    assert_eq!(client("203.0.113.7"), stranger);
    for address in [client("10.0.0.1"), client("fd00::1")] {
        assert_eq!(address, address.to_canonical());
        assert_eq!(peer::host(address), peer::host(peer::host(address)));
    }
}

pub(super) fn requests_seeds() -> Vec<(String, Vec<u8>)> {
    [account_seeds(), other_seeds()].concat()
}

const ID: &str = "01900000-0000-7000-8000-000000000001";

const TIMESTAMP: Option<prost_types::Timestamp> = Some(prost_types::Timestamp {
    seconds: 1_800_000_000,
    nanos: 1,
});

fn mask(paths: &[&str]) -> prost_types::FieldMask {
    prost_types::FieldMask {
        paths: paths.iter().map(ToString::to_string).collect(),
    }
}

fn account_seeds() -> Vec<(String, Vec<u8>)> {
    let password = "correct horse battery staple".to_owned();
    let email = "ana@example.com".to_owned();
    let labels = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    vec![
        request(
            "Register",
            &v1::RegisterRequest {
                email: email.clone(),
                password: password.clone(),
                username: "ana".into(),
                display_name: "Ana \u{e9}".into(),
                request_id: ID.into(),
            },
        ),
        request(
            "Login",
            &v1::LoginRequest {
                identifier: email.clone(),
                password: password.clone(),
                audiences: vec!["orders".into()],
                ..Default::default()
            },
        ),
        request(
            "BatchGetUsers",
            &v1::BatchGetUsersRequest {
                user_ids: vec!["nobody".into(); 100],
            },
        ),
        request(
            "Refresh",
            &v1::RefreshRequest {
                refresh_token: "csr_".into(),
                audiences: vec!["orders".into()],
            },
        ),
        request(
            "CreateUser",
            &v1::CreateUserRequest {
                email: email.clone(),
                password,
                roles: vec!["admin".into()],
                metadata: labels.clone().into_iter().collect(),
                ..Default::default()
            },
        ),
        request(
            "UpdateUser",
            &v1::UpdateUserRequest {
                user: Some(v1::User {
                    user_id: ID.into(),
                    email,
                    metadata: labels.into_iter().collect(),
                    ..Default::default()
                }),
                update_mask: Some(mask(&["email", "username", "metadata.team"])),
            },
        ),
        request(
            "ListUsers",
            &v1::ListUsersRequest {
                page_size: 10,
                page_token: "AQ".into(),
                filter: Some(v1::UserFilter {
                    email_prefix: "a".into(),
                    role: "admin".into(),
                    status: 1,
                    created_from: TIMESTAMP,
                    created_before: TIMESTAMP,
                }),
            },
        ),
    ]
}

fn other_seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        request(
            "UpdateRole",
            &v1::UpdateRoleRequest {
                role: Some(v1::Role {
                    name: "clerk".into(),
                    permissions: vec!["orders.read".into()],
                    ..Default::default()
                }),
                update_mask: Some(mask(&["description", "permissions"])),
            },
        ),
        request(
            "CreateApiKey",
            &v1::CreateApiKeyRequest {
                name: "importer".into(),
                scopes: vec!["orders.read".into()],
                audiences: vec!["orders".into()],
                expires_at: TIMESTAMP,
                ..Default::default()
            },
        ),
        request(
            "RotateApiKey",
            &v1::RotateApiKeyRequest {
                api_key_id: ID.into(),
                overlap: Some(prost_types::Duration {
                    seconds: 3_600,
                    nanos: 0,
                }),
            },
        ),
        request(
            "ListEvents",
            &v1::ListEventsRequest {
                filter: Some(v1::AuditFilter {
                    actor_id: ID.into(),
                    action: "login".into(),
                    event_from: TIMESTAMP,
                    ..Default::default()
                }),
                ..Default::default()
            },
        ),
        request(
            "WatchTrust",
            &v1::WatchTrustRequest {
                resume_from: Some(v1::TrustPosition {
                    seq: 1,
                    nonce: vec![1; 16],
                }),
                instance: "sidecar-1".into(),
            },
        ),
        request(
            "ValidateTokens",
            &v1::ValidateTokensRequest {
                items: vec![v1::ValidateTokenRequest {
                    token: "a.b.c".into(),
                    audience: "orders".into(),
                }],
            },
        ),
    ]
}

fn request(name: &str, message: &impl Message) -> (String, Vec<u8>) {
    let number = READERS.iter().position(|(reader, _)| *reader == name);
    let number = u8::try_from(number.expect("it has a reader")).expect("fits");
    seed(name, [vec![number], message.encode_to_vec()].concat())
}

pub(super) fn check_request_seeds() -> Vec<(String, Vec<u8>)> {
    let bearer = format!("Bearer {}", tokens::good_token());
    let check = |name: &str, headers: &[(&str, &str)], extensions: &[(&str, &str)]| {
        let owned = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let request = CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(attribute_context::Request {
                    http: Some(HttpRequest {
                        method: "GET".into(),
                        headers: owned(headers),
                        ..Default::default()
                    }),
                }),
                context_extensions: owned(extensions),
            }),
        };
        seed(name, request.encode_to_vec())
    };
    vec![
        check(
            "good",
            &[("authorization", &bearer)],
            &[("scope", "orders.read")],
        ),
        check(
            "lacking",
            &[("authorization", &bearer)],
            &[("role", "admin,owner")],
        ),
        check("bad", &[("authorization", "Bearer a.b.c")], &[]),
        check("optional", &[], &[("optional", "true")]),
        check("not_optional", &[], &[("optional", "false")]),
        check("no_preflight", &[], &[("preflight", "true")]),
        check(
            "another_scope",
            &[("authorization", &bearer)],
            &[("scope", "orders.delete")],
        ),
        check("grpc", &[("content-type", "application/grpc")], &[]),
        check(
            "misspelt",
            &[("authorization", &bearer)],
            &[("scopes", "orders.read")],
        ),
    ]
}
