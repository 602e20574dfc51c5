//! The command line, as a person or a script uses it: beside a node that runs,
//! and before there is one.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use countersign_proto::v1;
use serde_json::Value;
use tonic::Code;

use crate::{
    harness::{Kind, binary::Program, calls, database::Database, eventually, refused, world},
    on_both,
};

const PASSWORD: &str = "a long walk by the sea";
const ANOTHER: &str = "a short rest in the shade";

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect(text)
}

/// The columns of a table that is printed for people, by their headings.
fn heading(text: &str) -> Vec<&str> {
    text.lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect()
}

on_both! {
    async fn a_program_that_needs_root_certificates_says_where_there_are_none(program: Program) {
        let program = program.set("SSL_CERT_FILE", "/dev/null").set("SSL_CERT_DIR", "/nonexistent");
        let list = ["user", "list"];
        // TLS is asked for nowhere.
        program.succeed(&list, "");
        let program = program.set("COUNTERSIGN_BREACHED_PASSWORDS__URL", "https://list.example/range");
        let said = program.fail(&list, "");
        for part in ["the system has no root certificates", "; set breached_passwords.ca_file"] {
            assert!(said.contains(part), "{said}");
        }
        let program = program.set("COUNTERSIGN_BREACHED_PASSWORDS__URL", "http://list.example/range");
        program.succeed(&list, "");
        if program.database.kind == Kind::Postgres {
            let mut url: url::Url = program.database.url.parse().unwrap();
            let mut program = program;
            for (mode, works) in [("disable", true), ("require", false)] {
                url.set_query(Some(&format!("sslmode={mode}")));
                program = program.set("COUNTERSIGN_DATABASE_URL", url.as_str());
                let output = program.run(&list);
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.success(), works, "{said}");
                assert!(works || said.contains("; set database.ca_file"), "{said}");
            }
        }
    }

    async fn api_keys_are_made_rotated_and_revoked_beside_a_running_node(program: Program) {
        let server = program.serve("server").await;
        let create = ["user", "create", "--email", "ana@example.com", "--role", "admin", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let program = &program;
        // Standard output has the secret and nothing else.
        let make = |more: &[&str]| {
            let arguments = [&["api-key", "create", "ana@example.com", "--name", "importer"], more].concat();
            let made = program.succeed(&arguments, "");
            let secret = made.strip_suffix('\n').expect(&made).to_owned();
            assert!(countersign_verifier::ApiKeyHash::of(&secret).is_some(), "{made}");
            secret
        };
        let good = async |secret: &str| calls::validates(&server.client(), secret).await;
        let secret = make(&["--scope", "countersign.users.read", "--expires-in", "90d"]);
        eventually("the node hears of the key", async || good(&secret).await).await;
        let mut importer = server.client().with_token(&secret);
        importer.users.list_users(v1::ListUsersRequest::default()).await.unwrap();
        make(&[]);

        let listed = json(&program.succeed(&["api-key", "list", "ana@example.com", "--format", "json"], ""));
        let keys = listed.as_array().unwrap();
        assert_eq!(keys.len(), 2);
        let key = keys.iter().find(|key| !key["expires_at"].is_null()).unwrap();
        assert_eq!((&key["name"], &key["scopes"]), (&"importer".into(), &serde_json::json!(["countersign.users.read"])));
        let id = key["id"].as_str().unwrap();
        let table = program.succeed(&["api-key", "list", "ana@example.com"], "");
        assert_eq!(heading(&table), ["ID", "NAME", "SCOPES", "AUDIENCES", "CREATED", "ROTATED", "EXPIRES"]);
        assert!(table.contains(id) && !table.contains("csk_"), "{table}");

        let next = program.succeed(&["api-key", "rotate", id], "");
        eventually("the node hears of the next secret", async || good(next.trim_end()).await).await;
        assert!(good(&secret).await);
        let last = program.succeed(&["api-key", "rotate", id, "--overlap", "0s"], "");
        eventually("the node hears of the end of the others", async || {
            good(last.trim_end()).await && !good(&secret).await && !good(next.trim_end()).await
        }).await;
        program.succeed(&["api-key", "revoke", id], "");
        eventually("the node hears of the end of the key", async || !good(last.trim_end()).await).await;

        for (arguments, complaint) in [
            (&["revoke", id][..], "there is no such live API key"),
            (&["create", "ana@example.com", "--name", "x", "--scope", "orders.read"], "is no permission that the key's owner holds"),
            (&["create", "ana@example.com", "--name", "x", "--expires-in", "0s"], "must be in the future"),
            (&["create", "nobody@example.com", "--name", "x"], "there is no such account"),
        ] {
            let said = program.fail(&[&["api-key"], arguments].concat(), "");
            assert!(said.contains(complaint), "{arguments:?}: {said}");
        }
        let long = program.run(&["api-key", "rotate", id, "--overlap", "31d"]);
        assert!(String::from_utf8_lossy(&long.stderr).contains("must be 0 to 30 days"));
    }

    async fn the_schema_goes_up_and_down_and_says_where_it_stands(program: Program) {
        let before = program.succeed(&["migrate", "status"], "");
        assert_eq!(heading(&before), ["MIGRATION", "STATE"]);
        let count = before.lines().count() - 1;
        assert!(count > 0 && before.matches("pending").count() == count, "{before}");
        let up = program.succeed(&["migrate", "up"], "");
        assert_eq!(up.matches("applied ").count(), count, "{up}");
        assert!(program.succeed(&["migrate", "up"], "").contains("up to date"));
        let after = program.succeed(&["migrate", "status"], "");
        assert_eq!(after.matches("applied").count(), count, "{after}");

        // What may lose data wants to be told twice.
        let unsure = program.run(&["migrate", "down"]);
        assert_eq!(unsure.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&unsure.stderr).contains("--yes"));
        let steps = count.to_string();
        let down = program.succeed(&["migrate", "down", "--yes", "--steps", &steps], "");
        assert_eq!(down.matches("taken back ").count(), count, "{down}");
        let after = program.succeed(&["migrate", "status"], "");
        assert_eq!(after.matches("pending").count(), count, "{after}");
        program.succeed(&["migrate", "up"], "");
        // And the database is of use again.
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, PASSWORD);
    }

    async fn accounts_are_made_listed_and_changed_beside_a_running_node(program: Program) {
        let server = program.serve("server").await;
        let made = program.succeed(
            &["user", "create", "--email", "Ana@Example.com", "--username", "ana",
              "--display-name", "Ana", "--role", "admin", "--password-stdin"],
            &format!("{PASSWORD}\n"),
        );
        let pair = world::login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
        let listed = json(&program.succeed(&["user", "list", "--format", "json"], ""));
        let ana = &listed[0];
        assert_eq!(listed.as_array().unwrap().len(), 1);
        assert_eq!((&ana["email"], &ana["username"]), (&"ana@example.com".into(), &"ana".into()));
        assert_eq!((&ana["status"], &ana["roles"]), (&"active".into(), &serde_json::json!(["admin"])));
        let id = ana["id"].as_str().unwrap();
        assert!(made.contains(id), "{made}");
        let table = program.succeed(&["user", "list"], "");
        assert_eq!(heading(&table), ["ID", "EMAIL", "USERNAME", "STATUS", "ROLES", "CREATED"]);
        assert!(table.contains("ana@example.com"));

        // What the node knows of it.
        let mut admin = server.client().with_token(&pair.access_token);
        let users = admin.users.list_users(v1::ListUsersRequest::default()).await.unwrap();
        assert_eq!(users.into_inner().users[0].user_id, id);

        let bob = ["user", "create", "--email", "bob@example.com", "--password-stdin"];
        program.succeed(&bob, PASSWORD);
        let again = program.fail(&bob, PASSWORD);
        assert!(again.contains("another account has this e-mail address"), "{again}");
        let bobs = world::login(&server.client(), "bob@example.com", PASSWORD).await.unwrap();
        let mut bob = server.client().with_token(&bobs.access_token);
        refused(
            bob.users.list_users(v1::ListUsersRequest::default()).await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );

        // A grant ends the tokens that know nothing of it, within a second.
        program.succeed(&["user", "grant", "bob@example.com", "admin"], "");
        let validate = async || {
            let request = v1::ValidateTokenRequest {
                token: bobs.access_token.clone(),
                audience: String::new(),
            };
            server.client().tokens.validate_token(request).await.is_ok()
        };
        let heard = tokio::time::timeout(Duration::from_secs(5), async {
            while validate().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        heard.await.expect("the node hears of the grant");
        let admins = json(&program.succeed(&["user", "list", "--role", "admin", "--format", "json"], ""));
        assert_eq!(admins.as_array().unwrap().len(), 2);
        let unknown = program.fail(&["user", "grant", "bob@example.com", "nothing"], "");
        assert!(unknown.contains("there is no such role"), "{unknown}");

        // Wrong passwords, the defaults' five of them, shut the right one out.
        let login = async || world::login(&server.client(), "bob@example.com", PASSWORD).await;
        login().await.unwrap();
        for _ in 0..5 {
            refused(
                world::login(&server.client(), "bob@example.com", ANOTHER).await,
                Code::Unauthenticated, "LOGIN_FAILED",
            );
        }
        refused(login().await, Code::ResourceExhausted, "LOGIN_THROTTLED");
        program.succeed(&["user", "unlock", "bob@example.com"], "");
        login().await.unwrap();

        // A new password ends the sessions.
        program.succeed(&["user", "set-password", "ana", "--password-stdin"], ANOTHER);
        refused(
            world::login(&server.client(), "ana", PASSWORD).await,
            Code::Unauthenticated, "LOGIN_FAILED",
        );
        world::login(&server.client(), "ana", ANOTHER).await.unwrap();
        let refresh = v1::RefreshRequest { refresh_token: pair.refresh_token, audiences: vec![] };
        refused(
            server.client().auth.refresh(refresh).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
    }

    async fn passwords_that_will_not_do_are_refused_with_the_reason(program: Program) {
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        for (password, words) in [
            ("short", "at least 15 characters"),
            ("", "password"),
            ("passwordpassword", "password"),
        ] {
            let said = program.fail(&create, password);
            assert!(said.contains(words), "{password:?}: {said}");
        }
        let long = "x".repeat(300);
        let said = program.fail(&create, &long);
        assert!(said.contains("256"), "{said}");
        // Without a terminal there is nobody to ask.
        let said = program.fail(&["user", "create", "--email", "ana@example.com"], PASSWORD);
        assert!(said.contains("--password-stdin"), "{said}");
        // Never an argument, which everybody could see.
        let said = program.run(&["user", "create", "--email", "ana@example.com", "--password", PASSWORD]);
        assert_eq!(said.status.code(), Some(2));
        assert_eq!(json(&program.succeed(&["user", "list", "--format", "json"], "")), serde_json::json!([]));
    }

    async fn keys_are_listed_without_their_secrets(program: Program) {
        let none = json(&{
            program.succeed(&["migrate", "up"], "");
            program.succeed(&["key", "list", "--format", "json"], "")
        });
        assert_eq!(none, serde_json::json!([]));
        let server = program.serve("server").await;
        let keys = json(&program.succeed(&["key", "list", "--format", "json"], ""));
        let active: Vec<_> = keys.as_array().unwrap().iter().filter(|key| key["state"] == "active").collect();
        assert_eq!(active.len(), 1, "{keys}");
        assert_eq!(active[0]["alg"], "EdDSA");
        let (_, jwks) = server.get("/.well-known/jwks.json").await;
        let published: Vec<_> = json(&jwks)["keys"].as_array().unwrap().iter()
            .map(|key| key["kid"].clone()).collect();
        assert!(published.contains(&active[0]["kid"]));
        let fields: Vec<_> = active[0].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["alg", "changed_at", "created_at", "kid", "master_key", "state", "verify_until"]);
        let table = program.succeed(&["key", "list"], "");
        assert_eq!(heading(&table), ["KID", "ALG", "STATE", "CREATED", "SINCE", "UNTIL", "MASTER", "KEY"]);
    }

    async fn check_config_shows_where_values_come_from_and_no_secret(program: Program) {
        let key = "f10e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f1";
        fs::write(program.folder().join("countersign.toml"), "audiences = [\"orders\"]\nown_audience = \"orders\"\n").unwrap();
        let mut program = program.set("COUNTERSIGN_MASTER_KEY", key);
        if program.database.kind == Kind::Postgres {
            let mut url = url::Url::parse(&program.database.url).unwrap();
            url.set_password(Some("do-not-show-this")).unwrap();
            program = program.set("COUNTERSIGN_DATABASE_URL", url.as_str());
        }
        let shown = program.succeed(&["--log-level", "debug", "check-config"], "");
        let line = |key: &str| {
            let line = shown.lines().find(|line| line.starts_with(&format!("{key} = ")));
            line.unwrap_or_else(|| panic!("no {key} in {shown}")).to_owned()
        };
        assert!(line("audiences").contains("\"orders\"") && line("audiences").contains("countersign.toml"));
        assert!(line("telemetry.level").contains("--log-level"));
        assert!(line("listen.address").contains("COUNTERSIGN_LISTEN"));
        assert!(line("tokens.access_seconds").contains("default"));
        assert!(line("database.url").contains(match program.database.kind {
            Kind::Sqlite => "sqlite://",
            Kind::Postgres => "postgres://",
        }));
        assert!(!shown.contains(key) && !shown.contains("do-not-show-this"), "{shown}");
        let shown = program.succeed(&["check-config", "--format", "json"], "");
        assert!(!shown.contains(key) && !shown.contains("do-not-show-this"), "{shown}");
        let report = json(&shown);
        assert_eq!(report["problems"], serde_json::json!([]));
        assert_eq!(report["settings"]["audiences"]["value"], serde_json::json!(["orders"]));

        // What is wrong is said all at once, and the exit code says so too.
        let bad = program.set("COUNTERSIGN_ISSUER", "nonsense").set("COUNTERSIGN_TOKENS__LEEWAY_SECONDS", "99");
        let said = bad.fail(&["check-config"], "");
        assert!(said.contains("`issuer`") && said.contains("leeway_seconds"), "{said}");
        assert!(!said.contains(key), "{said}");
        // Nothing was made by looking.
        assert!(!bad.folder().join("data").exists());
    }
}

mod a_backup_while_serving_opens_and_holds_the_rows {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        let issuer = "https://auth.test";
        let program = Program::new(Kind::Sqlite)
            .await
            .set("COUNTERSIGN_ISSUER", issuer);
        let server = program.serve("server").await;
        let create = [
            "user",
            "create",
            "--email",
            "ana@example.com",
            "--password-stdin",
        ];
        program.succeed(&create, PASSWORD);
        // Others write meanwhile.
        let writer = server.client();
        let writing = tokio::spawn(async move {
            for number in 0..40 {
                let request = v1::RegisterRequest {
                    email: format!("person{number}@example.com"),
                    password: PASSWORD.into(),
                    ..Default::default()
                };
                writer.clone().auth.register(request).await.unwrap();
            }
        });
        let copy = program.folder().join("copy.db");
        let said = program.succeed(&["backup", copy.to_str().unwrap()], "");
        assert!(said.contains("copy.db"), "{said}");
        writing.await.unwrap();
        assert_eq!(
            fs::metadata(&copy).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // Never over a file that is there.
        let again = program.fail(&["backup", copy.to_str().unwrap()], "");
        assert!(again.contains("copy.db"), "{again}");

        // A node on the copy, with the same key, knows the account and the
        // tokens of before.
        let pair = world::login(&server.client(), "ana@example.com", PASSWORD)
            .await
            .unwrap();
        let key = program.folder().join("data/master.key");
        let database = Database {
            kind: Kind::Sqlite,
            url: format!("sqlite://{}", copy.display()),
            folder: tempfile::tempdir().unwrap(),
        };
        let restored = Program::bare(database)
            .on_its_database()
            .set("COUNTERSIGN_PROFILE", "testing")
            .set("COUNTERSIGN_ISSUER", issuer)
            .set("COUNTERSIGN_MASTER_KEY_FILE", key.to_str().unwrap());
        let listed = json(&restored.succeed(
            &["user", "list", "--email-prefix", "ana@", "--format", "json"],
            "",
        ));
        assert_eq!(listed[0]["email"], "ana@example.com");
        let second = restored.serve("restored").await;
        world::login(&second.client(), "ana@example.com", PASSWORD)
            .await
            .unwrap();
        let request = v1::ValidateTokenRequest {
            token: pair.access_token,
            audience: String::new(),
        };
        second
            .client()
            .tokens
            .validate_token(request)
            .await
            .expect("the keys are the same");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let program = Program::new(Kind::Postgres).await;
        let said = program.fail(&["backup", "copy.db"], "");
        assert!(said.contains("pg_dump"), "{said}");
        assert!(!program.folder().join("copy.db").exists());
    }
}

#[tokio::test]
async fn every_command_explains_itself() {
    let program = Program::bare(Database::create(Kind::Sqlite).await);
    let version = program.succeed(&["--version"], "");
    let (version, commit) = version.trim().split_once(" (").expect(&version);
    assert_eq!(version, concat!("countersign ", env!("CARGO_PKG_VERSION")));
    assert!(commit.len() > 8, "{commit}");
    for command in [
        &[][..],
        &["serve"],
        &["migrate"],
        &["migrate", "up"],
        &["migrate", "down"],
        &["migrate", "status"],
        &["check-config"],
        &["user"],
        &["user", "create"],
        &["user", "list"],
        &["user", "set-password"],
        &["user", "unlock"],
        &["user", "reseal"],
        &["user", "grant"],
        &["key"],
        &["key", "list"],
        &["key", "stage"],
        &["key", "activate"],
        &["key", "retire"],
        &["audit"],
        &["audit", "verify"],
        &["backup"],
    ] {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let help = program.succeed(&arguments, "");
        assert!(help.contains("Usage: countersign"), "{command:?}: {help}");
        assert!(help.contains("COUNTERSIGN_DATABASE_URL"), "{command:?}");
        // No option without a word on it.
        for line in help
            .lines()
            .filter(|line| line.trim_start().starts_with("--"))
        {
            let words = line.split_whitespace().count();
            assert!(
                words > 2 || help.contains(&format!("{line}\n          ")),
                "{command:?}: {line}"
            );
        }
    }
    // Nothing is not a command.
    assert_eq!(program.run(&[]).status.code(), Some(2));
    assert_eq!(program.run(&["serv"]).status.code(), Some(2));
}

#[tokio::test]
async fn a_shell_completes_commands_from_the_script_that_it_is_given() {
    let program = Program::bare(Database::create(Kind::Sqlite).await);
    let script = program.succeed(&["completions", "bash"], "");
    let file = program.folder().join("completions");
    fs::write(&file, script).unwrap();
    let complete = |words: &str| {
        let line = format!(
            "source completions; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _countersign countersign \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             echo \"${{COMPREPLY[@]}}\""
        );
        let mut bash = std::process::Command::new("bash");
        let output = bash
            .args(["--norc", "-c", &line])
            .current_dir(program.folder());
        let output = output.output().expect("bash");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("countersign ser"), "serve");
    assert_eq!(complete("countersign user gr"), "grant");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = program.succeed(&["completions", shell], "");
        assert!(script.contains("check-config"), "{shell}");
    }
}

#[tokio::test]
async fn what_calibrate_proposes_can_be_set() {
    let program = Program::bare(Database::create(Kind::Sqlite).await);
    let text = program.succeed(&["calibrate", "--time", "10000"], "");
    assert!(text.contains("\nnow "), "{text}");
    assert!(text.contains("\nproposed "), "{text}");
    let (_, settings) = text.split_once("[hashing]\n").expect(&text);
    let file = program.folder().join("countersign.toml");
    fs::write(&file, format!("[hashing]\n{settings}")).unwrap();
    let file = file.display().to_string();
    program.succeed(&["--config", &file, "check-config"], "");
    let text = program.succeed(&["calibrate", "--time", "1"], "");
    assert!(
        text.contains("Nothing that a service should run with"),
        "{text}"
    );
}
