//! The tower layer: what reaches the service behind it, and what is answered to the rest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Response, StatusCode};
use countersign_verifier::layer::{
    Guard, GuardCounts, GuardLayer, Require, Routes, STALENESS, Staleness,
};
use countersign_verifier::{ApiKey, Caller, Policy, Subject, Verifier};
use jiff::Timestamp;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::minting::{
    MockClock, SESSION, USER, api_key, good_token, secret, trust_state, verifier, with,
};

const HOUR: Duration = Duration::from_hours(1);
pub(crate) const BEARER: &str = "authorization";

/// A service that answers with what it has been shown, behind a guard.
struct House {
    verifier: Arc<Verifier>,
    clock: Arc<MockClock>,
    guard: GuardLayer,
}

/// What the service was shown of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shown {
    caller: Option<Arc<Caller>>,
    staleness: Option<Duration>,
    credentials: usize,
    /// False if the service was not reached at all.
    reached: bool,
}

impl House {
    fn new(routes: Routes) -> Self {
        Self::with(routes, |guard| guard.audience("orders"))
    }

    fn with(routes: Routes, set: impl FnOnce(GuardLayer) -> GuardLayer) -> Self {
        let (verifier, clock) = verifier();
        let verifier = Arc::new(verifier);
        let guard = GuardLayer::new(Arc::clone(&verifier), routes).unwrap();
        Self {
            verifier,
            clock,
            guard: set(guard),
        }
    }

    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response<Shown> {
        ask(&self.guard, path, headers)
    }

    fn status(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        let response = self.ask(path, headers);
        assert_eq!(response.body().reached, response.status() == 200);
        response.status().as_u16()
    }
}

pub(crate) fn ask(guard: &GuardLayer, path: &str, headers: &[(&str, &str)]) -> Response<Shown> {
    let service = guard.layer(service_fn(async |request: Request<()>| {
        let extensions = request.extensions();
        Ok::<_, Infallible>(Response::new(Shown {
            caller: extensions.get().cloned(),
            staleness: extensions.get().map(|Staleness(age)| *age),
            credentials: request.headers().get_all(BEARER).iter().count(),
            reached: true,
        }))
    }));
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    wait(service, request.body(()).unwrap())
}

fn wait<S>(service: Guard<S>, request: Request<()>) -> Response<Shown>
where
    S: Service<Request<()>, Response = Response<Shown>, Error = Infallible>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let answer = runtime.unwrap().block_on(service.oneshot(request));
    answer.unwrap_or_else(|never| match never {})
}

pub(crate) fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn header<'a>(response: &'a Response<Shown>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|it| it.to_str().unwrap())
}

#[test]
fn a_good_credential_becomes_a_caller_and_goes_no_further() {
    let house = House::new(Routes::default().prefix("/orders", Require::caller()));
    house.clock.advance_monotonic(1500);
    let good = bearer(&good_token());
    let shown = house.ask("/orders/7?x=1", &[(BEARER, &good)]).into_body();
    let caller = shown.caller.unwrap();
    assert_eq!(caller.subject, Subject::User(USER));
    assert_eq!(shown.staleness, Some(Duration::from_millis(1500)));
    assert_eq!(shown.credentials, 0);
    // The very one that the verifier keeps.
    let again = house.verifier.verify(&good_token(), None).unwrap();
    assert!(Arc::ptr_eq(&caller, &again));

    let keeping = House::with(
        Routes::default().otherwise(Require::caller()),
        GuardLayer::keep_credential,
    );
    let shown = keeping.ask("/orders", &[(BEARER, &good)]).into_body();
    assert_eq!((shown.credentials, shown.caller.is_some()), (1, true));
}

#[test]
fn only_exactly_one_good_bearer_token_passes() {
    let house = House::new(Routes::default().otherwise(Require::caller()));
    let good = bearer(&good_token());
    for scheme in ["Bearer", "bearer", "BEARER  "] {
        let value = format!("{scheme} {}", good_token());
        assert_eq!(house.status("/", &[(BEARER, &value)]), 200, "{scheme}");
    }
    let other = bearer(&with(json!({}), json!({"aud": "billing"})));
    let expired = bearer(&with(json!({}), json!({"exp": 1})));
    let basic = format!("Basic {}", good_token());
    for values in [
        &[][..],
        &[(BEARER, &*basic)],
        &[(BEARER, &*good), (BEARER, &*good)],
        &[(BEARER, &*good), (BEARER, "Basic abc")],
        &[(BEARER, "Bearer")],
        &[(BEARER, "Bearer ")],
        &[(BEARER, "")],
        &[(BEARER, &good_token())],
        &[(BEARER, "Basic abc")],
        &[(BEARER, &other)],
        &[(BEARER, &expired)],
        &[("x-authorization", &*good)],
    ] {
        assert_eq!(house.status("/", values), 401, "{values:?}");
    }
    assert_eq!(
        house.guard.counts(),
        GuardCounts {
            passed: 3,
            unauthenticated: 12,
            ..GuardCounts::default()
        }
    );
}

