//! Clients that are not ours: grpcurl as people use it, and programs in other
//! languages with stubs made from the protos, the examples among them.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use countersign_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::{
    canary::methods,
    harness::{
        World,
        binary::{Program, Server},
        world,
    },
    on_both,
};

/// Something that `scripts/tools` has installed.
pub fn tool(variable: &str) -> PathBuf {
    let path: PathBuf = env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run the tests by scripts/test"))
        .into();
    let there = path.exists();
    assert!(there, "no {}: scripts/test installs it", path.display());
    path
}

/// Runs a program to its end without holding up a node in this process.
pub async fn run(mut command: Command) -> Output {
    let output = spawn_blocking(move || command.output()).await;
    output.unwrap().expect("the program starts")
}

/// A grpcurl that talks to one address.
struct Grpcurl {
    address: String,
    headers: Vec<String>,
}

impl Grpcurl {
    fn new(address: impl ToString) -> Self {
        Self {
            address: address.to_string(),
            headers: Vec::new(),
        }
    }

    fn with_token(&self, token: &str) -> Self {
        Self {
            address: self.address.clone(),
            headers: vec![format!("authorization: Bearer {token}")],
        }
    }

    async fn output(&self, before: &[&str], after: &[&str]) -> Output {
        let mut command = Command::new(tool("COUNTERSIGN_TEST_GRPCURL"));
        command.arg("-plaintext");
        for header in &self.headers {
            command.args(["-H", header]);
        }
        command.args(before).arg(&self.address).args(after);
        run(command).await
    }

    async fn good(&self, before: &[&str], after: &[&str]) -> String {
        let output = self.output(before, after).await;
        assert!(output.status.success(), "{after:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn call(&self, rpc: &str, request: Value) -> Value {
        let rpc = format!("countersign.v1.{rpc}");
        let text = self.good(&["-d", &request.to_string()], &[&rpc]).await;
        serde_json::from_str(&text).unwrap()
    }

    /// What grpcurl prints of a call that is refused.
    async fn refused(&self, headers: &[&str], rpc: &str, request: Value) -> String {
        let (rpc, request) = (format!("countersign.v1.{rpc}"), request.to_string());
        let mut before = vec!["-d", &request];
        for header in headers {
            before.extend(["-H", header]);
        }
        let output = self.output(&before, &[&rpc]).await;
        assert!(!output.status.success(), "{rpc}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// How grpcurl shows an error to a person.
const AN_ERROR: &str = r#"ERROR:
  Code: Unauthenticated
  Message: the access token is not valid
  Details:
  1)	{"@type":"type.googleapis.com/google.rpc.ErrorInfo","domain":"countersign","reason":"TOKEN_INVALID"}
  2)	{"@type":"type.googleapis.com/google.rpc.RequestInfo","requestId":"tour-1"}
"#;

/// The same with several fields that break their rules.
const VIOLATIONS: &str = r#"ERROR:
  Code: InvalidArgument
  Message: the request breaks the rules of its fields
  Details:
  1)	{"@type":"type.googleapis.com/google.rpc.ErrorInfo","domain":"countersign","reason":"INVALID_REQUEST"}
  2)	{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{"field":"email","description":"must be an e-mail address such as ana@example.com"},{"field":"username","description":"must be 3 to 64 of a-z, 0-9, `.`, `_`, `-`, starting with a letter"}]}
  3)	{"@type":"type.googleapis.com/google.rpc.RequestInfo","requestId":"tour-2"}
"#;

/// The retry policy that the README gives to clients.
fn retry_policy() -> Value {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```json\n").expect("a policy");
    let (policy, _) = rest.split_once("```").expect("its end");
    serde_json::from_str(policy).expect("JSON")
}

#[test]
fn the_readmes_retry_policy_names_what_there_is() {
    let methods: Vec<String> = methods().into_iter().map(|(rpc, _)| rpc).collect();
    for config in retry_policy()["methodConfig"].as_array().unwrap() {
        for name in config["name"].as_array().unwrap() {
            let service = name["service"].as_str().unwrap();
            let method = name["method"].as_str().unwrap_or_default();
            let prefix = format!("{service}/{method}");
            assert!(
                methods.iter().any(|rpc| rpc.starts_with(&prefix)),
                "{prefix}"
            );
        }
    }
}

