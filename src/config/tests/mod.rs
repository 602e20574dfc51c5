//! The layers, and what they refuse.

mod data_dir;
mod profiles;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde::Serialize;
use toml::Value;

use super::*;

const KEY: &str = "-_8QETIzVFV2d5iZuru8zd7v8AESIzRFVmd4iZqrvM0";
const PRODUCTION: &[(&str, &str)] = &[
    ("COUNTERSIGN_PROFILE", "production"),
    ("COUNTERSIGN_ISSUER", "https://auth.example.com"),
    ("COUNTERSIGN_MASTER_KEY", KEY),
];

/// A working directory and what a process in it is started with.
struct Start {
    directory: tempfile::TempDir,
    environment: Vec<(String, String)>,
    flags: Vec<(&'static str, &'static str, String)>,
}

impl Start {
    fn new(environment: &[(&str, &str)]) -> Self {
        let mut start = Self {
            directory: tempfile::tempdir().unwrap(),
            environment: vec![],
            flags: vec![],
        };
        let data = start.directory.path().join("data");
        start.set("COUNTERSIGN_DATA_DIR", data.to_str().unwrap());
        for (name, value) in environment {
            start.set(name, value);
        }
        start
    }

    fn production(environment: &[(&str, &str)]) -> Self {
        let mut start = Self::new(PRODUCTION);
        for (name, value) in environment {
            start.set(name, value);
        }
        start
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self) -> Result<Loaded, Problems> {
        self.load_as(Role::Node)
    }

    fn load_as(&self, role: Role) -> Result<Loaded, Problems> {
        Config::load(&Sources {
            role,
            directory: self.directory.path().to_owned(),
            environment: self.environment.clone(),
            file: None,
            flags: self.flags.clone(),
        })
    }

    /// The only problem.
    fn problem(&self) -> String {
        let problems = self.load().expect_err("it was accepted");
        assert_eq!(problems.list.len(), 1, "{problems}");
        problems.list.concat()
    }
}

#[test]
fn the_defaults_file_says_what_the_rooms_say() {
    fn agree(section: &str, room: &impl Serialize, file: &Settings) {
        let room = serde_json::to_value(room).unwrap();
        for (name, value) in room.as_object().unwrap() {
            let key = [section, name].join(if section.is_empty() { "" } else { "." });
            if value.is_object() {
                agree(&key, value, file);
                continue;
            }
            let setting = file
                .get(&key)
                .unwrap_or_else(|| panic!("defaults.toml lacks `{key}`"));
            let default = match setting.default() {
                Value::String(text) if text.is_empty() && value.is_null() => continue,
                default => serde_json::to_value(default).unwrap(),
            };
            assert_eq!(&default, value, "`{key}`");
        }
    }
    let settings = Settings::defaults().unwrap();
    agree("", &Config::default(), &settings);
    let mut problems = vec![];
    let extracted: Config = settings.clone().extract(&mut problems);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(extracted, Config::default());
}

#[test]
fn without_any_setting_it_starts() {
    let loaded = Config::load(&Sources::default()).unwrap();
    assert_eq!(loaded.config.issuer, "http://127.0.0.1:8081");
    assert_eq!(loaded.config.database.url, "sqlite://./data/countersign.db");
    assert_eq!(
        loaded.config.master_key_file,
        Some("./data/master.key".into())
    );
    assert_eq!(loaded.settings.changes(), "");
    assert!(loaded.warnings.is_empty());
}

#[test]
fn later_layers_win_and_are_named() {
    let lanes = |start: &Start| {
        let loaded = start.load().unwrap();
        let origin = loaded.settings.get("hashing.lanes").unwrap().origin();
        (loaded.config.hashing.lanes, origin.to_string())
    };
    let mut start = Start::new(&[]);
    assert_eq!(lanes(&start), (0, "default".into()));
    start.write("countersign.toml", "[hashing]\nlanes = 1", 0o644);
    assert_eq!(lanes(&start), (1, "file countersign.toml".into()));
    start.write(".env", "COUNTERSIGN_HASHING__LANES=2", 0o644);
    assert_eq!(lanes(&start), (2, ".env COUNTERSIGN_HASHING__LANES".into()));
    start.set("COUNTERSIGN_HASHING__LANES", "3");
    assert_eq!(
        lanes(&start),
        (3, "environment COUNTERSIGN_HASHING__LANES".into())
    );
    start.flags.push(("lanes", "hashing.lanes", "4".into()));
    assert_eq!(lanes(&start), (4, "flag --lanes".into()));
}

