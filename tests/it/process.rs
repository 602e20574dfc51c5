//! The program as a process: how it begins, what it refuses, what signals do
//! to it, and how it ends.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use countersign_proto::v1;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinSet};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    harness::{
        Client, Failure, Kind,
        binary::{Program, Server},
        database::Database,
        world,
    },
    on_both,
};

/// Slow enough to be in the middle of.
const SLOW_HASH: [(&str, &str); 2] = [
    ("COUNTERSIGN_HASHING__MEMORY_KIB", "65536"),
    ("COUNTERSIGN_HASHING__ITERATIONS", "10"),
];

pub async fn register(client: &Client, email: &str) {
    let request = v1::RegisterRequest {
        email: email.into(),
        password: world::PASSWORD.into(),
        ..Default::default()
    };
    client.clone().auth.register(request).await.unwrap();
}

async fn validate(client: &Client, token: &str) -> Result<(), Status> {
    let request = v1::ValidateTokenRequest {
        token: token.into(),
        audience: String::new(),
    };
    client
        .clone()
        .tokens
        .validate_token(request)
        .await
        .map(drop)
}

/// A call that failed, by its name.
type Failed = (String, Status);

/// One call after another until the node refuses, as a load makes them.
async fn load(
    client: Client,
    name: String,
    token: Option<String>,
    good: Arc<AtomicUsize>,
) -> Vec<Failed> {
    let mut failed = Vec::new();
    for number in 0.. {
        let id = format!("{name}-{number}");
        let outcome = if let Some(token) = &token {
            let message = v1::ValidateTokenRequest {
                token: token.clone(),
                audience: String::new(),
            };
            let request = named(message, &id);
            client
                .clone()
                .tokens
                .validate_token(request)
                .await
                .map(drop)
        } else {
            let message = v1::LoginRequest {
                identifier: "ana@example.com".into(),
                password: world::PASSWORD.into(),
                ..Default::default()
            };
            client
                .clone()
                .auth
                .login(named(message, &id))
                .await
                .map(drop)
        };
        match outcome {
            Ok(()) => drop(good.fetch_add(1, Relaxed)),
            Err(status) => failed.push((id, status)),
        }
        if failed.len() == 3 {
            break;
        }
    }
    failed
}

fn named<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    let id = id.parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    request
}

