//! Arguments, prompts and output.

use std::io;

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::*;
use crate::config::{Config, data_dir::Prepared};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_manual_says_is_understood() {
    for line in [
        "countersign serve",
        "countersign serve --listen 127.0.0.1:1 --http-listen 127.0.0.1:2",
        "countersign --config x --profile testing --data-dir d --database-url sqlite://x --log-level debug serve",
        "countersign serve --data-dir d --profile production",
        "countersign migrate up",
        "countersign migrate status",
        "countersign migrate down --steps 2 --yes",
        "countersign check-config --format json",
        "countersign user create --email ana@example.com --role admin --role auditor",
        "countersign user create --email ana@example.com --username ana --display-name Ana --password-stdin",
        "countersign user list --format json --status disabled --role admin --email-prefix a",
        "countersign user set-password ana --password-stdin",
        "countersign user unlock ana@example.com",
        "countersign user grant ana@example.com admin",
        "countersign user grant 01890a5d-ac96-774b-bcce-b302099a8057 admin",
        "countersign key list",
        "countersign key stage --algorithm ES256",
        "countersign key activate KID --force --retire-previous",
        "countersign key retire KID",
        "countersign token explain",
        "countersign token explain --audience orders --format json",
        "countersign audit verify",
        "countersign audit verify --format json",
        "countersign backup /tmp/copy.db",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, kind) in [
        (
            "countersign",
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ),
        ("countersign --version", ErrorKind::DisplayVersion),
        (
            "countersign migrate down",
            ErrorKind::MissingRequiredArgument,
        ),
        (
            "countersign migrate down --yes --steps 0",
            ErrorKind::ValueValidation,
        ),
        ("countersign --profile prod serve", ErrorKind::InvalidValue),
        (
            "countersign user create --email nobody",
            ErrorKind::ValueValidation,
        ),
        (
            "countersign user create --email a@b.c --password x",
            ErrorKind::UnknownArgument,
        ),
        (
            "countersign token explain eyJ.eyJ.abc",
            ErrorKind::UnknownArgument,
        ),
        (
            "countersign user grant !! admin",
            ErrorKind::ValueValidation,
        ),
    ] {
        assert_eq!(parse(line).unwrap_err().kind(), kind, "{line}");
    }
}

#[test]
fn every_setting_flag_reaches_its_key() {
    let line = "countersign --config f --profile testing --data-dir d --database-url sqlite://x \
                --log-level debug serve --listen 127.0.0.1:1 --http-listen 127.0.0.1:2";
    let cli = parse(line).unwrap();
    let loaded = Config::load(&Sources {
        flags: cli.flags(),
        ..Sources::default()
    })
    .unwrap();
    let from_flags: Vec<_> = loaded
        .settings
        .iter()
        .filter(|s| s.origin().to_string().starts_with("flag --"))
        .map(|s| format!("{}={}", s.key(), s.shown()))
        .collect();
    assert_eq!(
        from_flags,
        [
            r#"data_dir="d""#,
            r#"profile="testing""#,
            r#"database.url="sqlite://x""#,
            r#"http.address="127.0.0.1:2""#,
            r#"listen.address="127.0.0.1:1""#,
            r#"telemetry.level="debug""#,
        ]
    );
    assert_eq!(cli.global.config, Some("f".into()));
}

