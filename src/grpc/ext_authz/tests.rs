//! Every kind of request against every kind of route, at a clock that stands
//! still.

use std::collections::{BTreeMap, BTreeSet};

use countersign_proto::envoy::service::auth::v3::{
    AttributeContext, DeniedHttpResponse, OkHttpResponse, attribute_context,
    check_response::HttpResponse,
};
use countersign_verifier::{ApiKey, ApiKeyHash, ApiKeySecret, Clock as _, api_key_text};
use tonic::Code;
use uuid::Uuid;

use super::*;
use crate::{domain::Permission, middleware::tests::Mint};

const OURS: [&str; 6] = [
    "x-countersign-kind",
    "x-countersign-roles",
    "x-countersign-scope",
    "x-countersign-session",
    "x-countersign-staleness",
    "x-countersign-subject",
];

/// Envoy's side of one node.
struct Node {
    mint: Mint,
    check: Check,
}

impl Node {
    fn new() -> Self {
        let mint = Mint::new();
        let verifier = mint.verifier.clone();
        Self {
            mint,
            check: Check { verifier },
        }
    }

    fn ready() -> Self {
        let node = Self::new();
        node.mint.publish();
        node
    }

    fn bearer(&self, permissions: &[Permission]) -> String {
        format!("Bearer {}", self.mint.token(permissions))
    }

    /// The text of a new API key.
    fn api_key(&self, expires_in: Option<i64>) -> String {
        let text = api_key_text(&[5; 24]);
        let now = self.mint.clock.now();
        let key = ApiKey {
            id: Uuid::from_u128(3),
            owner: Uuid::from_u128(4),
            name: "importer".into(),
            scopes: vec!["orders.read".into()],
            audience: vec!["elsewhere".into()],
            created_at: now,
            expires_at: expires_in.map(|s| now + jiff::SignedDuration::from_secs(s)),
            secrets: vec![ApiKeySecret {
                hash: ApiKeyHash::of(&text).unwrap(),
                expires_at: None,
            }],
        };
        self.mint
            .verifier
            .update(|state| state.api_keys.insert(key));
        text
    }

    fn ask(&self, route: &[(&str, &str)], headers: &[(&str, &str)]) -> Result<CheckResponse> {
        self.ask_as("GET", route, headers)
    }

    fn ask_as(
        &self,
        method: &str,
        route: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<CheckResponse> {
        let owned = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let http = HttpRequest {
            method: method.into(),
            headers: owned(headers),
            header_map: None,
        };
        self.check.answer(&CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(attribute_context::Request { http: Some(http) }),
                context_extensions: owned(route),
            }),
        })
    }
}

#[track_caller]
fn allowed(response: Result<CheckResponse>) -> OkHttpResponse {
    let response = response.unwrap();
    assert_eq!(response.status.unwrap().code, 0);
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else {
        panic!("not allowed: {:?}", response.http_response);
    };
    ok
}

/// Status code and `www-authenticate` of a denial.
#[track_caller]
fn denied(response: Result<CheckResponse>) -> (i32, String, DeniedHttpResponse) {
    let response = response.unwrap();
    assert_ne!(response.status.unwrap().code, 0);
    let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
        panic!("not denied: {:?}", response.http_response);
    };
    let challenge = value_of(&denied.headers, "www-authenticate");
    (denied.status.unwrap().code, challenge, denied)
}

fn value_of(
    headers: &[countersign_proto::envoy::config::core::v3::HeaderValueOption],
    name: &str,
) -> String {
    let headers = headers.iter().map(|option| option.header.as_ref().unwrap());
    let mut found = headers.filter(|header| header.key == name);
    found
        .next()
        .map(|header| header.value.clone())
        .unwrap_or_default()
}

fn set(ok: &OkHttpResponse) -> BTreeMap<&str, &str> {
    let headers = ok.headers.iter().map(|option| {
        assert_eq!(option.append, Some(false));
        option.header.as_ref().unwrap()
    });
    headers
        .map(|h| (h.key.as_str(), h.value.as_str()))
        .collect()
}

/// Each of our headers is set or removed, and none is both.
#[track_caller]
fn assert_complete(ok: &OkHttpResponse) {
    let set: BTreeSet<&str> = set(ok).into_keys().collect();
    let removed: BTreeSet<&str> = ok.headers_to_remove.iter().map(String::as_str).collect();
    assert!(set.is_disjoint(&removed), "{ok:?}");
    for name in OURS {
        assert!(set.contains(name) || removed.contains(name), "{name}");
    }
}