#[test]
fn the_example_clients_retry_by_the_readmes_policy() {
    let theirs = include_str!("../../examples/clients/service_config.json");
    let theirs: Value = serde_json::from_str(theirs).unwrap();
    assert_eq!(theirs, retry_policy());
}

/// An example client in a checkout that has nothing generated in it.
struct Example {
    checkout: TempDir,
    language: &'static str,
    /// The `PATH` that its commands are run with.
    path: OsString,
}

impl Example {
    fn new(language: &'static str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = root.join("examples/clients");
        let checkout = tempfile::tempdir().unwrap();
        symlink(root.join("proto"), checkout.path().join("proto")).unwrap();
        let clients = checkout.path().join("examples/clients");
        fs::create_dir_all(clients.join(language)).unwrap();
        let shared = "service_config.json";
        fs::copy(source.join(shared), clients.join(shared)).unwrap();
        for entry in fs::read_dir(source.join(language)).unwrap() {
            let entry = entry.unwrap();
            // Its folders are what somebody has generated or installed there.
            if entry.file_type().unwrap().is_file() {
                let copy = clients.join(language).join(entry.file_name());
                fs::copy(entry.path(), copy).unwrap();
            }
        }
        let program = if language == "python" {
            tool("COUNTERSIGN_TEST_PYTHON")
        } else {
            let packages = tool("COUNTERSIGN_TEST_NODE_MODULES");
            symlink(packages, clients.join(language).join("node_modules")).unwrap();
            tool("COUNTERSIGN_TEST_NPM")
        };
        let mut path = program.parent().unwrap().as_os_str().to_owned();
        path.push(":");
        path.push(env::var_os("PATH").unwrap());
        Self {
            checkout,
            language,
            path,
        }
    }

    /// What the examples' README says to do once the packages are installed:
    /// the last block of the language's section.
    fn commands(&self) -> Vec<&'static str> {
        let readme = include_str!("../../examples/clients/README.md");
        let section = readme
            .split("\n## ")
            .find(|section| section.to_lowercase().starts_with(self.language))
            .expect("a section");
        let (_, block) = section.rsplit_once("```console\n").expect("a block");
        let lines = block.lines().take_while(|line| *line != "```");
        lines
            .map(|line| line.strip_prefix("$ ").expect("a command"))
            .collect()
    }

    /// Runs a command in its folder. A client that hangs is ended.
    async fn run(&self, command: &str, address: &str) -> Output {
        let folder = self.checkout.path().join("examples/clients");
        let mut shell = Command::new("timeout");
        shell
            .args(["120", "sh", "-c", command])
            .current_dir(folder.join(self.language))
            .env("PATH", &self.path)
            .env("COUNTERSIGN_ADDRESS", address)
            // npm keeps its log there, and asks nobody whether it is old.
            .env("npm_config_cache", self.checkout.path().join("npm"))
            .env("npm_config_update_notifier", "false");
        run(shell).await
    }

    /// Makes the stubs, and returns the command that starts the client.
    async fn build(&self) -> &'static str {
        let mut commands = self.commands();
        let start = commands.pop().expect("a command");
        for command in commands {
            let output = self.run(command, "").await;
            assert!(output.status.success(), "{command}: {output:?}");
        }
        start
    }

    /// What the client says for the reason why it failed.
    async fn fail(&self, start: &str, address: &str) -> String {
        let output = self.run(start, address).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The calls in a server's log, each as RPC, code and correlation id. Not
/// validations, whose lines are sampled.
fn calls(server: &Server) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let lines = server.lines().into_iter();
    let calls = lines.filter(|line| line["message"] == "call").map(|line| {
        let id = &line["spans"][0]["correlation_id"];
        [text(&line["rpc"]), text(&line["code"]), text(id)]
    });
    calls
        .filter(|[rpc, ..]| rpc.starts_with("countersign.v1.AuthService/"))
        .collect()
}

