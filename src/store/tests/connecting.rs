//! URLs, TLS, several hosts, files.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Config, Database, TestClock, TestEntropy, call, postgres_url, users};
use crate::{
    breaker::Breaker,
    store::{SetupError, Store},
};

fn config(url: &str) -> Config {
    Config {
        url: url.to_owned(),
        ..Config::default()
    }
}

#[test]
fn only_written_out_urls_are_taken() {
    for good in [
        "sqlite://countersign.db",
        "sqlite:///var/lib/countersign/countersign.db",
        "postgres://u:p@db.example/name",
        "postgresql://u@a:1,b:2/name?target_session_attrs=read-write&sslmode=require",
    ] {
        assert_eq!(config(good).validate(), Ok(()), "{good}");
    }
    for bad in [
        "",
        "countersign.db",
        "sqlite:countersign.db",
        "sqlite://",
        "sqlite://:memory:",
        "sqlite://file:x.db",
        "sqlite://x.db?mode=ro",
        "postgress://u:hunter2@h/d",
        "mysql://u:hunter2@h/d",
        "postgres:///d?user=u",
        "postgres://u:hunter2@h/d?sslmode=verify-full",
        "postgres://u:hunter2@h/d?nonsense=hunter2",
    ] {
        let wrong = config(bad).validate().unwrap_err().join("; ");
        assert!(wrong.contains("database.url"), "{bad}: {wrong}");
        assert!(!wrong.contains("hunter2"), "{wrong}");
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let wrong = Config {
        max_connections: 0,
        acquire_timeout_ms: 900,
        ca_file: Some("ca.pem".into()),
        breaker: crate::breaker::Config {
            window_calls: 0,
            ..Default::default()
        },
        ..config("sqlite://x.db")
    }
    .validate()
    .unwrap_err()
    .join("\n");
    for key in [
        "database.max_connections",
        "database.acquire_timeout_ms",
        "database.ca_file",
        "database.breaker.window_calls",
    ] {
        assert!(wrong.contains(key), "{wrong}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let config = config("postgres://ana:hunter2@a.example:5433,b.example/db?sslmode=require");
    assert_eq!(
        config.redacted_url(),
        "postgres://ana@a.example:5433,b.example:5432/db"
    );
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn plaintext_to_another_host_is_known() {
    for (url, plaintext) in [
        ("sqlite://x.db", false),
        ("postgres://u@localhost/d", false),
        ("postgres://u@127.0.0.1/d", false),
        ("postgres://u@%2Frun%2Fpostgresql/d", false),
        ("postgres://u@db.example/d", true),
        ("postgres://u@localhost,db.example/d", true),
        ("postgres://u@db.example/d?sslmode=prefer", true),
        ("postgres://u@db.example/d?sslmode=require", false),
    ] {
        assert_eq!(config(url).may_send_plaintext(), plaintext, "{url}");
    }
}

async fn open(config: &Config) -> Result<Store, SetupError> {
    let clock = Arc::new(TestClock(0.into()));
    let breaker = Breaker::new("database", &config.breaker);
    Store::open(config, clock, Arc::new(TestEntropy::default()), breaker).await
}

mod sqlite {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_is_created_for_its_owner_only_and_a_folder_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.db");
        open(&config(&format!("sqlite://{}", path.display())))
            .await
            .unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = folder.path().join("none/new.db");
        let error = open(&config(&format!("sqlite://{}", path.display()))).await;
        assert!(matches!(error, Err(SetupError::File { .. })));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_process_that_serves_is_refused() {
        let db = Database::sqlite().await;
        db.store.lock_instance().unwrap();
        let second = db.open(|_| ()).await;
        let refused = second.lock_instance();
        assert!(matches!(refused, Err(SetupError::InUse(_))), "{refused:?}");
        // The command line still works beside it.
        second.ping().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_is_whole_while_others_write() {
        let db = Database::sqlite().await;
        let ana = db.user("ana").await;
        let to = db.folder.path().join("copy.db");
        let writing = async {
            for n in 0..20 {
                db.user(&format!("user{n}")).await;
            }
        };
        let (copied, ()) = tokio::join!(db.store.backup(&to), writing);
        copied.unwrap();
        let mode = to.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let copy = open(&config(&format!("sqlite://{}", to.display())))
            .await
            .unwrap();
        let mut conn = copy.read(&call()).await.unwrap();
        assert!(users::get(&mut conn, ana).await.unwrap().is_some());
        // It does not write over anything.
        assert!(db.store.backup(&to).await.is_err());
    }
}

mod postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_process_starts_without_it_and_says_no_password() {
        let store = open(&config("postgres://ana:hunter2@127.0.0.1:1/none"))
            .await
            .unwrap();
        let error = store.read(&call()).await.map(drop).unwrap_err();
        let text = format!("{error} {error:?} {store:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(store.backup(Path::new("x")).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_second_host_is_used_when_the_first_is_down() {
        let url = url::Url::parse(&postgres_url()).unwrap();
        let store = open(&config(&format!(
            "postgres://{}@127.0.0.1:1,127.0.0.1:{}/postgres?target_session_attrs=read-write",
            url.username(),
            url.port().unwrap()
        )))
        .await
        .unwrap();
        store.ping().await.unwrap();
        store.lock_instance().unwrap();
        open(&store_config())
            .await
            .unwrap()
            .lock_instance()
            .unwrap();
    }

    fn store_config() -> Config {
        config(&postgres_url())
    }

    /// Speaks TLS to the client and plain text to the real server.
    async fn tls_server(name: &str) -> (u16, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = url::Url::parse(&postgres_url()).unwrap();
        let real = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (acceptor, real) = (acceptor.clone(), real.clone());
                tokio::spawn(async move {
                    // SSLRequest: eight bytes, answered by an S.
                    socket.read_exact(&mut [0; 8]).await.unwrap();
                    socket.write_all(b"S").await.unwrap();
                    if let Ok(mut client) = acceptor.accept(socket).await {
                        let mut server = TcpStream::connect(real).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        (port, made.cert.pem())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_server_is_verified() {
        let folder = tempfile::tempdir().unwrap();
        let user = url::Url::parse(&postgres_url())
            .unwrap()
            .username()
            .to_owned();
        let try_it = async |host: &str, port: u16, ca: &str| {
            let file = folder.path().join("ca.pem");
            std::fs::write(&file, ca).unwrap();
            let store = open(&Config {
                ca_file: Some(file),
                ..config(&format!(
                    "postgres://{user}@{host}:{port}/postgres?sslmode=require"
                ))
            })
            .await
            .unwrap();
            store.ping().await
        };
        let (port, ca) = tls_server("localhost").await;
        let (other_port, other_ca) = tls_server("db.example").await;
        try_it("localhost", port, &ca).await.unwrap();
        // Another issuer, another name, no TLS at all.
        try_it("localhost", port, &other_ca).await.unwrap_err();
        try_it("localhost", other_port, &other_ca)
            .await
            .unwrap_err();
        let plain = url::Url::parse(&postgres_url()).unwrap().port().unwrap();
        try_it("localhost", plain, &ca).await.unwrap_err();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_ca_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        for content in [None, Some("")] {
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let refused = open(&Config {
                ca_file: Some(file.clone()),
                ..store_config()
            })
            .await;
            assert!(matches!(refused, Err(SetupError::Config(_))), "{refused:?}");
        }
    }
}
