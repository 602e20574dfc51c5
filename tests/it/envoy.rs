//! A real Envoy before a real service, with the configuration files that we
//! ship, against a real node. On SQLite, unless a database has a say in what is
//! tested: to Envoy a node answers from memory.

use std::net::SocketAddr;

use countersign_proto::v1;
use tonic::Code;

use crate::{
    harness::{
        Client, Kind, Person, World,
        binary::Program,
        calls::{disable, register},
        envoy::{Envoy, Seen},
        refused, rpc, world,
    },
    on_both,
};

const EXT_AUTHZ: &str = "ext_authz.yaml";
const JWT_AUTHN: &str = "jwt_authn.yaml";

/// Headers in either form: as they came, and joined in one map.
const FORMS: [(&str, &str); 2] = [
    ("encode_raw_headers: true", "encode_raw_headers: true"),
    ("encode_raw_headers: true", "encode_raw_headers: false"),
];

const SPOOFED: [(&str, &[u8]); 5] = [
    ("x-countersign-subject", b"the-king"),
    ("X-Countersign-Subject", b"the-queen"),
    ("x-countersign-roles", b"admin"),
    ("x-countersign-scope", b"orders.read"),
    ("x-countersign-anything", b"else"),
];

async fn before(world: &World, edits: &[(&str, &str)]) -> Envoy {
    Envoy::start(EXT_AUTHZ, world.node.address, world.node.http, edits).await
}

async fn sqlite() -> World {
    World::new(Kind::Sqlite).await
}

fn bearer(person: &Person) -> Vec<u8> {
    format!("Bearer {}", person.tokens.access_token).into_bytes()
}

async fn logout(person: &mut Person) {
    let wish = v1::LogoutRequest::default();
    person.client.auth.logout(wish).await.unwrap();
}