#[test]
fn every_key_can_be_set_by_the_environment() {
    // A legal value other than the default, where changing the default's last
    // letter or digit makes none.
    let other = [
        ("profile", "testing"),
        ("listen.tls_certificate_file", "cert.pem"),
        ("listen.tls_key_file", "key.pem"),
        ("database.ca_file", "ca.pem"),
        ("passwords.context_words", "Acme, rocket skates"),
        ("breached_passwords.url", "https://list.example.com/range"),
        ("breached_passwords.on_failure", "refuse"),
        ("tokens.algorithm", "ES256"),
        ("tokens.leeway_seconds", "6"),
        ("telemetry.format", "json"),
        ("telemetry.level", "debug"),
        ("telemetry.otlp_endpoint", "http://127.0.0.1:4317"),
        ("limits.trusted_proxies", "10.0.0.0/8,::1/128"),
        ("login_throttle.failures_before_reset", "50"),
        ("issuer", "https://auth.example.com"),
        ("audiences", "a, b"),
        ("own_audience", "b"),
        ("master_key", KEY),
        ("database.url", "postgres://u@127.0.0.1/db"),
        ("listen.address", "127.0.0.1:1"),
        ("http.address", "127.0.0.1:2"),
    ];
    for setting in Settings::defaults().unwrap().iter() {
        let key = setting.key();
        let mut start = Start::new(&[]);
        let value = match (other.iter().find(|(k, _)| *k == key), setting.default()) {
            (Some((_, value)), _) => (*value).to_owned(),
            (None, Value::Integer(number)) => (number + 1).to_string(),
            (None, Value::Boolean(yes)) => (!yes).to_string(),
            (None, _) if key.ends_with("_file") => {
                let text = if key == "master_key_file" {
                    KEY
                } else {
                    "sqlite://x"
                };
                let path = start.write("secret", text, 0o600);
                path.to_str().unwrap().to_owned()
            }
            (None, _) => "something-else".to_owned(),
        };
        let name = environment_name(key);
        start.set(&name, &value);
        // Some are refused alone (a certificate without a key), but they arrive.
        let settings = match start.load() {
            Ok(loaded) => {
                if setting.key() != "database.url_file" {
                    let default = Start::new(&[]).load().unwrap().config;
                    assert_ne!(loaded.config, default, "{name} changes nothing");
                }
                loaded.settings
            }
            Err(problems) => {
                let text = problems.to_string();
                assert!(!text.contains("no such"), "{text}");
                assert!(!text.contains("must be"), "{text}");
                problems.settings
            }
        };
        let origin = settings.get(key).unwrap().origin();
        assert_eq!(*origin, Origin::Environment(name), "{key}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    for (file, hint) in [
        ("[hashing]\nlane = 1", "did you mean `hashing.lanes`?"),
        ("[hasing]\nlanes = 1", "did you mean `hashing.lanes`?"),
        ("lanes = 1", "did you mean `hashing.lanes`?"),
        ("isuer = ''", "did you mean `issuer`?"),
        ("[nothing]", "`nothing`"),
        ("colour = 1", "countersign.example.toml"),
        ("listen = '127.0.0.1:1'", "no such key"),
    ] {
        let start = Start::new(&[]);
        start.write("countersign.toml", file, 0o644);
        let problem = start.problem();
        assert!(problem.contains(hint), "{problem}");
    }
    let start = Start::new(&[("COUNTERSIGN_LISTN", "127.0.0.1:1")]);
    assert_eq!(
        start.problem(),
        "environment COUNTERSIGN_LISTN: there is no such setting; did you mean COUNTERSIGN_LISTEN?"
    );
    let start = Start::new(&[("COUNTERSIGN_HTTP_PORT", "8081")]);
    assert!(start.problem().contains("no such setting"));
}

#[test]
fn names_of_others_and_empty_ones_are_passed_over() {
    let start = Start::new(&[
        ("COUNTERSIGN_TEST_POSTGRES", "x"),
        ("COUNTERSIGN_BIN", "x"),
        ("COUNTERSIGN_SERVICE_HOST", "10.0.0.1"),
        ("COUNTERSIGN_SERVICE_PORT_GRPC", "50051"),
        ("COUNTERSIGN_PORT", "tcp://10.0.0.1:50051"),
        ("COUNTERSIGN_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("COUNTERSIGN_HTTP_PORT_8081_TCP", "tcp://10.0.0.1:8081"),
        ("COUNTERSIGN_HASHING__LANES", ""),
        ("PATH", "/bin"),
    ]);
    assert_eq!(start.load().unwrap().config.hashing.lanes, 0);
}

#[test]
fn two_names_of_one_key_are_refused() {
    let start = Start::new(&[
        ("COUNTERSIGN_LISTEN", "127.0.0.1:1"),
        ("COUNTERSIGN_LISTEN__ADDRESS", "127.0.0.1:2"),
    ]);
    assert!(start.problem().contains("the same key `listen.address`"));
}

#[test]
fn our_own_audience_is_one_of_those_that_tokens_get() {
    let start = Start::new(&[("COUNTERSIGN_AUDIENCES", "api")]);
    assert!(start.problem().contains("`own_audience`"));
    let start = Start::new(&[
        ("COUNTERSIGN_AUDIENCES", "api"),
        ("COUNTERSIGN_OWN_AUDIENCE", "api"),
    ]);
    assert_eq!(start.load().unwrap().config.own_audience, "api");
}

#[test]
fn all_problems_are_found_at_once() {
    let start = Start::new(&[
        ("COUNTERSIGN_TOKENS__ALGORITHM", "HS256"),
        ("COUNTERSIGN_HASHING__LANES", "many"),
        ("COUNTERSIGN_SESSIONS__IDLE_SECONDS", "-1"),
        ("COUNTERSIGN_LIMITS__TRUSTED_PROXIES", "everybody"),
        ("COUNTERSIGN_REFLECTION", "yes"),
    ]);
    start.write("countersign.toml", "audiences = 1\nnothing = 1", 0o644);
    let problems = start.load().unwrap_err();
    assert_eq!(problems.list.len(), 7, "{problems}");
    let text = problems.to_string();
    assert!(
        text.starts_with("the configuration has 7 problems:\n  1. `"),
        "{text}"
    );
    for part in [
        "`hashing.lanes` (environment COUNTERSIGN_HASHING__LANES): must be a whole number",
        "tokens.algorithm must be \"EdDSA\" or \"ES256\"",
        "`sessions.idle_seconds`",
        "`limits.trusted_proxies`",
        "`reflection` (environment COUNTERSIGN_REFLECTION): must be true or false",
        "`audiences` (file countersign.toml): must be a list of texts",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn a_named_file_must_be_there() {
    let start = Start::new(&[("COUNTERSIGN_CONFIG", "absent.toml")]);
    assert!(start.problem().contains("file absent.toml cannot be read"));
    let path = start.write("present.toml", "client_id = 'other'", 0o644);
    let sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    assert_eq!(Config::load(&sources).unwrap().config.client_id, "other");
}

#[test]
fn dot_env_is_read_in_development_only() {
    for (profile, lanes) in [("development", 7), ("testing", 0), ("production", 0)] {
        let mut start = Start::production(&[("COUNTERSIGN_PROFILE", profile)]);
        start.write(".env", "COUNTERSIGN_HASHING__LANES=7\nOTHER='$'", 0o644);
        assert_eq!(
            start.load().unwrap().config.hashing.lanes,
            lanes,
            "{profile}"
        );
        // A real variable wins under either of its names.
        start.set("COUNTERSIGN_HASHING__LANES", "9");
        assert_eq!(start.load().unwrap().config.hashing.lanes, 9);
    }
    let start = Start::new(&[]);
    start.write(".env", "COUNTERSIGN_PROFILE=production", 0o644);
    assert!(start.problem().contains("set it in the environment"));
}

#[test]
fn secrets_are_never_shown() {
    let canary = "hunter2-canary";
    // Wherever one can stand, and malformed in every way.
    let starts = [
        Start::new(&[("COUNTERSIGN_MASTER_KEY", canary)]),
        Start::new(&[("COUNTERSIGN_MASTER_KEY", KEY)]),
        Start::new(&[(
            "COUNTERSIGN_DATABASE_URL",
            "postgres://u:hunter2-canary@h/db",
        )]),
        Start::new(&[("COUNTERSIGN_DATABASE_URL", "postgres:hunter2-canary@h/db")]),
        Start::new(&[(
            "COUNTERSIGN_TELEMETRY__OTLP_ENDPOINT",
            "http://u:hunter2-canary@h",
        )]),
        Start::new(&[]),
        Start::new(&[]),
        Start::new(&[]),
        Start::new(&[]),
    ];
    starts[5].write("countersign.toml", "master_key = 'hunter2-canary", 0o644);
    starts[6].write("countersign.toml", "master_key = hunter2-canary", 0o644);
    starts[7].write(
        "countersign.toml",
        "[master_key]\nx = 'hunter2-canary'",
        0o644,
    );
    starts[8].write(".env", "COUNTERSIGN_MASTER_KEY=a hunter2-canary", 0o644);
    for (number, start) in starts.iter().enumerate() {
        let shown = match start.load() {
            Ok(loaded) => format!(
                "{loaded:?} {} {}",
                loaded.settings.changes(),
                serde_json::to_string(&loaded.config.master_key).unwrap()
            ),
            Err(problems) => format!("{problems} {problems:?}"),
        };
        assert!(!shown.contains("hunter2"), "{number}: {shown}");
        assert!(!shown.contains(KEY), "{number}: {shown}");
    }
}

#[test]
fn secrets_come_from_files() {
    let mut start = Start::new(&[]);
    let url = start.write("url", "postgres://u:p@127.0.0.1/db\n", 0o600);
    start.set("COUNTERSIGN_DATABASE_URL_FILE", url.to_str().unwrap());
    let loaded = start.load().unwrap();
    assert_eq!(loaded.config.database.url, "postgres://u:p@127.0.0.1/db");

    start.set("COUNTERSIGN_DATABASE_URL", "sqlite://x");
    assert!(start.problem().contains("are both set; keep one"));

    let mut start = Start::new(&[("COUNTERSIGN_MASTER_KEY", KEY)]);
    let key = start.write("key", KEY, 0o600);
    start.set("COUNTERSIGN_MASTER_KEY_FILE", key.to_str().unwrap());
    assert!(start.problem().contains("are both set; keep one"));
}