#[test]
fn without_an_audience_those_of_the_issuer_are_taken() {
    let house = House::with(Routes::default().otherwise(Require::caller()), |guard| {
        guard
    });
    let to = |audience: &str| bearer(&with(json!({}), json!({ "aud": audience })));
    assert_eq!(house.status("/", &[(BEARER, &to("billing"))]), 200);
    assert_eq!(house.status("/", &[(BEARER, &to("elsewhere"))]), 401);
}

#[test]
fn each_route_is_enforced_and_what_is_not_listed_is_refused() {
    let house = House::new(
        Routes::default()
            .path("/healthz", Require::nothing())
            .prefix("/orders", Require::scope("orders.read"))
            .path(
                "/orders/export",
                Require::scope("orders.read").and_scope("orders.export"),
            )
            .path("/orders/clerks", Require::any_role(["boss", "clerk"]))
            .path("/orders/bosses", Require::any_role(["boss"])),
    );
    let good = bearer(&good_token());
    let key = secret(1);
    house
        .verifier
        .update(|state| state.api_keys.insert(api_key(&[(&key, None)])));
    let key = bearer(&key);
    for (path, nobody, user, api_key) in [
        ("/healthz", 200, 200, 200),
        ("/orders", 401, 200, 200),
        ("/orders/7", 401, 200, 200),
        ("/orders/export", 401, 403, 403),
        ("/orders/clerks", 401, 200, 403),
        ("/orders/bosses", 401, 403, 403),
        ("/orders-archive", 403, 403, 403),
        ("/", 403, 403, 403),
        ("/orders/../healthz", 400, 400, 400),
        ("/healthz/../orders/export", 400, 400, 400),
        ("/orders//export", 400, 400, 400),
        ("/orders/%65xport", 400, 400, 400),
        ("/orders%2Fexport", 400, 400, 400),
    ] {
        assert_eq!(house.status(path, &[]), nobody, "{path}, nobody");
        assert_eq!(house.status(path, &[(BEARER, &good)]), user, "{path}, user");
        assert_eq!(
            house.status(path, &[(BEARER, &key)]),
            api_key,
            "{path}, key"
        );
    }
}

#[test]
fn an_optional_credential_is_judged_if_it_is_there() {
    let routes = Routes::default()
        .path("/", Require::nothing_or_caller())
        .path(
            "/scoped",
            Require::nothing_or_caller().and_scope("orders.export"),
        )
        .path("/open", Require::nothing());
    let house = House::new(routes);
    let good = bearer(&good_token());
    assert_eq!(house.ask("/", &[]).into_body().caller, None);
    let shown = house.ask("/", &[(BEARER, &good)]).into_body();
    assert_eq!((shown.caller.is_some(), shown.credentials), (true, 0));
    assert_eq!(house.status("/", &[(BEARER, "Bearer bad")]), 401);
    assert_eq!(house.status("/scoped", &[(BEARER, &good)]), 403);
    assert_eq!(house.status("/scoped", &[]), 200);

    // Where nothing is asked, nothing is judged and nothing taken away.
    let shown = house.ask("/open", &[(BEARER, "Basic abc")]).into_body();
    assert_eq!(
        (shown.caller, shown.staleness, shown.credentials),
        (None, None, 1)
    );
}

#[test]
fn a_revocation_reaches_the_next_request() {
    let house = House::new(Routes::default().otherwise(Require::caller()));
    let good = bearer(&good_token());
    assert_eq!(house.status("/", &[(BEARER, &good)]), 200);
    let revoke = |state: &mut countersign_verifier::TrustState| {
        state.revocations.revoke_session(SESSION, Timestamp::MAX);
    };
    house.verifier.update(revoke);
    assert_eq!(house.status("/", &[(BEARER, &good)]), 401);
}