on_both! {
    async fn whom_a_node_has_let_go_envoy_lets_go_at_once(world: World) {
        let envoy = before(&world, &[]).await;
        let admin = world.admin().await;
        let (mut leaves, is_disabled) = (world.person().await, world.person().await);
        for person in [&leaves, &is_disabled] {
            let answer = envoy.get("/", Some(&person.tokens.access_token)).await;
            assert_eq!((answer.status, &*answer.body), (200, "the service behind"));
            let seen = envoy.upstream.take_one();
            assert_eq!(seen.one("x-countersign-subject"), person.user_id);
            assert_eq!(seen.one("x-countersign-session"), person.tokens.session_id);
            assert_eq!(seen.one("x-countersign-kind"), "user");
            // This route keeps the token from the service.
            assert_eq!(seen.one("authorization"), "");
        }
        logout(&mut leaves).await;
        disable(&admin.client, &is_disabled.user_id).await.unwrap();
        for person in [&leaves, &is_disabled] {
            let answer = envoy.get("/", Some(&person.tokens.access_token)).await;
            assert_eq!(answer.status, 401);
        }
        assert!(envoy.upstream.take().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_is_told_says_how_to_ask() {
    let world = sqlite().await;
    let envoy = before(&world, &[]).await;
    let person = world.person().await;
    let token = Some(person.tokens.access_token.as_str());
    let plain = r#"Bearer realm="countersign""#;
    let invalid = format!(
        r#"{plain}, error="invalid_token", error_description="the access token is not valid""#
    );
    let scope = format!(r#"{plain}, error="insufficient_scope", scope="orders.read""#);
    let role = format!(r#"{plain}, error="insufficient_scope""#);
    for (path, token, status, challenge, code) in [
        ("/", None, 401, plain, "CREDENTIALS_MISSING"),
        ("/", Some("a.b.c"), 401, &invalid, "TOKEN_INVALID"),
        ("/catalog/", Some("a.b.c"), 401, &invalid, "TOKEN_INVALID"),
        ("/orders/1", token, 403, &scope, "PERMISSION_DENIED"),
        ("/admin/", token, 403, &role, "PERMISSION_DENIED"),
    ] {
        let answer = envoy.get(path, token).await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.header("www-authenticate"), challenge, "{path}");
        assert_eq!(answer.header("content-type"), "application/json");
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["error_code"], code, "{path}");
    }
    assert!(envoy.upstream.take().is_empty());
    let reader = world.person_who_may(&["orders.read"]).await;
    let admin = world.admin().await;
    for (path, person) in [("/orders/1", &reader), ("/admin/", &admin)] {
        let answer = envoy.get(path, Some(&person.tokens.access_token)).await;
        assert_eq!(answer.status, 200, "{path}");
        let seen = envoy.upstream.take_one();
        assert_eq!(seen.one("x-countersign-subject"), person.user_id);
        assert_eq!(seen.one("authorization").as_bytes(), bearer(person));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_says_about_themselves_who_they_are() {
    let world = sqlite().await;
    let person = world.person().await;
    let authorization = bearer(&person);
    // Without the filter that removes them first, what a Check says must do.
    let first = "- remove_on_match: {key_matcher: {prefix: x-countersign-, ignore_case: true}}";
    let without_first = (first, "- remove: x-unrelated");
    for edits in [
        &[FORMS[0]][..],
        &[FORMS[0], without_first],
        &[FORMS[1], without_first],
    ] {
        let envoy = before(&world, edits).await;
        let good = [&SPOOFED[..], &[("authorization", &authorization)]].concat();
        assert_eq!(envoy.send("GET", "/", &good).await.status, 200);
        let seen = envoy.upstream.take_one();
        assert_eq!(seen.identity(), ["kind", "session", "staleness", "subject"]);
        assert_eq!(seen.one("x-countersign-subject"), person.user_id);

        assert_eq!(envoy.send("GET", "/catalog/", &SPOOFED).await.status, 200);
        assert_eq!(envoy.upstream.take_one().identity(), ["staleness"]);

        let preflight: [(&str, &[u8]); 2] = [
            ("origin", b"https://a.test"),
            ("access-control-request-method", b"PUT"),
        ];
        let preflight = [&SPOOFED[..], &preflight].concat();
        assert_eq!(
            envoy.send("OPTIONS", "/orders/1", &preflight).await.status,
            200
        );
        assert_eq!(envoy.upstream.take_one().identity(), ["staleness"]);
        // Only there, and only as a preflight.
        assert_eq!(envoy.send("OPTIONS", "/", &preflight).await.status, 401);
        assert_eq!(envoy.send("PUT", "/orders/1", &preflight).await.status, 401);

        if edits.len() == 1 {
            // Nobody is asked here.
            assert_eq!(envoy.send("GET", "/healthz", &SPOOFED).await.status, 200);
            assert_eq!(envoy.upstream.take_one().identity(), [""; 0]);
        }
        assert!(envoy.upstream.take().is_empty());
        let underscores: [(&str, &[u8]); 1] = [("x_countersign_subject", b"the-king")];
        assert_eq!(
            envoy.send("GET", "/catalog/", &underscores).await.status,
            400
        );
    }
    // Where Envoy takes underscores, a Check has them removed.
    let takes = (
        "headers_with_underscores_action: REJECT_REQUEST",
        "idle_timeout: 300s",
    );
    let other = (
        "            idle_timeout: 300s\n          http2",
        "          http2",
    );
    let envoy = before(&world, &[other, takes, without_first]).await;
    let underscores: [(&str, &[u8]); 1] = [("x_countersign_subject", b"the-king")];
    assert_eq!(
        envoy.send("GET", "/catalog/", &underscores).await.status,
        200
    );
    let seen = envoy.upstream.take_one();
    assert!(
        !seen.headers.contains_key("x_countersign_subject"),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_credentials_and_headers_open_nothing() {
    let world = sqlite().await;
    let person = world.person().await;
    let good = bearer(&person);
    for form in FORMS {
        let envoy = before(&world, &[form]).await;
        for values in [
            &[&good[..], &good][..],
            &[&good, b"Bearer a.b.c"],
            &[b"Bearer a.b.c", &good],
            &[&good, b"Basic YTpi"],
            &[b"Basic YTpi", &good],
            &[b"Bearer \xff\xfe"],
            &[b"Bearer "],
            &[b"Basic YTpi"],
        ] {
            let headers: Vec<_> = values
                .iter()
                .map(|value| ("authorization", *value))
                .collect();
            for path in ["/", "/catalog/"] {
                let answer = envoy.send("GET", path, &headers).await;
                assert_eq!(answer.status, 401, "{form:?} {path} {headers:?}");
            }
        }
        assert!(envoy.upstream.take().is_empty());
        // Envoy drops an empty one before anybody sees it.
        let headers: [(&str, &[u8]); 2] = [("authorization", &good), ("authorization", b"")];
        assert_eq!(envoy.send("GET", "/catalog/", &headers).await.status, 200);
        assert_eq!(
            envoy.upstream.take_one().one("authorization").as_bytes(),
            good
        );
        // What is odd elsewhere is not held against a good one.
        let headers: [(&str, &[u8]); 2] = [("authorization", &good), ("x-odd", b"\xff\xc3\x28")];
        assert_eq!(envoy.send("GET", "/", &headers).await.status, 200);
        assert_eq!(
            envoy.upstream.take_one().one("x-countersign-subject"),
            person.user_id
        );
    }
}

/// What a careless server would make of a path.
fn careless(seen: &Seen) -> String {
    let mut path = seen.path.to_lowercase();
    for _ in 0..3 {
        path = path
            .replace("%2f", "/")
            .replace("%5c", "/")
            .replace("%2e", ".");
        path = path.replace("%25", "%").replace('\\', "/");
    }
    let path = path.split(['?', '#']).next().unwrap();
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}/", parts.join("/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_leads_past_its_route() {
    let world = sqlite().await;
    let person = world.person().await;
    let envoy = before(&world, &[]).await;
    let mut reached = 0;
    for path in [
        "/admin/users",
        "/catalog/../admin/users",
        "/catalog/%2e%2e/admin/users",
        "/catalog/..%2fadmin/users",
        "/catalog/..%2Fadmin/users",
        "/catalog%2f..%2fadmin/users",
        "/catalog/..%5cadmin/users",
        "/catalog/..\\admin/users",
        "/catalog/.%2e/admin/users",
        "/catalog//../admin/users",
        "/healthz/../admin/users",
        "//admin/users",
        "/./admin/users",
        "/admin//users",
        "/x/../admin/users",
        "/x/%2e%2e/admin/users",
        "/%61dmin/users",
        "/catalog/?/../admin/users",
        "/?/admin/users",
        "/?optional=true&role=",
        "/admin/users?optional=true",
        "/catalog/%252e%252e/admin/users",
    ] {
        for token in [None, Some(person.tokens.access_token.as_str())] {
            envoy.get(path, token).await;
            for seen in envoy.upstream.take() {
                let careless = careless(&seen);
                reached += 1;
                // Servers that decode twice, or take %61 for a, are for their
                // operator to know; a double encoding is left as it came.
                let twice = path.contains("%25") && seen.path == path;
                assert!(
                    !careless.starts_with("/admin/") || twice,
                    "{path}: {seen:?}"
                );
                let known = seen.headers.contains_key("x-countersign-subject");
                assert!(
                    known || careless.starts_with("/catalog/") || twice,
                    "{path}: {seen:?}"
                );
            }
        }
    }
    assert!(reached > 3, "some of these are harmless");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_headers_are_judged_and_too_large_ones_are_refused() {
    let world = sqlite().await;
    let person = world.person().await;
    let good = bearer(&person);
    let filled = |kib: usize| {
        let mut headers: Vec<(String, Vec<u8>)> = vec![("authorization".into(), good.clone())];
        for i in 0..kib {
            headers.push((format!("x-fill-{i}"), vec![b'a'; 1000]));
        }
        headers
    };
    let send = async |envoy: &Envoy, path: &str, kib: usize| {
        let headers = filled(kib);
        let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), &v[..])).collect();
        envoy.send("GET", path, &headers).await.status
    };
    for form in FORMS {
        let envoy = before(&world, &[form]).await;
        assert_eq!(send(&envoy, "/", 57).await, 200);
        // A path is shown twice.
        let path = format!("/catalog/{}", "a".repeat(55 * 1024));
        assert_eq!(send(&envoy, &path, 1).await, 200);
        assert_eq!(envoy.upstream.take().len(), 2);
        assert_eq!(send(&envoy, "/", 70).await, 431, "Envoy's own limit");
        assert!(envoy.upstream.take().is_empty());
    }
    // With an Envoy that takes more than a node does, and lets pass what nobody
    // could judge, a request must not grow its way in.
    let more = (
        "stat_prefix: ingress",
        "stat_prefix: ingress\n          max_request_headers_kb: 2048",
    );
    let count = (
        "idle_timeout: 300s\n          http2",
        "idle_timeout: 300s\n            max_headers_count: 2000\n          http2",
    );
    let allow = ("failure_mode_allow: false", "failure_mode_allow: true");
    for form in FORMS {
        let envoy = before(&world, &[more, count, allow, form]).await;
        assert_eq!(send(&envoy, "/", 200).await, 200);
        assert_eq!(envoy.upstream.take().len(), 1);
        assert_eq!(send(&envoy, "/", 300).await, 400);
        assert_eq!(send(&envoy, "/catalog/", 1500).await, 400);
        assert!(envoy.upstream.take().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_node_envoy_does_as_it_is_told() {
    for allow in [false, true] {
        let world = sqlite().await;
        let person = world.person().await;
        let put = format!("failure_mode_allow: {allow}");
        let envoy = before(&world, &[("failure_mode_allow: false", &put)]).await;
        let authorization = bearer(&person);
        let headers = [&SPOOFED[..], &[("authorization", &authorization)]].concat();
        assert_eq!(envoy.send("GET", "/", &headers).await.status, 200);
        assert_eq!(
            envoy.upstream.take_one().one("x-countersign-subject"),
            person.user_id
        );
        // With its connections: one that is still open would be asked.
        world.node.running.stop().await;
        let status = envoy.send("GET", "/", &headers).await.status;
        let seen = envoy.upstream.take();
        if allow {
            // As nobody, whatever was said.
            assert_eq!((status, seen.len()), (200, 1));
            assert_eq!(seen[0].identity(), [""; 0]);
        } else {
            assert_eq!((status, seen.len()), (503, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_is_refused_by_a_status_with_its_reason() {
    let world = sqlite().await;
    let person = world.person().await;
    let envoy = before(&world, &[]).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", envoy.address));
    let channel = endpoint.unwrap().connect_lazy();
    let call = async |path: &'static str, token: Option<&str>| {
        rpc::call(&channel, path, token, Vec::new()).await
    };
    let token = Some(person.tokens.access_token.as_str());
    for (path, token, code, reason) in [
        (
            "/orders.Orders/Get",
            None,
            Code::Unauthenticated,
            "CREDENTIALS_MISSING",
        ),
        (
            "/orders.Orders/Get",
            Some("a.b.c"),
            Code::Unauthenticated,
            "TOKEN_INVALID",
        ),
        (
            "/admin/Get",
            token,
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
    ] {
        let status = call(path, token).await.unwrap_err();
        let info = tonic_types::StatusExt::get_error_details(&status);
        let info = info.error_info().expect("our details");
        assert_eq!(
            (status.code(), &*info.reason, &*info.domain),
            (code, reason, "countersign")
        );
        assert!(!status.message().is_empty());
    }
    assert!(envoy.upstream.take().is_empty());
    // The service behind answers for itself.
    let status = call("/orders.Orders/Get", token).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(
        envoy.upstream.take_one().one("x-countersign-subject"),
        person.user_id
    );
}

/// A person of a node whose clock is the machine's, as Envoy's is.
async fn person_of(client: &Client, email: &str) -> v1::TokenPair {
    let request = v1::RegisterRequest {
        email: email.to_owned(),
        password: world::PASSWORD.to_owned(),
        ..Default::default()
    };
    register(client, request).await.unwrap();
    world::login(client, email, world::PASSWORD).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_checks_tokens_itself_by_our_keys_and_hears_of_no_logout() {
    for algorithm in ["EdDSA", "ES256"] {
        let program = Program::new(Kind::Sqlite)
            .await
            .set("COUNTERSIGN_ISSUER", "https://auth.example.com")
            .set("COUNTERSIGN_TOKENS__ALGORITHM", algorithm);
        let server = program.serve("node").await;
        let grpc: SocketAddr = server.address.parse().unwrap();
        let envoy = Envoy::start(JWT_AUTHN, grpc, server.http, &[]).await;
        let ana = person_of(&server.client(), "ana@example.com").await;
        let token = Some(ana.access_token.as_str());
        let authorization = format!("Bearer {}", ana.access_token);

        let headers = [&SPOOFED[..], &[("authorization", authorization.as_bytes())]].concat();
        let answer = envoy.send("GET", "/", &headers).await;
        assert_eq!(
            answer.status,
            200,
            "{algorithm}: {} {}",
            answer.body,
            envoy.log()
        );
        let seen = envoy.upstream.take_one();
        assert_eq!(seen.one("x-countersign-session"), ana.session_id);
        assert_ne!(seen.one("x-countersign-subject"), "");
        assert!(!seen.identity().contains(&"roles"), "{seen:?}");
        assert_eq!(seen.one("authorization"), "");

        assert_eq!(envoy.send("GET", "/catalog/", &SPOOFED).await.status, 200);
        assert_eq!(envoy.upstream.take_one().identity(), [""; 0]);
        let mut forged = ana.access_token.clone();
        forged.replace_range(forged.len() - 10..forged.len() - 6, "AAAA");
        for (path, token, status) in [
            ("/", None, 401),
            ("/", Some("a.b.c"), 401),
            ("/", Some(&*forged), 401),
            ("/catalog/", Some(&*forged), 401),
            ("/admin/", token, 403),
            ("/catalog/../admin/", token, 403),
        ] {
            assert_eq!(
                envoy.get(path, token).await.status,
                status,
                "{path} {token:?}"
            );
        }
        assert!(envoy.upstream.take().is_empty());
        let grant = ["user", "grant", "ana@example.com", "admin"];
        program.succeed(&grant, "");
        let again = world::login(&server.client(), "ana@example.com", world::PASSWORD).await;
        let again = again.unwrap().access_token;
        assert_eq!(envoy.get("/admin/", Some(&again)).await.status, 200);

        // What docs/envoy.md warns of.
        let mut client = server.client().with_token(&again);
        client
            .auth
            .logout(v1::LogoutRequest::default())
            .await
            .unwrap();
        let dead = crate::harness::calls::caller(&server.client(), &again).await;
        refused(dead, Code::Unauthenticated, "TOKEN_INVALID");
        assert_eq!(envoy.get("/", Some(&again)).await.status, 200);
        // Keys that were fetched outlive the node.
        drop(server);
        assert_eq!(envoy.get("/", Some(&again)).await.status, 200);
        assert_eq!(envoy.get("/", Some(&forged)).await.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_get_an_answer_and_it_is_no() {
    use countersign_proto::envoy::service::auth::v3::{
        CheckResponse, check_response::HttpResponse,
    };
    use prost::Message as _;

    let world = sqlite().await;
    let channel = &world.anonymous().channel;
    let path = "/envoy.service.auth.v3.Authorization/Check";
    for bytes in [
        &b""[..],
        b"\xff\xff\xff",
        // A header's name that is no text.
        b"\x0a\x09\x22\x07\x12\x05\x1a\x03\x0a\x01\xff",
        // Cut short.
        b"\x0a\x7f\x22",
    ] {
        let reply = rpc::call(channel, path, None, bytes.to_vec()).await;
        let reply = CheckResponse::decode(&reply.expect("an answer")[..]).unwrap();
        let Some(HttpResponse::DeniedResponse(denied)) = reply.http_response else {
            panic!("{bytes:?} passes: {reply:?}");
        };
        assert_eq!(denied.status.unwrap().code, 400);
        assert_ne!(reply.status.unwrap().code, 0);
    }
}