on_both! {
    async fn sigterm_drains_without_a_failed_call(program: Program) {
        // Without sampling.
        let program = program.set("COUNTERSIGN_LOG", "info,countersign=debug");
        let mut server = program.serve("server").await;
        let client = server.client();
        register(&client, "ana@example.com").await;
        let pair = world::login(&client, "ana@example.com", world::PASSWORD).await.unwrap();
        let good = Arc::new(AtomicUsize::new(0));
        let mut loads = JoinSet::new();
        for number in 0..8 {
            let token = (number % 2 == 0).then(|| pair.access_token.clone());
            let name = format!("load-{number}");
            loads.spawn(load(server.client(), name, token, Arc::clone(&good)));
        }
        while good.load(Relaxed) < 500 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Twice, as it reaches a process by itself and with its group.
        server.signal("TERM TERM");
        assert_eq!(server.end().await.code(), Some(0), "{}", server.log_end());
        let lines = server.lines();
        let begun: HashMap<&str, &str> = lines
            .iter()
            .filter(|line| line["target"] == "countersign::access")
            .filter_map(|line| Some((line["spans"][0]["correlation_id"].as_str()?, line["code"].as_str()?)))
            .collect();
        assert!(begun.len() > 500);
        // What was begun was finished, and well; what failed was never begun.
        let bad: Vec<_> = begun.iter().filter(|(_, code)| **code != "OK").collect();
        assert!(bad.is_empty(), "{bad:?}");
        assert!(!server.log().contains("stopped while calls were running"));
        let mut failed = 0;
        while let Some(of_one) = loads.join_next().await {
            for (id, status) in of_one.unwrap() {
                failed += 1;
                assert!(!begun.contains_key(&*id), "{id} was begun: {status:?}");
                // An answer of the node says UNAVAILABLE. Without one tonic had not
                // sent the call when the connection went, and has several names
                // for that: CANCELLED, INTERNAL after a GOAWAY, and UNKNOWN if the
                // connection stood in the queue of the socket that closed.
                let unsent = status.metadata().is_empty();
                assert!(unsent || status.code() == Code::Unavailable, "{status:?}");
            }
        }
        assert_eq!(failed, 24, "every load goes on until it is refused");
    }

    async fn health_says_so_first_and_what_runs_is_finished(program: Program) {
        let program = SLOW_HASH.iter().fold(program, |program, (name, value)| program.set(name, value));
        let mut server = program.serve("server").await;
        let client = server.client();
        register(&client, "ana@example.com").await;
        let mut health = HealthClient::new(client.channel.clone());
        let watched = HealthCheckRequest { service: "countersign.v1.TokenService".into() };
        let mut health = health.watch(watched).await.unwrap().into_inner();
        assert_eq!(health.message().await.unwrap().unwrap().status, 1, "SERVING");

        let running = server.client();
        let login = tokio::spawn(async move {
            world::login(&running, "ana@example.com", world::PASSWORD).await
        });
        let in_a_lane = async || {
            let (_, metrics) = server.get("/metrics").await;
            metrics.lines().any(|line| line.starts_with("countersign_hash_queue_depth 1"))
        };
        while !in_a_lane().await {
            assert!(!login.is_finished(), "too quick to be in the middle of");
        }
        server.signal("TERM");
        // Health flips while the login is still being worked on.
        assert_eq!(health.message().await.unwrap().unwrap().status, 2, "NOT_SERVING");
        let (status, body) = server.get("/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains("\"draining\":true"), "{body}");
        assert_eq!(server.get("/livez").await.0, 200);
        assert!(!login.is_finished(), "too quick to see what came first");
        // Nobody new is let in.
        let late = validate(&server.client(), "x").await.unwrap_err();
        assert_eq!(late.code(), Code::Unavailable, "{late:?}");
        login.await.unwrap().expect("what ran is finished");
        drop(health);
        assert_eq!(server.end().await.code(), Some(0), "{}", server.log_end());
    }

    async fn a_second_signal_ends_it_at_once(program: Program) {
        let mut server = program.serve("server").await;
        // A call that nobody ends: it would be waited for.
        let mut health = HealthClient::new(server.client().channel);
        let mut health = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        health.message().await.unwrap();
        server.signal("TERM");
        server.until("it stops", |server| server.log().contains("a second signal ends it")).await;
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert!(!server.has_ended(), "did not wait for the call: {}", server.log_end());
        let begun = Instant::now();
        server.signal("INT");
        let status = server.end().await;
        assert_eq!(status.code(), Some(1), "{}", server.log_end());
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(server.log().contains("ended at once"));
    }

    async fn the_log_level_is_read_again_on_a_hangup(program: Program) {
        let file = program.folder().join("countersign.toml");
        fs::write(&file, "[telemetry]\nlevel = \"warn,countersign=info\"\n").unwrap();
        let mut server = program.serve("server").await;
        let quiet = server.client();
        validate(&quiet, "x").await.unwrap_err();
        validate(&quiet, "x").await.unwrap_err();
        let debug_lines = |server: &Server| {
            let lines = server.lines();
            lines.iter().filter(|line| line["level"] == "DEBUG").count()
        };
        assert_eq!(debug_lines(&server), 0);
        fs::write(&file, "[telemetry]\nlevel = \"debug\"\n").unwrap();
        server.signal("HUP");
        server.until("read again", |server| server.log().contains("was read again")).await;
        for _ in 0..3 {
            validate(&quiet, "x").await.unwrap_err();
        }
        server.until("talkative", |server| debug_lines(server) > 0).await;
        // A configuration that cannot be used changes nothing, and is said.
        fs::write(&file, "[telemetry]\nlevle = \"warn\"\n").unwrap();
        server.signal("HUP");
        server.until("said so", |server| server.log().contains("the configuration is not read again")).await;
        let before = debug_lines(&server);
        for _ in 0..3 {
            validate(&quiet, "x").await.unwrap_err();
        }
        server.until("still talkative", |server| debug_lines(server) > before).await;
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

mod on_sqlite_alone_as_it_is_about_its_file {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        let program = Program::bare(Database::create(Kind::Sqlite).await);
        let mut server = program.serve("first").await;
        let data = program.folder().join("data");
        assert_eq!(mode(&data), 0o700);
        for file in fs::read_dir(&data).unwrap() {
            let path = file.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        assert!(data.join("countersign.db").exists() && data.join("master.key").exists());
        let said = server.log();
        for words in [
            "countersign.db",
            "master.key  (0600)",
            "grpcurl",
            "AuthService/Register",
        ] {
            assert!(
                said.contains(words) || words == "countersign.db",
                "no {words} in {said}"
            );
        }
        register(&server.client(), "ana@example.com").await;

        // Another one on the same file: refused, and the first goes on.
        let refused = program.fail(&["serve"], "");
        assert!(
            refused.contains("is in use by another countersign"),
            "{refused}"
        );
        world::login(&server.client(), "ana@example.com", world::PASSWORD)
            .await
            .unwrap();
        server.signal("TERM");
        assert_eq!(server.end().await.code(), Some(0));

        // The second start makes nothing and has nothing to explain.
        let key = fs::read(data.join("master.key")).unwrap();
        let server = program.serve("second").await;
        assert!(
            server.log().lines().all(|line| line.starts_with('{')),
            "{}",
            server.log()
        );
        assert_eq!(fs::read(data.join("master.key")).unwrap(), key);
        world::login(&server.client(), "ana@example.com", world::PASSWORD)
            .await
            .unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn binds_loopback_by_default() {
        // The ports of the defaults may be taken; what they are is enough.
        let program = Program::bare(Database::create(Kind::Sqlite).await)
            .set("COUNTERSIGN_LISTEN", "")
            .set("COUNTERSIGN_HTTP_LISTEN", "");
        let shown = program.succeed(&["check-config"], "");
        for line in [
            "listen.address = \"127.0.0.1:50051\"",
            "http.address = \"127.0.0.1:8081\"",
            "data_dir = \"./data\"",
            "profile = \"development\"",
        ] {
            assert!(shown.contains(line), "no {line} in {shown}");
        }
    }

    /// Each thing that production lacks, and the words that say how to mend it.
    #[expect(clippy::too_many_lines, reason = "a table of what may be missing")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn production_refuses_to_start_until_nothing_is_missing() {
        let folder = Database::create(Kind::Sqlite).await;
        let key = folder.folder.path().join("the.key");
        fs::write(&key, "qT5uO8yHc2m3F0vXw9kBzR7eJ1aLsN4dGpYiV6xEoUo=\n").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let whole = [
            ("COUNTERSIGN_PROFILE", "production"),
            ("COUNTERSIGN_ISSUER", "https://auth.example.com"),
            ("COUNTERSIGN_MASTER_KEY_FILE", key.to_str().unwrap()),
        ];
        let mut program = Program::bare(folder).on_its_database();
        for (name, value) in whole {
            program = program.set(name, value);
        }
        let weak = program.folder().join("weak.key");
        fs::write(&weak, format!("{}\n", "0".repeat(64))).unwrap();
        fs::set_permissions(&weak, fs::Permissions::from_mode(0o600)).unwrap();
        let open = program.folder().join("open.key");
        fs::copy(&key, &open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        for (name, value, words) in [
            ("COUNTERSIGN_ISSUER", "", &["`issuer`", "https URL"][..]),
            (
                "COUNTERSIGN_ISSUER",
                "http://auth.example.com",
                &["`issuer`", "https URL"],
            ),
            (
                "COUNTERSIGN_MASTER_KEY_FILE",
                "",
                &["`master_key_file`", "head -c 32 /dev/urandom"],
            ),
            (
                "COUNTERSIGN_MASTER_KEY_FILE",
                "/nowhere/key",
                &["`master_key_file`", "/nowhere/key cannot be read"],
            ),
            (
                "COUNTERSIGN_MASTER_KEY_FILE",
                weak.to_str().unwrap(),
                &["is not random", "head -c 32"],
            ),
            (
                "COUNTERSIGN_MASTER_KEY_FILE",
                open.to_str().unwrap(),
                &["chmod 600"],
            ),
            (
                "COUNTERSIGN_LISTEN",
                "0.0.0.0:0",
                &[
                    "listen.tls_certificate_file",
                    "listen.plaintext_behind_mesh",
                ],
            ),
            (
                "COUNTERSIGN_HTTP_LISTEN",
                "0.0.0.0:0",
                &["`http.address`", "listen.plaintext_behind_mesh"],
            ),
            (
                "COUNTERSIGN_LIMITS__RATE_LIMITS_ENABLED",
                "false",
                &["limits.rate_limits_enabled", "`profile` = testing"],
            ),
            (
                "COUNTERSIGN_HASHING__MEMORY_KIB",
                "8",
                &["hashing.memory_kib", "19456 with 2"],
            ),
            (
                "COUNTERSIGN_DATABASE_URL",
                "postgres://a:b@db.example.com/x",
                &["`database.url`", "?sslmode=require"],
            ),
            (
                "COUNTERSIGN_DATABASE_URL",
                "countersign.db",
                &["database.url", "sqlite://"],
            ),
            (
                "COUNTERSIGN_LISSEN",
                "127.0.0.1:1",
                &["COUNTERSIGN_LISSEN", "COUNTERSIGN_LISTEN"],
            ),
        ] {
            let database = Database {
                folder: tempfile::tempdir().unwrap(),
                kind: Kind::Sqlite,
                url: program.database.url.clone(),
            };
            let mut faulty = Program::bare(database).on_its_database();
            for (name, value) in whole {
                faulty = faulty.set(name, value);
            }
            let said = faulty.set(name, value).fail(&["serve"], "");
            for word in words {
                assert!(said.contains(word), "{name}={value}: no {word} in {said}");
            }
        }
        let server = program.serve("server").await;
        assert!(
            !server.log().contains("begins here"),
            "a banner in production"
        );
        // No reflection unless asked for.
        let mut reflection =
            tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
                server.client().channel,
            );
        let nothing = futures_util::stream::empty();
        let refused = reflection
            .server_reflection_info(nothing)
            .await
            .unwrap_err();
        assert_eq!(Failure::from(&refused).reason, "METHOD_UNKNOWN");
    }
}

/// A certificate of its own, in two files.
pub fn certify(folder: &Path, name: &str) -> rustls::pki_types::CertificateDer<'static> {
    let made =
        rcgen::generate_simple_self_signed([name.to_owned(), "localhost".to_owned()]).unwrap();
    fs::write(folder.join("chain.pem"), made.cert.pem()).unwrap();
    let key = folder.join("key.pem");
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    made.cert.der().clone()
}