#[test]
fn a_good_token_is_told_to_the_service_behind() {
    let node = Node::ready();
    let bearer = node.bearer(&[Permission::UsersRead, Permission::RolesRead]);
    let response = node.ask(&[], &[("authorization", &bearer)]).unwrap();
    let ok = allowed(Ok(response.clone()));
    assert_complete(&ok);
    let expected = BTreeMap::from([
        (
            "x-countersign-subject",
            "00000000-0000-0000-0000-000000000007",
        ),
        ("x-countersign-kind", "user"),
        (
            "x-countersign-session",
            "00000000-0000-0000-0000-000000000009",
        ),
        (
            "x-countersign-scope",
            "countersign.users.read countersign.roles.read",
        ),
        ("x-countersign-staleness", "0"),
    ]);
    assert_eq!(set(&ok), expected);
    // The minted token has no roles.
    assert_eq!(ok.headers_to_remove, ["x-countersign-roles"]);
    let fields = response.dynamic_metadata.unwrap().fields;
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    let expected = [
        "client_id",
        "kind",
        "roles",
        "scopes",
        "session",
        "staleness",
        "subject",
    ];
    assert_eq!(names, expected);
}

#[test]
fn an_api_key_passes_as_its_owner_without_a_session() {
    let node = Node::ready();
    let bearer = format!("Bearer {}", node.api_key(Some(60)));
    let headers = [
        ("authorization", &*bearer),
        ("x-countersign-session", "spoofed"),
    ];
    let ok = allowed(node.ask(&[("scope", "orders.read")], &headers));
    assert_complete(&ok);
    let set = set(&ok);
    assert_eq!(set["x-countersign-kind"], "api_key");
    assert_eq!(set["x-countersign-subject"], Uuid::from_u128(4).to_string());
    let gone = ["x-countersign-roles", "x-countersign-session"];
    assert_eq!(ok.headers_to_remove, gone);
    let wrong = node.ask(&[("audience", "countersign")], &headers);
    assert_eq!(denied(wrong).0, 401);
    node.mint.clock.advance(std::time::Duration::from_mins(1));
    assert_eq!(denied(node.ask(&[], &headers)).0, 401);
}

#[test]
fn whatever_a_client_says_about_itself_is_removed_or_overwritten() {
    let node = Node::ready();
    let bearer = node.bearer(&[]);
    let spoofed = [
        ("x-countersign-subject", "admin"),
        ("X-Countersign-Roles", "admin"),
        ("x-countersign-", "a"),
        ("x-countersign-later", "a"),
        ("x_countersign_subject", "a"),
        ("x-countersign_kind", "a"),
        ("x-countersignature", "is another's"),
    ];
    let route = [("optional", "true"), ("preflight", "true")];
    let with_token = [&spoofed[..], &[("authorization", &*bearer)]].concat();
    let preflight = [("origin", "o"), ("access-control-request-method", "PUT")];
    let preflight = [&spoofed[..], &preflight].concat();
    for (route, method, headers) in [
        (&[][..], "GET", &with_token),
        (&route[..1], "GET", &spoofed.to_vec()),
        (&route[1..], "OPTIONS", &preflight),
    ] {
        let ok = allowed(node.ask_as(method, route, headers));
        assert_complete(&ok);
        let set = set(&ok);
        for (name, _) in spoofed.iter().take(6) {
            let is_removed = ok.headers_to_remove.iter().any(|removed| removed == name);
            let is_set = set.contains_key(name);
            assert!(is_removed ^ is_set, "{name}: {ok:?}");
        }
        let other = "x-countersignature".to_owned();
        assert!(!ok.headers_to_remove.contains(&other));
        if !headers.contains(&("authorization", &*bearer)) {
            assert_eq!(
                set.into_keys().collect::<Vec<_>>(),
                ["x-countersign-staleness"]
            );
        }
    }
}