async fn an_example_walks(program: &Program, language: &'static str) {
    let example = Example::new(language);
    let start = example.build().await;
    let mut server = program.serve("node").await;
    let output = example.run(start, &server.address).await;
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for step in [
        "registered  ",
        "logged in   ",
        "validated   ",
        "CALLER_KIND_USER until 20",
        "refreshed   ",
        "refused     Login: UNAUTHENTICATED LOGIN_FAILED: ",
        "logged out  ",
        "refused     Refresh: UNAUTHENTICATED REFRESH_TOKEN_INVALID: ",
    ] {
        assert!(said.contains(step), "{step}: {said}");
    }

    // The server saw each call under a name of the client's. A line may be
    // written after the answer has left.
    server
        .until("all logged", |server| calls(server).len() >= 6)
        .await;
    let seen = calls(&server);
    let outcomes: Vec<_> = seen
        .iter()
        .map(|[rpc, code, _]| (rpc.rsplit('/').next().unwrap(), &**code))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("Register", "OK"),
            ("Login", "OK"),
            ("Refresh", "OK"),
            ("Login", "UNAUTHENTICATED"),
            ("Logout", "OK"),
            ("Refresh", "UNAUTHENTICATED"),
        ]
    );
    let ids: BTreeSet<_> = seen.iter().map(|[.., id]| id).collect();
    assert_eq!(ids.len(), seen.len());
    assert!(ids.iter().all(|id| id.starts_with(language)), "{ids:?}");
    let refused = seen.iter().filter(|[_, code, _]| code != "OK");
    for [.., id] in refused {
        assert!(said.contains(id), "{id}: {said}");
    }

    // A surprise is told with its reason, and ends it.
    let told = example.fail(start, &server.address).await;
    server
        .until("the next logged", |server| calls(server).len() >= 7)
        .await;
    let [rpc, code, id] = calls(&server).pop().unwrap();
    assert_eq!(
        (&*rpc, &*code),
        ("countersign.v1.AuthService/Register", "ALREADY_EXISTS")
    );
    assert!(
        told.contains("Register: ALREADY_EXISTS EMAIL_TAKEN: "),
        "{told}"
    );
    assert!(told.contains(&id), "{id}: {told}");
    let address = server.address.clone();
    drop(server);
    let told = example.fail(start, &address).await;
    assert!(told.contains("Register: UNAVAILABLE "), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_clients_do_not_wait_for_ever() {
    // Connections are taken by the kernel, and nobody ever reads.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let wait = async |language| {
        let example = Example::new(language);
        let start = example.build().await;
        let told = example.fail(start, &address).await;
        assert!(told.contains("Register: DEADLINE_EXCEEDED "), "{told}");
    };
    tokio::join!(wait("python"), wait("typescript"));
}

fn services() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let files = set
        .file
        .iter()
        .filter(|file| file.package() == "countersign.v1");
    files
        .flat_map(|file| file.service.iter())
        .map(|service| format!("countersign.v1.{}", service.name()))
        .collect()
}

