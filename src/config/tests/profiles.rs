//! What each profile refuses and allows.

use super::{Role, Start};

#[test]
fn production_with_its_two_settings_starts() {
    let loaded = Start::production(&[]).load().unwrap();
    assert!(!loaded.config.reflection);
    assert_eq!(loaded.config.master_key_file, None);
    let origin = loaded.settings.get("reflection").unwrap().origin();
    assert_eq!(origin.to_string(), "default in production");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);

    let loaded = Start::production(&[("COUNTERSIGN_REFLECTION", "true")]).load();
    assert!(loaded.unwrap().config.reflection);
}

#[test]
fn a_sidecar_needs_an_issuer_a_node_a_credential_and_no_more() {
    let needed = [
        ("COUNTERSIGN_ISSUER", "https://auth.example.com"),
        ("COUNTERSIGN_SIDECAR__NODES", "https://auth-1:50051"),
        ("COUNTERSIGN_SIDECAR__CREDENTIAL", "csk_example"),
    ];
    for profile in ["development", "testing", "production"] {
        let mut start = Start::new(&needed);
        start.set("COUNTERSIGN_PROFILE", profile);
        let loaded = start.load_as(Role::Sidecar);
        assert!(loaded.is_ok(), "{profile}: {}", loaded.unwrap_err());
        for (name, _) in needed {
            let mut start = Start::new(&needed);
            start.set(name, "");
            assert!(start.load_as(Role::Sidecar).is_err(), "{name}");
        }
    }
}

#[test]
fn production_refuses_what_is_unsafe_and_nothing_else_does() {
    let zeros = "0".repeat(64);
    let remote = "postgres://u:p@db.example.com/c";
    for (name, value, part) in [
        (
            "COUNTERSIGN_LISTEN",
            "0.0.0.0:50051",
            "`listen.address` = 0.0.0.0:50051",
        ),
        (
            "COUNTERSIGN_BREACHED_PASSWORDS__URL",
            "http://127.0.0.1:8080/range",
            "`breached_passwords.url`",
        ),
        (
            "COUNTERSIGN_LISTEN",
            "[::]:50051",
            "`listen.tls_certificate_file`",
        ),
        (
            "COUNTERSIGN_HTTP_LISTEN",
            "10.0.0.1:80",
            "`http.address` = 10.0.0.1:80",
        ),
        ("COUNTERSIGN_ISSUER", "", "`issuer`: required"),
        (
            "COUNTERSIGN_ISSUER",
            "http://auth.example.com",
            "`issuer`: must be an https",
        ),
        ("COUNTERSIGN_MASTER_KEY", "", "`master_key_file`: required"),
        ("COUNTERSIGN_MASTER_KEY", &zeros, "is not random"),
        (
            "COUNTERSIGN_LIMITS__RATE_LIMITS_ENABLED",
            "false",
            "`limits.rate_limits_enabled`",
        ),
        ("COUNTERSIGN_DATABASE_URL", remote, "`?sslmode=require`"),
    ] {
        let mut start = Start::production(&[(name, value)]);
        let problem = start.problem();
        assert!(problem.contains(part), "{problem}");
        start.set("COUNTERSIGN_PROFILE", "development");
        start
            .load()
            .unwrap_or_else(|problems| panic!("{name}: {problems}"));
    }
}

#[test]
fn production_believes_what_is_stated() {
    for (name, value) in [
        ("COUNTERSIGN_LISTEN", "unix:/run/countersign.sock"),
        ("COUNTERSIGN_LISTEN", "[::1]:50051"),
        (
            "COUNTERSIGN_DATABASE_URL",
            "postgres://u:p@db.example.com/c?sslmode=require",
        ),
        (
            "COUNTERSIGN_DATABASE_URL",
            "postgres://u:p@a,b/c?sslmode=require",
        ),
        (
            "COUNTERSIGN_DATABASE_URL",
            "postgres://u:p@db.example.com/c?sslmode=disable",
        ),
        ("COUNTERSIGN_DATABASE_URL", "postgres://u:p@127.0.0.1/c"),
    ] {
        let loaded = Start::production(&[(name, value)]).load();
        loaded.unwrap_or_else(|problems| panic!("{value}: {problems}"));
    }
    let mesh = Start::production(&[
        ("COUNTERSIGN_LISTEN", "0.0.0.0:50051"),
        ("COUNTERSIGN_HTTP_LISTEN", "0.0.0.0:8081"),
        ("COUNTERSIGN_PLAINTEXT_BEHIND_MESH", "true"),
    ]);
    assert!(mesh.load().is_ok());
}

#[test]
fn cheap_hashing_is_for_tests() {
    let cheap = [
        ("COUNTERSIGN_HASHING__MEMORY_KIB", "64"),
        ("COUNTERSIGN_HASHING__ITERATIONS", "1"),
    ];
    for (profile, allowed) in [
        ("development", false),
        ("testing", true),
        ("production", false),
    ] {
        let mut start = Start::production(&cheap);
        start.set("COUNTERSIGN_PROFILE", profile);
        assert_eq!(start.load().is_ok(), allowed, "{profile}");
    }
    for (memory, iterations, allowed) in [
        ("47104", "1", true),
        ("19455", "2", false),
        ("12288", "3", true),
        ("7168", "9", true),
        ("7167", "9", false),
    ] {
        let start = Start::new(&[
            ("COUNTERSIGN_HASHING__MEMORY_KIB", memory),
            ("COUNTERSIGN_HASHING__ITERATIONS", iterations),
        ]);
        assert_eq!(start.load().is_ok(), allowed, "{memory} {iterations}");
    }
}

#[test]
fn an_issuer_is_a_url_of_a_place() {
    for issuer in [
        "auth.example.com",
        "https://a/?x=1",
        "https://a/#x",
        "ftp://a",
        "https://u:p@a",
    ] {
        let start = Start::new(&[("COUNTERSIGN_ISSUER", issuer)]);
        assert!(start.problem().starts_with("`issuer`"), "{issuer}");
    }
}
