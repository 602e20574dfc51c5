//! Every call has one name, by which it is found: in what the caller gets,
//! whatever became of the call, and on every line that it put in the log,
//! wherever that line was written.

use std::{
    collections::BTreeMap,
    panic,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use countersign::{
    app::{self, Seams},
    domain::{Call, Entropy},
    telemetry::{self, Telemetry},
};
use countersign_proto::v1;
use countersign_verifier::Clock;
use jiff::Timestamp;
use serde_json::Value;
use tokio::runtime::Handle;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Client, World,
        binary::Program,
        clock::{MockClock, Seeded},
        database::Database,
        logs, world,
    },
    on_both,
};

/// A trace as the W3C recommendation's own example has it.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A request with these headers.
fn request<T>(message: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// A name that no other call of this process has.
fn new_id(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("it-{what}-{}", NUMBER.fetch_add(1, Relaxed))
}

fn login(identifier: &str, password: &str) -> v1::LoginRequest {
    v1::LoginRequest {
        identifier: identifier.into(),
        password: password.into(),
        ..Default::default()
    }
}

fn validate(token: &str) -> v1::ValidateTokenRequest {
    v1::ValidateTokenRequest {
        token: token.into(),
        audience: String::new(),
    }
}

/// What a caller is told about its call.
#[derive(Debug)]
struct Told {
    code: Code,
    reason: String,
    /// `x-request-id` of the response.
    id: String,
    /// RequestInfo; none on success.
    in_details: Option<String>,
}

impl<T> From<Result<Response<T>, Status>> for Told {
    fn from(result: Result<Response<T>, Status>) -> Self {
        let id = |metadata: &tonic::metadata::MetadataMap| {
            let ids: Vec<_> = metadata.get_all("x-request-id").iter().collect();
            assert_eq!(ids.len(), 1, "{metadata:?}");
            ids[0].to_str().unwrap().to_owned()
        };
        match result {
            Ok(response) => Self {
                code: Code::Ok,
                reason: String::new(),
                id: id(response.metadata()),
                in_details: None,
            },
            Err(status) => {
                let details = status.get_error_details();
                let info = details.request_info().expect("RequestInfo");
                Self {
                    code: status.code(),
                    reason: details.error_info().expect("ErrorInfo").reason.clone(),
                    id: id(status.metadata()),
                    in_details: Some(info.request_id.clone()),
                }
            }
        }
    }
}

/// The lines of the log of the call of this name, which all carry it.
fn lines_of(id: &str) -> Vec<Value> {
    let lines = logs::lines();
    let about = lines.iter().filter(|line| line.contains(id));
    let lines = about.map(|line| serde_json::from_str(line).expect("JSON"));
    // Randomness is seeded: the trace of a call in another test may have this id.
    let anothers = |line: &Value| {
        let span = &line["spans"][0];
        span["trace_id"] == id && span["correlation_id"] != id
    };
    let lines: Vec<Value> = lines.filter(|line| !anothers(line)).collect();
    for line in &lines {
        assert_eq!(line["spans"][0]["correlation_id"], id, "{line}");
        let trace = line["spans"][0]["trace_id"].as_str().expect("a trace id");
        assert_eq!(trace.len(), 32, "{line}");
    }
    lines
}

/// The call's one line in the access log.
#[track_caller]
fn access_line(id: &str) -> Value {
    let mut lines = lines_of(id);
    lines.retain(|line| line["target"] == "countersign::access");
    assert_eq!(lines.len(), 1, "{id}: {lines:?}");
    lines.remove(0)
}

/// That a call ended so, and that it is named alike everywhere.
#[track_caller]
fn assert_named(told: impl Into<Told>, id: &str, code: Code, reason: &str, rpc: &str) {
    let told = told.into();
    assert_eq!((told.code, &*told.reason), (code, reason), "{id}");
    assert_eq!(told.id, id);
    if code != Code::Ok {
        assert_eq!(told.in_details.as_deref(), Some(id));
    }
    let line = access_line(id);
    assert_eq!(line["rpc"], rpc, "{line}");
    assert_eq!(
        line["reason"].as_str().unwrap_or_default(),
        reason,
        "{line}"
    );
    for cost in ["duration_ms", "db_ms", "queries", "hash_wait_ms", "hash_ms"] {
        assert!(line[cost].is_number(), "no {cost}: {line}");
    }
}

const LOGIN: &str = "countersign.v1.AuthService/Login";
const REGISTER: &str = "countersign.v1.AuthService/Register";
const VALIDATE: &str = "countersign.v1.TokenService/ValidateToken";
const LIST_USERS: &str = "countersign.v1.UserService/ListUsers";

on_both! {
    async fn every_outcome_names_its_call(world: World) {
        let ana = world.person().await;
        let nobody = world.anonymous();

        let id = new_id("ok");
        let told = nobody.clone().auth
            .login(request(login(&ana.email, world::PASSWORD), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::Ok, "", LOGIN);
        let line = access_line(&id);
        assert_eq!(line["code"], "OK");
        assert!(line["queries"].as_u64().unwrap() > 0, "{line}");
        assert!(line["db_ms"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["hash_ms"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["duration_ms"].as_f64() >= line["hash_ms"].as_f64(), "{line}");
        assert_eq!(line["peer"], "127.0.0.1");
        // Written on a thread that hashes.
        let on_a_lane = |line: &Value| line["target"] == "countersign::crypto::lanes";
        assert!(lines_of(&id).iter().any(on_a_lane), "{:?}", lines_of(&id));

        let id = new_id("memory");
        let told = nobody.clone().tokens
            .validate_token(request(validate(&ana.tokens.access_token), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::Ok, "", VALIDATE);
        let line = access_line(&id);
        assert_eq!((&line["queries"], &line["db_ms"]), (&0.into(), &(0.0).into()));

        let id = new_id("refused");
        let bad = v1::RegisterRequest::default();
        let told = nobody.clone().auth.register(request(bad, &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::InvalidArgument, "INVALID_REQUEST", REGISTER);

        let id = new_id("wrong");
        let told = nobody.clone().auth
            .login(request(login(&ana.email, "not the password, no"), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::Unauthenticated, "LOGIN_FAILED", LOGIN);

        let id = new_id("anonymous");
        let told = nobody.clone().users
            .list_users(request(v1::ListUsersRequest::default(), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::Unauthenticated, "CREDENTIALS_MISSING", LIST_USERS);

        let id = new_id("denied");
        let told = ana.client.clone().users
            .list_users(request(v1::ListUsersRequest::default(), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::PermissionDenied, "PERMISSION_DENIED", LIST_USERS);

        let id = new_id("conflict");
        let taken = v1::RegisterRequest {
            email: ana.email.clone(),
            password: world::PASSWORD.into(),
            ..Default::default()
        };
        let told = nobody.clone().auth.register(request(taken, &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::AlreadyExists, "EMAIL_TAKEN", REGISTER);

        let id = new_id("oversize");
        let huge = validate(&"x".repeat(5 << 20));
        let told = nobody.clone().tokens
            .validate_token(request(huge, &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::ResourceExhausted, "REQUEST_TOO_LARGE", VALIDATE);

        // An RPC of a service that is not there: reached by its path.
        let id = new_id("unknown");
        let mut grpc = tonic::client::Grpc::new(nobody.channel.clone());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/nobody.Service/Call");
        let codec = tonic_prost::ProstCodec::<v1::LoginRequest, v1::LoginResponse>::default();
        let told = grpc
            .unary(request(v1::LoginRequest::default(), &[("x-request-id", &id)]), path, codec)
            .await;
        assert_named(told, &id, Code::Unimplemented, "METHOD_UNKNOWN", "unknown");
    }

    async fn calls_that_are_turned_away_are_named_too(world: World) {
        let core = world.node.running.core();
        let mut held = Vec::new();
        while let Ok(ticket) = core.lanes.ticket(&Call::internal("test")) {
            held.push(ticket);
        }
        let id = new_id("shed");
        let told = world.anonymous().auth
            .login(request(login("ana@example.com", world::PASSWORD), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::ResourceExhausted, "OVERLOADED", LOGIN);
        assert_eq!(access_line(&id)["queries"], 0, "a shed call costs no query");
        drop(held);

        let breaker = core.store.breaker();
        while let Ok(permit) = breaker.permit() {
            permit.failure();
        }
        let id = new_id("broken");
        let told = world.anonymous().auth
            .login(request(login("ana@example.com", world::PASSWORD), &[("x-request-id", &id)])).await;
        assert_named(told, &id, Code::Unavailable, "DEPENDENCY_UNAVAILABLE", LOGIN);
        assert_eq!(access_line(&id)["queries"], 0);

        let limited = World::with(world.database.kind, |config| {
            config.limits.rate_limits_enabled = true;
            config.limits.login_per_minute = 1;
            config.limits.concurrency.stream = 1;
        }).await;
        let attempt = |id: &str| request(
            login("ana@example.com", world::PASSWORD),
            &[("x-request-id", id)],
        );
        let first = limited.anonymous().auth.login(attempt(&new_id("first"))).await;
        assert_eq!(Told::from(first).reason, "LOGIN_FAILED");
        let id = new_id("limited");
        let told = limited.anonymous().auth.login(attempt(&id)).await;
        assert_named(told, &id, Code::ResourceExhausted, "RATE_LIMITED", LOGIN);

        let mut health = HealthClient::new(limited.anonymous().channel);
        let _watching = health.watch(HealthCheckRequest::default()).await.unwrap();
        let id = new_id("full");
        let told = health
            .watch(request(HealthCheckRequest::default(), &[("x-request-id", &id)]))
            .await;
        assert_named(
            told, &id, Code::ResourceExhausted, "OVERLOADED", "grpc.health.v1.Health/Watch",
        );
    }

    async fn an_id_of_a_good_form_is_taken_over_and_another_replaced(world: World) {
        let longest = "x".repeat(64);
        for (name, given) in [("a", "a"), ("mixed", "A.b_c-d:9"), ("longest", &longest)] {
            let told = world.anonymous().tokens
                .validate_token(request(validate(name), &[("x-request-id", given)])).await;
            assert_eq!(Told::from(told).id, given, "{name}");
        }
        let too_long = "x".repeat(65);
        let bad: [&[(&'static str, &str)]; 6] = [
            &[],
            &[("x-request-id", "")],
            &[("x-request-id", &too_long)],
            &[("x-request-id", "a b")],
            &[("x-request-id", "a\"}{\"level\":\"ERROR")],
            &[("x-request-id", "one"), ("x-request-id", "two")],
        ];
        let mut made = Vec::new();
        for headers in bad {
            let told = Told::from(
                world.anonymous().tokens.validate_token(request(validate("x"), headers)).await,
            );
            let id = told.id;
            assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{headers:?}: {id}");
            assert_eq!(told.in_details.as_deref(), Some(&*id));
            // Randomness is seeded: another test may have made the same one.
            assert!(!lines_of(&id).is_empty());
            assert!(!made.contains(&id));
            made.push(id);
        }
    }

    async fn a_trace_goes_on_if_its_form_is_good_and_begins_here_otherwise(world: World) {
        let trace_of = async |parents: &[&str]| {
            let id = new_id("trace");
            let mut headers = vec![("x-request-id", &*id)];
            headers.extend(parents.iter().map(|parent| ("traceparent", *parent)));
            let told = world.anonymous().tokens
                .validate_token(request(validate("x"), &headers)).await;
            assert_eq!(Told::from(told).id, id);
            access_line(&id)["spans"][0]["trace_id"].as_str().unwrap().to_owned()
        };
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(trace_of(&[&good]).await, TRACE);
        let upper = good.to_uppercase();
        let short = &good[..good.len() - 1];
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        for bad in [&[][..], &[&*upper], &[short], &[&*zero], &["garbage"], &[&*good, &*good]] {
            let trace = trace_of(bad).await;
            assert_eq!(trace.len(), 32);
            assert_ne!(trace, TRACE, "{bad:?}");
            assert_ne!(trace, "0".repeat(32), "{bad:?}");
        }
    }

    async fn what_the_work_runtime_logs_names_the_call(world: World) {
        let ana = world.person().await;
        let refresh = |token: &str, id: &str| {
            let message = v1::RefreshRequest { refresh_token: token.into(), ..Default::default() };
            request(message, &[("x-request-id", id)])
        };
        let first = &ana.tokens.refresh_token;
        world.anonymous().auth.refresh(refresh(first, &new_id("first"))).await.unwrap();
        world.clock.advance(Duration::from_secs(31));
        let id = new_id("theft");
        let told = world.anonymous().auth.refresh(refresh(first, &id)).await;
        assert_named(
            told, &id, Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
            "countersign.v1.AuthService/Refresh",
        );
        let lines = lines_of(&id);
        let warned = |line: &Value| line["level"] == "WARN" && line["target"] == "countersign::service::refresh";
        assert!(lines.iter().any(warned), "{lines:?}");
    }

    async fn a_panic_fails_its_call_which_is_named_and_nothing_else(world: World) {
        log_panics();
        let faulty = Arc::new(Faulty {
            armed: AtomicBool::new(false),
            clock: MockClock::new(),
            entropy: Seeded::new(99),
        });
        let node = node_that_panics(&world, &faulty).await;
        let client = Client::new(connect(&node), None);
        let ana = v1::RegisterRequest {
            email: "ana@example.com".into(),
            password: world::PASSWORD.into(),
            ..Default::default()
        };
        client.clone().auth.register(ana.clone()).await.unwrap();
        let tokens = world::login(&client, &ana.email, world::PASSWORD).await.unwrap();
        faulty.armed.store(true, Relaxed);
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        // In a handler of the serving runtime: verifying reads the clock.
        let id = new_id("panic-clock");
        let told = client.clone().tokens
            .validate_token(request(
                validate(&tokens.access_token),
                &[("x-request-id", &id), ("traceparent", &parent)],
            )).await;
        assert_named(told, &id, Code::Internal, "INTERNAL", VALIDATE);
        assert_panic_logged(&id, "the clock");
        // In work for a call: a new account needs an id.
        let id = new_id("panic-entropy");
        let told = client.clone().auth
            .login(request(
                login(&ana.email, world::PASSWORD),
                &[("x-request-id", &id), ("traceparent", &parent)],
            )).await;
        assert_named(told, &id, Code::Internal, "INTERNAL", LOGIN);
        assert_panic_logged(&id, "the entropy");
        // A layer that answers without either still does.
        let id = new_id("panic-not");
        let told = client.clone().users
            .list_users(request(
                v1::ListUsersRequest::default(),
                &[("x-request-id", &id), ("traceparent", &parent)],
            )).await;
        assert_named(told, &id, Code::Unauthenticated, "CREDENTIALS_MISSING", LIST_USERS);
        node.process().abort();
    }
}

#[track_caller]
fn assert_panic_logged(id: &str, what: &str) {
    let lines = lines_of(id);
    let panicked = lines.iter().filter(|line| line["message"] == "panicked");
    let panicked: Vec<_> = panicked.collect();
    assert_eq!(panicked.len(), 1, "{lines:?}");
    let text = panicked[0]["what"].as_str().unwrap();
    assert!(text.contains(what), "{text}");
    assert!(
        panicked[0]["place"]
            .as_str()
            .unwrap()
            .contains("correlation.rs")
    );
}

/// Panics are logged as `serve` logs them, and printed as tests print them.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        telemetry::log_panics();
        let log = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            log(info);
            print(info);
        }));
    });
}

/// A clock and an entropy that fail whoever uses them for a call.
#[derive(Debug)]
struct Faulty {
    armed: AtomicBool,
    clock: MockClock,
    entropy: Seeded,
}

impl Faulty {
    fn fail_a_call(&self, what: &str) {
        let span = tracing::Span::current();
        let in_call = span.metadata().is_some_and(|span| span.name() == "call");
        assert!(
            !(in_call && self.armed.load(Relaxed)),
            "{what} fails on purpose"
        );
    }
}

impl Clock for Faulty {
    fn now(&self) -> Timestamp {
        self.fail_a_call("the clock");
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

impl Entropy for Faulty {
    fn fill(&self, buffer: &mut [u8]) {
        self.fail_a_call("the entropy");
        self.entropy.fill(buffer);
    }
}

/// A node on a database of its own.
async fn node_that_panics(world: &World, faulty: &Arc<Faulty>) -> app::Node {
    let database = Database::create(world.database.kind).await;
    let mut config = world.config.clone();
    config.database.url.clone_from(&database.url);
    let seams = Seams {
        clock: faulty.clone(),
        entropy: faulty.clone(),
    };
    let telemetry = Telemetry::install_to(&config.telemetry, logs::writer()).unwrap();
    let master_key = world::MASTER_KEY.parse().unwrap();
    let node = app::Node::start(&config, &master_key, seams, &telemetry, &Handle::current()).await;
    let node = node.unwrap();
    node.ready().await.unwrap();
    node
}

fn connect(node: &app::Node) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(format!("http://{}", node.process().address()))
        .unwrap()
        .connect_lazy()
}

/// What a node says on its own account.
const BACKGROUND: &[&str] = &[
    "serving",
    "health",
    "created the first signing key",
    "ready: keys and revocations are loaded",
    "listening for changes of the trust log",
    "the audit log is chained",
    "the hash lanes begin",
];

on_both! {
    /// In a process of its own, where no other test logs, no line of ours is
    /// without a name.
    async fn every_line_has_a_name(program: Program) {
    let program = program.set("COUNTERSIGN_LOG", "info,countersign=trace");
    let server = program.serve("server").await;
    let mut client = server.client();
    let mut given = BTreeMap::new();
    let mut next = |what: &'static str| {
        let id = format!("line-{what}");
        given.insert(id.clone(), 0);
        id
    };
    let email = "ana@example.com";
    let register = v1::RegisterRequest {
        email: email.into(),
        password: world::PASSWORD.into(),
        ..Default::default()
    };
    let id = next("register");
    client.auth.register(request(register.clone(), &[("x-request-id", &id)])).await.unwrap();
    let id = next("taken");
    client.auth.register(request(register, &[("x-request-id", &id)])).await.unwrap_err();
    let id = next("wrong");
    let wrong = login(email, "not the password, no");
    client.auth.login(request(wrong, &[("x-request-id", &id)])).await.unwrap_err();
    let id = next("login");
    let right = login(email, world::PASSWORD);
    let reply = client.auth.login(request(right, &[("x-request-id", &id)])).await.unwrap();
    let Some(v1::login_response::Result::Tokens(pair)) = reply.into_inner().result else {
        panic!("no tokens")
    };
    let mut ana = client.with_token(&pair.access_token);
    let id = next("whoami");
    ana.auth.who_am_i(request(v1::WhoAmIRequest {}, &[("x-request-id", &id)])).await.unwrap();
    let id = next("sessions");
    let all = v1::ListSessionsRequest::default();
    ana.sessions.list_sessions(request(all, &[("x-request-id", &id)])).await.unwrap();
    let id = next("refresh");
    let refresh = v1::RefreshRequest { refresh_token: pair.refresh_token, audiences: vec![] };
    client.auth.refresh(request(refresh, &[("x-request-id", &id)])).await.unwrap();
    let id = next("denied");
    let users = v1::ListUsersRequest::default();
    ana.users.list_users(request(users, &[("x-request-id", &id)])).await.unwrap_err();
    let id = next("logout");
    let leave = v1::LogoutRequest::default();
    ana.auth.logout(request(leave, &[("x-request-id", &id)])).await.unwrap();
    let id = next("revoked");
    let gone = validate(&pair.access_token);
    client.tokens.validate_token(request(gone, &[("x-request-id", &id)])).await.unwrap_err();

    for line in server.lines() {
        let target = line["target"].as_str().unwrap_or_default();
        if !target.starts_with("countersign") || BACKGROUND.iter().any(|m| line["message"] == *m) {
            continue;
        }
        let id = line["spans"][0]["correlation_id"].as_str();
        let id = id.unwrap_or_else(|| panic!("a line without a name: {line}"));
        let count = given.get_mut(id).unwrap_or_else(|| panic!("another's line: {line}"));
        *count += 1;
    }
    assert!(given.values().all(|lines| *lines > 0), "{given:?}");
}
}
