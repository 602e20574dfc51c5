//! The example as a process, where there is no node to follow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use orders::v1::{ListOrdersRequest, orders_service_client::OrdersServiceClient};
use tonic::{Code, transport::Endpoint};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
};
use tonic_types::StatusExt as _;

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orders"));
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// A process that runs; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The address in the log's line about serving.
fn address(log: &Path) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(log).unwrap();
        let found = text
            .lines()
            .find_map(|line| line.split_once("serving address="));
        if let Some((_, address)) = found {
            return address.trim().to_owned();
        }
        assert!(Instant::now() < deadline, "it does not serve: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_help_names_every_flag_and_what_is_missing_is_said() {
    let help = program().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for flag in [
        "--listen",
        "--node",
        "--issuer",
        "--credential-file",
        "--audience",
        "--max-staleness",
    ] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
    let refused = program().output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--node"));
}

#[tokio::test]
async fn without_a_node_it_refuses_says_why_and_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    fs::write(folder.path().join("key"), "csk_unused").unwrap();
    // Held, so that nobody else listens there; nothing is ever accepted.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = format!("http://{}", nobody.local_addr().unwrap());
    let child = program()
        .args(["--listen", "127.0.0.1:0", "--node", &node])
        .args([
            "--issuer",
            "https://auth.example.com",
            "--credential-file",
            "key",
        ])
        .current_dir(folder.path())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let endpoint = Endpoint::from_shared(format!("http://{}", address(&log))).unwrap();
    let channel = endpoint.connect_lazy();

    let mut orders = OrdersServiceClient::new(channel.clone());
    let refused = orders.list_orders(ListOrdersRequest {}).await.unwrap_err();
    let reason = refused.get_details_error_info().expect("a reason").reason;
    assert_eq!((refused.code(), &*reason), (Code::Unavailable, "NOT_READY"));
    let health = HealthClient::new(channel)
        .check(HealthCheckRequest {
            service: "orders.v1.OrdersService".to_owned(),
        })
        .await;
    let status = health.unwrap().into_inner().status;
    assert_eq!(status, ServingStatus::NotServing as i32);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("nothing is known yet"), "{text}");

    let pid = running.0.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        // Not by blocking: our own connection is to hear of the end, too.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let text = fs::read_to_string(&log).unwrap();
    assert!(
        status.success() && text.contains("stopping"),
        "{status}: {text}"
    );
}