#[test]
fn check_config_says_where_values_come_from_and_no_secrets() {
    let mut sources = Sources {
        environment: [
            (
                "COUNTERSIGN_DATABASE_URL",
                "postgres://u:hunter2@127.0.0.1/c",
            ),
            ("COUNTERSIGN_MASTER_KEY", "hunter2"),
            ("COUNTERSIGN_HASHING__LANES", "3"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        ..Sources::default()
    };
    let bad = check_config::report(&sources, check_config::Format::Toml);
    assert!(!bad.is_good);
    assert_eq!(
        bad.remarks,
        "the configuration has 1 problem:\n  \
         1. `master_key`: the master key must be 32 bytes as base64url, base64 or hexadecimal\n"
    );
    let find = |key: &str| bad.settings.lines().find(|line| line.starts_with(key));
    let line = find("hashing.lanes").unwrap().split_whitespace();
    let line = line.collect::<Vec<_>>().join(" ");
    assert_eq!(
        line,
        "hashing.lanes = 3 # from: environment COUNTERSIGN_HASHING__LANES"
    );
    let line = find("database.url =").unwrap();
    assert!(
        line.contains(r#""postgres://u:[redacted]@127.0.0.1/c""#),
        "{line}"
    );

    let json = check_config::report(&sources, check_config::Format::Json);
    let value: serde_json::Value = serde_json::from_str(&json.settings).unwrap();
    assert_eq!(value["settings"]["hashing.lanes"]["value"], 3);
    assert_eq!(value["settings"]["reflection"]["from"], "default");
    assert_eq!(value["problems"].as_array().unwrap().len(), 1);
    for text in [&bad.settings, &bad.remarks, &json.settings] {
        assert!(!text.contains("hunter2"), "{text}");
    }

    sources.environment.pop();
    sources.environment.pop();
    let good = check_config::report(&sources, check_config::Format::Toml);
    assert!(good.is_good && good.remarks.is_empty(), "{}", good.remarks);
    // It reads as TOML.
    let table: toml::Table = good.settings.parse().unwrap();
    assert_eq!(table["listen"]["address"].as_str(), Some("127.0.0.1:50051"));
}

#[test]
fn passwords_are_read_whole_or_not_at_all() {
    let good = "a long walk by the sea";
    for text in [good.to_owned(), format!("{good}\n"), format!("{good}\r\n")] {
        let password = user::from_input(text.as_bytes()).unwrap();
        assert_eq!(password.expose(), good);
    }
    for (text, why) in [
        (String::new(), "must not be empty"),
        ("short".to_owned(), "at least 15"),
        (format!("{good}\n{good}\n"), "control characters"),
        ("a".repeat(257), "at most 256"),
        ("a".repeat(100_000), "at most 256"),
    ] {
        let error = user::from_input(text.as_bytes()).unwrap_err();
        let shown = format!("{error:#}");
        assert!(shown.contains(why), "{shown}");
    }
}

#[test]
fn a_prompted_password_is_typed_twice() {
    let typed = |first: &'static str, second: &'static str| {
        let mut answers = [first, second].into_iter();
        user::from_prompt(move |_| Ok(answers.next().unwrap().to_owned()))
    };
    assert!(typed("a long walk by the sea", "a long walk by the sea").is_ok());
    let error = typed("a long walk by the sea", "a long walk by the lake").unwrap_err();
    assert_eq!(error.to_string(), "the two passwords differ");
    let no_terminal = user::from_prompt(|_| Err(io::ErrorKind::NotFound.into()));
    assert!(
        no_terminal
            .unwrap_err()
            .to_string()
            .contains("--password-stdin")
    );
}

fn ana() -> crate::domain::User {
    crate::domain::User {
        id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
        email: Some("ana@example.com".parse().unwrap()),
        email_verified: false,
        username: None,
        display_name: "Ana".parse().unwrap(),
        status: crate::domain::UserStatus::Active,
        roles: vec!["admin".parse().unwrap(), "auditor".parse().unwrap()],
        metadata: crate::domain::Metadata::default(),
        epoch: 1,
        min_session_epoch: 1,
        created_at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
        updated_at: "2026-01-02T03:04:05.678Z".parse().unwrap(),
    }
}

#[test]
fn accounts_are_listed_for_people_and_programs() {
    assert_eq!(
        user::show(&[ana()], Format::Table),
        "\
ID                                    EMAIL            USERNAME  STATUS  ROLES          CREATED
01890a5d-ac96-774b-bcce-b302099a8057  ana@example.com  -         active  admin,auditor  2026-01-02T03:04:05Z
"
    );
    let json: serde_json::Value =
        serde_json::from_str(&user::show(&[ana()], Format::Json)).unwrap();
    assert_eq!(json[0]["email"], "ana@example.com");
    assert_eq!(json[0]["roles"][1], "auditor");
    assert!(json[0]["username"].is_null());
    assert_eq!(user::show(&[], Format::Json), "[]\n");
}

#[test]
fn keys_and_migrations_are_listed() {
    let key = crate::domain::signing_key::SigningKey {
        kid: "k1".to_owned(),
        algorithm: countersign_verifier::Algorithm::Ed25519,
        state: countersign_verifier::KeyState::Active,
        public_key: vec![1],
        sealed: b"\x02\0\0\0\0\0\0\0\x01hunter2".to_vec(),
        created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        changed_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        verify_until: None,
    };
    let table = key::show(std::slice::from_ref(&key), Format::Table);
    assert!(
        table.contains("k1   EdDSA  active  2026-01-02T03:04:05Z"),
        "{table}"
    );
    let json: serde_json::Value = serde_json::from_str(&key::show(&[key], Format::Json)).unwrap();
    assert_eq!(json[0].as_object().unwrap().len(), 7);
    assert_eq!(json[0]["master_key"], "AAAAAAAAAAE");
    let migrations = [
        ("accounts".to_owned(), "applied"),
        ("audit".to_owned(), "pending"),
    ];
    assert_eq!(
        migrate::show(&migrations),
        "MIGRATION  STATE\naccounts   applied\naudit      pending\n"
    );
}

#[test]
fn the_first_start_says_what_to_try_and_later_ones_say_nothing() {
    let mut config = Config::default();
    let mut prepared = Prepared {
        master_keys: "0".repeat(64).parse().unwrap(),
        made: vec![
            ("./data".into(), 0o700),
            ("./data/master.key".into(), 0o600),
        ],
        warnings: vec![],
    };
    let text = banner::banner(&config, &prepared).unwrap();
    let (_, text) = text.split_once('\n').unwrap();
    assert_eq!(
        text,
        r#"  ./data  (0700)
  ./data/master.key  (0600)  the master key: without it the database is worth nothing

gRPC on 127.0.0.1:50051, JWKS, health and metrics on http://127.0.0.1:8081. Try:

  grpcurl -plaintext 127.0.0.1:50051 list
  grpcurl -d '{"email": "ana@example.com", "password": "a long walk by the sea"}' \
    -plaintext 127.0.0.1:50051 countersign.v1.AuthService/Register

An administrator is made by `countersign user create --email … --role admin`.
"#
    );
    config.listen.address = "unix:/run/c.sock".to_owned();
    let text = banner::banner(&config, &prepared).unwrap();
    assert!(text.contains("grpcurl -plaintext -unix /run/c.sock list"));
    config.listen.address = "0.0.0.0:1".to_owned();
    config.listen.tls_certificate_file = Some("c.pem".into());
    let text = banner::banner(&config, &prepared).unwrap();
    assert!(text.contains("grpcurl -cacert c.pem 127.0.0.1:1 list"));

    prepared.made.clear();
    assert_eq!(banner::banner(&config, &prepared), None);
}

#[test]
fn a_reader_that_left_is_no_error() {
    assert!(quiet_if_gone(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
    assert!(quiet_if_gone(Err(io::ErrorKind::StorageFull.into())).is_err());
}