on_both! {
    async fn grpcurl_shows_every_service_with_its_comments(world: World) {
        let grpcurl = Grpcurl::new(world.node.address);
        let listed = grpcurl.good(&[], &["list"]).await;
        let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
        let mut expected = services();
        expected.extend(
            ["envoy.service.auth.v3.Authorization", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
             "grpc.reflection.v1alpha.ServerReflection"].map(str::to_owned),
        );
        assert_eq!(listed, expected);

        for service in services() {
            let described = grpcurl.good(&[], &["describe", &service]).await;
            let name = service.rsplit('.').next().unwrap();
            assert!(described.contains(&format!("// {name} ")), "{described}");
            for (rpc, comment) in methods().iter().filter(|(rpc, _)| rpc.starts_with(&service)) {
                let method = rpc.rsplit('/').next().unwrap();
                assert!(described.contains(&format!("rpc {method} (")), "{rpc}");
                assert!(!comment.is_empty(), "{rpc} has no comment");
                for line in comment.lines() {
                    assert!(described.contains(format!("//{line}").trim_end()), "{rpc}: {line}");
                }
            }
        }
        // Messages and the types of error details are known too.
        let described = grpcurl.good(&[], &["describe", "countersign.v1.TokenPair"]).await;
        assert!(described.contains("starts with \"csr_\""), "{described}");
        for detail in ["ErrorInfo", "BadRequest", "RetryInfo", "QuotaFailure", "RequestInfo"] {
            grpcurl.good(&[], &["describe", &format!("google.rpc.{detail}")]).await;
        }
    }

    async fn grpcurl_walks_the_way_of_an_account(world: World) {
        let grpcurl = Grpcurl::new(world.node.address);
        let person = serde_json::json!({"email": "ana@example.com", "password": world::PASSWORD});
        let made = grpcurl.call("AuthService/Register", person).await;
        assert_eq!(made["user"]["status"], "USER_STATUS_ACTIVE");
        let login = serde_json::json!({"identifier": "ana@example.com", "password": world::PASSWORD});
        let pair = grpcurl.call("AuthService/Login", login).await["tokens"].clone();
        let token = serde_json::json!({"token": pair["accessToken"]});
        let caller = grpcurl.call("TokenService/ValidateToken", token).await["caller"].clone();
        assert_eq!(caller["subject"], made["user"]["userId"]);
        let ana = grpcurl.with_token(pair["accessToken"].as_str().unwrap());
        let me = ana.call("AuthService/WhoAmI", Value::Object(serde_json::Map::new())).await;
        assert_eq!(me["user"], made["user"]);
        let refresh = serde_json::json!({"refreshToken": pair["refreshToken"]});
        let next = grpcurl.call("AuthService/Refresh", refresh).await["tokens"].clone();
        let leave = serde_json::json!({"refreshToken": next["refreshToken"]});
        grpcurl.call("AuthService/Logout", leave).await;
        let token = serde_json::json!({"token": next["accessToken"]});
        let refused = grpcurl
            .refused(&["x-request-id: tour-1"], "TokenService/ValidateToken", token)
            .await;
        assert_eq!(refused, AN_ERROR);
        let bad = serde_json::json!({"email": "nobody", "password": world::PASSWORD, "username": "!"});
        let refused = grpcurl
            .refused(&["x-request-id: tour-2"], "AuthService/Register", bad)
            .await;
        assert_eq!(refused, VIOLATIONS);
        let health = grpcurl
            .good(&["-d", "{\"service\": \"countersign.v1.AuthService\"}"], &["grpc.health.v1.Health/Check"])
            .await;
        assert!(health.contains("\"SERVING\""), "{health}");
    }

    async fn a_python_client_does_what_it_came_for(world: World) {
        let limited = World::with(world.database.kind, |config| {
            config.limits.rate_limits_enabled = true;
            config.limits.login_per_minute = 3;
        }).await;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let stubs = tempfile::tempdir().unwrap();
        let policy = stubs.path().join("policy.json");
        std::fs::write(&policy, retry_policy().to_string()).unwrap();
        let mut command = Command::new(tool("COUNTERSIGN_TEST_PYTHON"));
        command
            .arg(root.join("tests/clients/walk.py"))
            .arg(limited.node.address.to_string())
            .arg(root.join("proto"))
            .arg(stubs.path())
            .arg(&policy)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let output = run(command).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["subject"], found["user_id"]);
        assert_eq!(found["keys"], 1);
        assert_eq!(found["whoami"], "python@example.com");
        assert_eq!(found["request_id"], "python-1");
        assert_eq!(found["violations"], serde_json::json!(["email", "username"]));
        assert_eq!(found["quota"], "login");
        // Three in a minute: the next one is welcome 20 seconds later.
        assert_eq!(found["retry_seconds"].as_f64().unwrap().round().to_string(), "20");
        let pushback = found["pushback_ms"].as_i64().unwrap();
        assert!((19_900..=20_100).contains(&pushback), "{pushback}");
        let listed = found["services"].as_array().unwrap();
        for service in services() {
            assert!(listed.contains(&service.clone().into()), "{service} is not listed");
        }
    }
}

on_both! {
    async fn the_python_example_does_what_its_readme_says(program: Program) {
        an_example_walks(&program, "python").await;
    }

    async fn the_typescript_example_does_what_its_readme_says(program: Program) {
        an_example_walks(&program, "typescript").await;
    }
}