#[test]
fn stale_knowledge_is_refused_or_marked_as_the_route_says() {
    let house = House::new(
        Routes::default()
            .path(
                "/closed",
                Require::caller().fresh_within(Duration::from_secs(5)),
            )
            .path(
                "/open",
                Require::caller().mark_beyond(Duration::from_secs(5)),
            )
            .path("/either", Require::caller())
            .path("/free", Require::nothing()),
    );
    let good = bearer(&good_token());
    let ask = |path| house.ask(path, &[(BEARER, &good)]);
    let mark = |path| ask(path).headers().get(STALENESS).cloned();

    house.clock.advance_monotonic(5000);
    assert_eq!(ask("/closed").status(), 200);
    assert_eq!(mark("/open"), None);

    house.clock.advance_monotonic(1);
    let refused = ask("/closed");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert!(!refused.body().reached);
    // Whoever brings nothing learns nothing else.
    assert_eq!(house.status("/closed", &[]), 503);
    assert_eq!(mark("/open").unwrap(), "5");
    let shown = ask("/open").into_body();
    assert_eq!(shown.staleness, Some(Duration::from_millis(5001)));
    assert_eq!(mark("/either"), None);
    assert_eq!(ask("/free").status(), 200);

    let counts = house.guard.counts();
    assert_eq!((counts.stale_refused, counts.stale_served), (2, 2));

    house.verifier.heard();
    assert_eq!(ask("/closed").status(), 200);
    assert_eq!(mark("/open"), None);
    assert_eq!(house.guard.counts().stale_refused, 2);
}

#[test]
fn a_verifier_that_knows_nothing_lets_through_only_what_asks_nothing() {
    let clock = Arc::new(MockClock::default());
    let verifier = Arc::new(Verifier::new(clock, Policy::default()));
    let routes = Routes::default()
        .path("/", Require::caller())
        .path("/optional", Require::nothing_or_caller())
        .path("/free", Require::nothing());
    let guard = GuardLayer::new(Arc::clone(&verifier), routes).unwrap();
    for path in ["/", "/optional"] {
        for headers in [&[][..], &[(BEARER, "Bearer a.b.c")]] {
            let response = ask(&guard, path, headers);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!(header(&response, "retry-after"), Some("1"));
        }
    }
    assert_eq!(ask(&guard, "/free", &[]).status(), 200);
    assert_eq!(guard.counts().not_ready, 4);
    verifier.replace(trust_state());
    assert_eq!(ask(&guard, "/", &[]).status(), 401);
}