#[test]
fn a_missing_or_bad_credential_is_challenged() {
    let node = Node::ready();
    let good = node.bearer(&[]);
    let stranger = format!("Bearer {}", Mint::new().token(&[]));
    let twice = format!("{good},{good}");
    let bad = r#"Bearer realm="countersign", error="invalid_token", error_description="the access token is not valid""#;
    let missing = r#"Bearer realm="countersign""#;
    let bare = good.trim_start_matches("Bearer ");
    for (authorization, challenge, says) in [
        (None, missing, "CREDENTIALS_MISSING"),
        (Some("Bearer a.b.c"), bad, "TOKEN_INVALID"),
        (Some("Basic YTpi"), bad, "TOKEN_INVALID"),
        (Some(""), bad, "TOKEN_INVALID"),
        (Some("Bearer"), bad, "TOKEN_INVALID"),
        (Some(bare), bad, "TOKEN_INVALID"),
        (Some(&twice), bad, "TOKEN_INVALID"),
        (Some(&stranger), bad, "TOKEN_INVALID"),
    ] {
        let headers: Vec<_> = authorization
            .map(|value| ("authorization", value))
            .into_iter()
            .collect();
        let (status, told, response) = denied(node.ask(&[], &headers));
        assert_eq!(
            (status, told.as_str()),
            (401, challenge),
            "{authorization:?}"
        );
        assert!(response.body.contains(&format!(r#""error_code":"{says}""#)));
        // Being optional makes no bad credential good.
        let optional = node.ask(&[("optional", "true")], &headers);
        match authorization {
            Some(_) => assert_eq!(denied(optional).0, 401, "{authorization:?}"),
            None => assert_complete(&allowed(optional)),
        }
    }
}

#[test]
fn a_grpc_client_is_told_in_its_own_terms() {
    let node = Node::ready();
    for (kind, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/json", false),
    ] {
        let (status, _, response) = denied(node.ask(&[], &[("content-type", kind)]));
        assert_eq!(status, 401);
        let grpc_status = value_of(&response.headers, "grpc-status");
        assert_eq!(grpc_status == "16", is_grpc, "{kind}");
        let json = value_of(&response.headers, "content-type") == "application/json";
        assert_eq!(json, !is_grpc, "{kind}");
    }
}

#[test]
fn a_route_gets_what_it_asks_for() {
    let node = Node::ready();
    let bearer = node.bearer(&[Permission::UsersRead]);
    let headers = [("authorization", &*bearer)];
    let both = "countersign.users.read countersign.users.write";
    for (key, value, status) in [
        ("scope", "countersign.users.read", 0),
        ("scope", both, 403),
        ("scope", "countersign.users", 403),
        ("role", "admin", 403),
        ("audience", "countersign", 0),
        ("audience", "elsewhere", 401),
        ("preflight", "true", 0),
        ("roles", "admin", 500),
        ("max_staleness", "soon", 500),
    ] {
        let response = node.ask(&[(key, value)], &headers);
        match status {
            0 => assert_complete(&allowed(response)),
            _ => assert_eq!(denied(response).0, status, "{key} = {value}"),
        }
    }
    let (_, challenge, _) = denied(node.ask(&[("scope", both)], &headers));
    let expected =
        format!(r#"Bearer realm="countersign", error="insufficient_scope", scope="{both}""#);
    assert_eq!(challenge, expected);
}

#[test]
fn the_token_is_stripped_where_that_is_asked_for() {
    let node = Node::ready();
    let bearer = node.bearer(&[]);
    let headers = [("authorization", &*bearer)];
    let strips = |route: &[(&str, &str)]| {
        let ok = allowed(node.ask(route, &headers));
        ok.headers_to_remove.contains(&"authorization".to_owned())
    };
    assert!(strips(&[("strip_token", "true")]));
    assert!(!strips(&[("strip_token", "false")]));
    assert!(!strips(&[]));
}

#[test]
fn a_preflight_passes_only_where_the_route_says_so_and_only_if_it_is_one() {
    let node = Node::ready();
    let whole = [("origin", "o"), ("access-control-request-method", "PUT")];
    let route = [("preflight", "true"), ("scope", "a")];
    assert_complete(&allowed(node.ask_as("OPTIONS", &route, &whole)));
    for (method, route, headers) in [
        ("OPTIONS", &[][..], &whole[..]),
        ("OPTIONS", &route, &whole[..1]),
        ("OPTIONS", &route, &whole[1..]),
        ("GET", &route, &whole),
        ("options", &route, &whole),
    ] {
        let response = node.ask_as(method, route, headers);
        assert_eq!(denied(response).0, 401, "{method} {route:?} {headers:?}");
    }
    let bad = [&whole[..], &[("authorization", "Bearer x")]].concat();
    assert_eq!(denied(node.ask_as("OPTIONS", &route, &bad)).0, 401);
}

#[test]
fn a_call_fails_only_for_what_no_request_can_bring_about() {
    let node = Node::new();
    let bearer = node.bearer(&[]);
    let headers = [("authorization", &*bearer)];
    let open = [("optional", "true")];
    for response in [node.ask(&[], &headers), node.ask(&open, &[])] {
        assert_eq!(response.unwrap_err().reason(), Reason::NotReady);
    }
    // What cannot be read is refused, whatever is known.
    let unreadable = node.check.answer(&CheckRequest::default());
    assert_eq!(denied(unreadable).0, 400);
    assert_eq!(denied(node.ask(&[("typo", "")], &headers)).0, 500);

    node.mint.publish();
    node.mint
        .clock
        .advance(std::time::Duration::from_millis(5_001));
    let limited = [("max_staleness", "5")];
    for (route, headers) in [
        (&limited[..], &headers[..]),
        (&limited, &[]),
        (&[limited[0], open[0]], &[]),
    ] {
        let error = node.ask(route, headers).unwrap_err();
        assert_eq!(
            (error.reason(), error.code()),
            (Reason::TrustStale, Code::Unavailable)
        );
    }
    let ok = allowed(node.ask(&[("max_staleness", "6")], &headers));
    assert_eq!(set(&ok)["x-countersign-staleness"], "5");
    node.mint.verifier.heard();
    allowed(node.ask(&limited, &headers));
}

#[test]
fn a_name_that_fits_into_no_header_passes_nobody() {
    let node = Node::ready();
    let bearer = format!("Bearer {}", node.api_key(None));
    let id = Uuid::from_u128(3);
    node.mint.verifier.update(|state| {
        let mut key = ApiKey::clone(state.api_keys.get(id).unwrap());
        key.scopes.push("a\r\nx-countersign-roles: admin".into());
        state.api_keys.insert(key);
    });
    let response = node.ask(&[], &[("authorization", &bearer)]);
    assert_eq!(denied(response).0, 500);
}
