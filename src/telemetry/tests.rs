//! One process, one setting up: what is global is tested in one test.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::middleware::tests::{Edge, WHO_AM_I};

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The lines that speak of this.
    fn about(&self, what: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(what));
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn json() -> Config {
    Config {
        format: Format::Json,
        ..Config::default()
    }
}

#[tokio::test]
async fn a_process_is_set_up_once_and_its_level_can_change() {
    let log = Log::default();
    let writer = log.clone();
    let telemetry =
        Telemetry::install_to(&json(), BoxMakeWriter::new(move || writer.clone())).unwrap();
    let span = tracing::error_span!("call", correlation_id = "c-1");
    span.in_scope(|| tracing::info!("a line of a call"));
    let lines = log.about("a line of a call");
    assert_eq!(lines[0]["spans"][0]["correlation_id"], "c-1", "{lines:?}");
    assert_eq!(lines[0]["message"], "a line of a call");

    // Again, elsewhere: nothing changes.
    let again = Telemetry::install(&json()).unwrap();
    tracing::info!("a second setting up");
    assert_eq!(log.about("a second setting up").len(), 1);

    tracing::debug!("too quiet");
    telemetry.set_level("debug").unwrap();
    tracing::debug!("loud enough");
    telemetry.set_level("no=such=level").unwrap_err();
    tracing::debug!("still loud");
    again.set_level("info").unwrap();
    tracing::debug!("quiet again");
    let heard = ["too quiet", "loud enough", "still loud", "quiet again"];
    assert_eq!(heard.map(|what| log.about(what).len()), [0, 1, 1, 0]);

    log_panics();
    let panic = span.in_scope(|| panic::catch_unwind(|| panic!("on purpose, once")));
    drop(panic::take_hook());
    panic.unwrap_err();
    let lines = log.about("on purpose, once");
    assert_eq!(lines[0]["spans"][0]["correlation_id"], "c-1");
    assert!(
        lines[0]["place"]
            .as_str()
            .unwrap()
            .contains("telemetry/tests.rs")
    );

    Edge::new().get(WHO_AM_I).await;
    telemetry.metrics().run_upkeep();
    let text = telemetry.metrics().render();
    for line in [
        "# HELP countersign_requests_total Calls that have ended, by gRPC code",
        "countersign_requests_total{rpc=\"countersign.v1.AuthService/WhoAmI\",code=\"UNAUTHENTICATED\"}",
        "countersign_request_seconds_bucket{rpc=\"countersign.v1.AuthService/WhoAmI\",le=\"0.1\"}",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

/// A collector that keeps what it is sent.
async fn collector(received: Arc<Mutex<Vec<u8>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let received = Arc::clone(&received);
            let service = service_fn(move |request: http::Request<Incoming>| {
                let received = Arc::clone(&received);
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    received.lock().unwrap().extend_from_slice(&body);
                    let response = http::Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", "0");
                    Ok::<_, hyper::Error>(response.body(Full::<Bytes>::default()).unwrap())
                }
            });
            let http = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    endpoint
}

/// As the serving threads are, which must not wait for what they have to do
/// themselves.
#[tokio::test]
async fn spans_are_exported_into_the_callers_trace() {
    let received = Arc::default();
    let config = Config {
        otlp_endpoint: collector(Arc::clone(&received)).await,
        ..json()
    };
    let traces = exporter(&config).unwrap();
    let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer(SERVICE));
    let log = Log::default();
    let writer = log.clone();
    let lines = fmt::layer().json().with_writer(move || writer.clone());
    let guard =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(lines).with(layer));
    let edge = Edge::exporting_traces();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    edge.get_in_trace(WHO_AM_I, &format!("00-{trace}-00f067aa0ba902b7-01"))
        .await;
    edge.get(WHO_AM_I).await;
    drop(guard);
    flush(traces).await;

    let received: Vec<u8> = received.lock().unwrap().clone();
    let contains = |bytes: &[u8]| received.windows(bytes.len()).any(|window| window == bytes);
    assert!(contains(b"countersign.v1.AuthService/WhoAmI"));
    let lines = log.about("countersign::access");
    let ids: Vec<&str> = lines
        .iter()
        .map(|line| line["spans"][0]["trace_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids[0], trace);
    // The log names the trace that was exported, given or made.
    for id in ids {
        let id = u128::from_str_radix(id, 16).unwrap();
        assert!(id != 0 && contains(&id.to_be_bytes()), "{id:x}");
    }
}

#[test]
fn what_cannot_work_is_named() {
    assert_eq!(Config::default().validate(), Ok(()));
    let config = Config {
        level: "a=b=c".into(),
        otlp_endpoint: "collector:4317".into(),
        validation_log_sample: 0,
        ..Config::default()
    };
    let problems = config.validate().unwrap_err();
    let keys = [
        "telemetry.level",
        "telemetry.otlp_endpoint",
        "telemetry.validation_log_sample",
    ];
    assert_eq!(problems.len(), keys.len());
    for (problem, key) in problems.iter().zip(keys) {
        assert!(problem.starts_with(key), "{problem}");
    }
}