/// Whether the server shows just this certificate, to a client that speaks
/// HTTP/2.
async fn shows(server: &Server, certificate: &rustls::pki_types::CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(&server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    match connector.connect(name, stream).await {
        Ok(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        Err(_) => false,
    }
}

on_both! {
    async fn tls_is_served_and_a_new_certificate_is_taken_up(program: Program) {
        let folder = program.folder().to_owned();
        let first = certify(&folder, "first.example.com");
        let program = program
            .set("COUNTERSIGN_LISTEN__TLS_CERTIFICATE_FILE", folder.join("chain.pem").to_str().unwrap())
            .set("COUNTERSIGN_LISTEN__TLS_KEY_FILE", folder.join("key.pem").to_str().unwrap())
            .set("COUNTERSIGN_LISTEN__TLS_RELOAD_SECONDS", "1");
        let mut server = program.serve("server").await;
        assert!(shows(&server, &first).await);
        // A real client through it; none in plaintext.
        let grpcurl = std::env::var_os("COUNTERSIGN_TEST_GRPCURL").expect("run the tests by scripts/test");
        let mut command = Command::new(grpcurl);
        command
            .arg("-cacert")
            .arg(folder.join("chain.pem"))
            .args(["-servername", "localhost", "-d", "{}", &server.address])
            .arg("countersign.v1.TokenService/GetJwks");
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\"keys\""), "{output:?}");
        assert!(validate(&server.client(), "x").await.is_err());

        let second = certify(&folder, "second.example.com");
        server.until("reloaded", |server| server.log().contains("the TLS certificate was reloaded")).await;
        assert!(shows(&server, &second).await);
        assert!(!shows(&server, &first).await);
        // Half a certificate is not taken up.
        fs::write(folder.join("chain.pem"), "nonsense").unwrap();
        server.until("said so", |server| server.lines().iter().any(|line| line["level"] == "ERROR")).await;
        assert!(shows(&server, &second).await);
    }
}