#[test]
fn an_http_client_is_told_how_to_authenticate() {
    let routes = Routes::default()
        .path("/", Require::scope("a").and_scope("b"))
        .path("/role", Require::any_role(["boss"]));
    let house = House::new(routes);
    let good = bearer(&good_token());
    for (path, headers, challenge) in [
        ("/", &[][..], Some(r#"Bearer realm="countersign""#)),
        (
            "/",
            &[(BEARER, "Bearer x")],
            Some(r#"Bearer realm="countersign", error="invalid_token""#),
        ),
        (
            "/",
            &[(BEARER, &good)],
            Some(r#"Bearer realm="countersign", error="insufficient_scope", scope="a b""#),
        ),
        (
            "/role",
            &[(BEARER, &good)],
            Some(r#"Bearer realm="countersign", error="insufficient_scope""#),
        ),
        ("/unlisted", &[], None),
        ("//", &[], None),
    ] {
        let response = house.ask(path, headers);
        assert_eq!(header(&response, "www-authenticate"), challenge, "{path}");
        assert_eq!(header(&response, "grpc-status"), None);
    }
}

#[test]
fn a_grpc_client_finds_a_status_with_details() {
    let routes = Routes::default()
        .prefix("/orders.v1.Orders", Require::caller())
        .path("/orders.v1.Orders/Cancel", Require::scope("x".repeat(200)))
        .path(
            "/orders.v1.Orders/Fresh",
            Require::caller().fresh_within(HOUR),
        );
    let house = House::new(routes);
    let good = bearer(&good_token());
    let status = |path: &str, headers: &[(&str, &str)]| {
        let headers = [headers, &[("content-type", "application/grpc+proto")]].concat();
        let response = house.ask(path, &headers);
        assert_eq!(response.status(), 200);
        assert!(!response.body().reached);
        assert_eq!(
            header(&response, "content-type"),
            Some("application/grpc+proto")
        );
        let status = Status::from_header_map(response.headers()).unwrap();
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.domain, "countersign");
        (status, info)
    };
    for (path, headers, code, reason, message) in [
        (
            "/orders.v1.Orders/List",
            &[][..],
            Code::Unauthenticated,
            "CREDENTIALS_MISSING",
            "send exactly one `authorization: Bearer <token>`",
        ),
        (
            "/orders.v1.Orders/List",
            &[(BEARER, "Bearer x")],
            Code::Unauthenticated,
            "TOKEN_INVALID",
            "the access token is not valid",
        ),
        (
            "/other.v1.Other/List",
            &[(BEARER, &good)],
            Code::PermissionDenied,
            "PERMISSION_DENIED",
            "nobody may do this",
        ),
        (
            "/orders.v1.Orders/../List",
            &[(BEARER, &good)],
            Code::InvalidArgument,
            "INVALID_REQUEST",
            "the path has another spelling; use that",
        ),
    ] {
        let (status, info) = status(path, headers);
        assert_eq!((status.code(), &*info.reason), (code, reason));
        assert_eq!(status.message(), message);
        assert!(info.metadata.is_empty());
        assert!(status.get_details_retry_info().is_none());
    }

    // Long enough that lengths take two bytes.
    let (lacking, info) = status("/orders.v1.Orders/Cancel", &[(BEARER, &good)]);
    assert_eq!(lacking.code(), Code::PermissionDenied);
    assert_eq!(info.metadata["scope"], "x".repeat(200));

    house.clock.advance_monotonic(3_600_001);
    let (stale, info) = status("/orders.v1.Orders/Fresh", &[(BEARER, &good)]);
    assert_eq!(
        (stale.code(), &*info.reason),
        (Code::Unavailable, "TRUST_STALE")
    );
    let retry = stale.get_details_retry_info().unwrap();
    assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
    assert_eq!(
        stale.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "1000"
    );

    let passed = house.ask("/orders.v1.Orders/List", &[(BEARER, &good)]);
    assert!(passed.body().reached);
    // Not gRPC, although it begins like it.
    let html = house.ask(
        "/orders.v1.Orders/List",
        &[("content-type", "application/json")],
    );
    assert_eq!(html.status(), 401);
}

#[test]
fn a_caller_that_somebody_else_left_in_the_request_is_not_believed() {
    let house = House::new(Routes::default().path("/", Require::nothing_or_caller()));
    let forged = house.verifier.verify(&good_token(), None).unwrap();
    let service = house.guard.layer(service_fn(async |request: Request<()>| {
        Ok::<_, Infallible>(Response::new(Shown {
            caller: request.extensions().get().cloned(),
            reached: true,
            ..Shown::default()
        }))
    }));
    let mut request = Request::builder().uri("/").body(()).unwrap();
    request.extensions_mut().insert(forged);
    let shown = wait(service, request).into_body();
    assert_eq!((shown.reached, shown.caller), (true, None));
}

#[test]
fn a_key_that_may_less_from_now_on_does_less_from_now_on() {
    let house = House::new(Routes::default().path("/", Require::scope("orders.read")));
    let text = secret(1);
    let put = |scopes: &[&str]| {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        let key = api_key(&[(&text, None)]);
        let key = ApiKey { scopes, ..key };
        house.verifier.update(|state| state.api_keys.insert(key));
    };
    put(&["orders.read"]);
    assert_eq!(house.status("/", &[(BEARER, &bearer(&text))]), 200);
    put(&[]);
    assert_eq!(house.status("/", &[(BEARER, &bearer(&text))]), 403);
}

#[test]
fn axum_and_tonic_take_the_layer() {
    let house = House::new(Routes::default().otherwise(Require::caller()));
    let handler = axum::routing::get(async || "served");
    let app = axum::Router::new()
        .route("/", handler)
        .layer(house.guard.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let asked = |token: Option<&str>| {
        let mut request = Request::builder().uri("/");
        if let Some(token) = token {
            request = request.header(BEARER, bearer(token));
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let answer = runtime.block_on(app.clone().oneshot(request));
        answer.unwrap().status()
    };
    assert_eq!(asked(None), 401);
    assert_eq!(asked(Some(&good_token())), 200);

    let (_, health) = tonic_health::server::health_reporter();
    let _router = tonic::transport::Server::builder()
        .layer(house.guard)
        .add_service(health);
}
