//! The correlation id and the log line of every call, however it ends.

use std::io;

use serde_json::Value;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// What was logged on this thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures until the guard is dropped.
    fn capture(level: tracing::Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(level)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn take(&self) -> Vec<Value> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The one line of the access log among what was logged.
    fn access_line(&self) -> Value {
        let mut lines = self.take();
        for line in &lines {
            let ids = &line["spans"][0];
            assert!(
                ids["correlation_id"].is_string() && ids["trace_id"].is_string(),
                "{line}"
            );
        }
        lines.retain(|line| line["target"] == "countersign::access");
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn every_answer_carries_the_correlation_id_and_has_its_line() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::with(|parts| {
        parts.config.register_per_minute = 1;
        parts.config.concurrency.stream = 1;
    });
    let register = "/countersign.v1.AuthService/Register";
    edge.call(register, &[]).await;
    let _stream = edge.send(request(WATCH, &[("x-do", "stream")])).await;
    log.take();
    for (what, path, headers, code, reason) in [
        ("success", VALIDATE, vec![], "OK", None),
        (
            "error",
            VALIDATE,
            vec![("x-do", "fail")],
            "NOT_FOUND",
            Some("USER_NOT_FOUND"),
        ),
        (
            "late error",
            VALIDATE,
            vec![("x-do", "fail late")],
            "UNKNOWN",
            Some("OUTCOME_UNKNOWN"),
        ),
        (
            "foreign error",
            VALIDATE,
            vec![("x-do", "fail as a library would")],
            "RESOURCE_EXHAUSTED",
            Some("REQUEST_TOO_LARGE"),
        ),
        (
            "panic",
            VALIDATE,
            vec![("x-do", "panic")],
            "INTERNAL",
            Some("INTERNAL"),
        ),
        (
            "unknown",
            "/x/y",
            vec![],
            "UNIMPLEMENTED",
            Some("METHOD_UNKNOWN"),
        ),
        (
            "refused",
            WHO_AM_I,
            vec![],
            "UNAUTHENTICATED",
            Some("CREDENTIALS_MISSING"),
        ),
        (
            "limited",
            register,
            vec![],
            "RESOURCE_EXHAUSTED",
            Some("RATE_LIMITED"),
        ),
        (
            "shed",
            WATCH,
            vec![],
            "RESOURCE_EXHAUSTED",
            Some("OVERLOADED"),
        ),
        (
            "late",
            VALIDATE,
            vec![("x-do", "wait"), ("grpc-timeout", "10m")],
            "DEADLINE_EXCEEDED",
            Some("DEADLINE_EXCEEDED"),
        ),
    ] {
        let id = format!("id-of-{}", what.replace(' ', "-"));
        let mut headers = headers;
        headers.push(("x-request-id", &id));
        let ended = edge.call(path, &headers).await;
        assert_eq!(ended.request_id(), id, "{what}");
        if let Some(reason) = reason {
            let details = ended.status.get_error_details();
            assert_eq!(details.request_info().unwrap().request_id, id, "{what}");
            assert_eq!(details.error_info().unwrap().reason, reason, "{what}");
        }
        let line = log.access_line();
        assert_eq!(line["spans"][0]["correlation_id"], id, "{what}");
        assert_eq!(line["fields"]["code"], code, "{what}: {line}");
        assert_eq!(line["fields"]["reason"].as_str(), reason, "{what}: {line}");
        let rpc = if what == "unknown" {
            "unknown"
        } else {
            &path[1..]
        };
        assert_eq!(line["fields"]["rpc"], rpc);
        assert_eq!(line["fields"]["peer"], "198.51.100.1");
    }
}

#[tokio::test]
async fn the_line_has_the_cost_and_a_call_that_is_left_has_one_too() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::new();
    edge.call(VALIDATE, &[("x-do", "cost")]).await;
    let line = log.access_line();
    let fields = &line["fields"];
    assert_eq!(fields["queries"], 1);
    assert_eq!(
        (&fields["db_ms"], &fields["hash_wait_ms"]),
        (&2.0.into(), &3.0.into())
    );
    assert_eq!(fields["hash_ms"], 4.0);
    assert!(fields["duration_ms"].as_f64().unwrap() > 0.0);

    // Left before the answer began, and before it ended.
    let call = edge
        .service
        .clone()
        .oneshot(request(VALIDATE, &[("x-do", "wait")]));
    tokio::time::timeout(Duration::from_millis(20), call)
        .await
        .unwrap_err();
    assert_eq!(log.access_line()["fields"]["code"], "CANCELLED");
    drop(edge.send(request(WATCH, &[("x-do", "stream")])).await);
    assert_eq!(log.access_line()["fields"]["code"], "CANCELLED");
}

#[tokio::test]
async fn good_validations_are_sampled_and_faults_never() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::with(|parts| parts.validation_log_sample = 10);
    let lines = |lines: Vec<Value>| {
        lines
            .iter()
            .filter(|line| line["target"] == "countersign::access")
            .count()
    };
    for _ in 0..40 {
        edge.call(VALIDATE, &[]).await;
    }
    assert_eq!(lines(log.take()), 4);
    for _ in 0..5 {
        edge.call(VALIDATE, &[("x-do", "panic")]).await;
    }
    assert_eq!(lines(log.take()), 5);
    for _ in 0..5 {
        edge.call(WHO_AM_I, &[]).await;
    }
    assert_eq!(lines(log.take()), 5);
}

#[tokio::test]
async fn the_exact_rejection_is_in_the_log_only() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::new();
    let bearer = format!("Bearer {}", edge.mint.token(&[]));
    edge.mint.clock.advance(Duration::from_hours(1));
    let ended = edge.call(WHO_AM_I, &[("authorization", &bearer)]).await;
    assert_eq!(log.access_line()["spans"][0]["rejection"], "expired");
    assert!(!format!("{:?}", ended.status).contains("expired"));
}

/// Whoever tries what they may not do is known by name.
#[tokio::test]
async fn who_is_refused_is_in_the_log() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::new();
    let bearer = format!("Bearer {}", edge.mint.token(&[]));
    let ended = edge
        .call(
            "/countersign.v1.UserService/ListUsers",
            &[("authorization", &bearer)],
        )
        .await;
    ended.assert_failed(Code::PermissionDenied, Reason::PermissionDenied);
    let line = log.access_line();
    let subject = line["spans"][0]["subject"].as_str().unwrap();
    assert!(subject.len() == 36, "{line}");
}

#[tokio::test]
async fn an_id_of_another_form_is_replaced() {
    let edge = Edge::new();
    let long = "x".repeat(65);
    for given in ["", "a b", "a\"b", "<script>", &long] {
        let ended = edge.call(VALIDATE, &[("x-request-id", given)]).await;
        let id = ended.request_id();
        assert_eq!(
            Uuid::try_parse(id).unwrap().get_version_num(),
            7,
            "{given:?} gave {id}"
        );
        assert_eq!(edge.last_call().correlation_id.as_str(), id);
    }
    let ended = edge
        .call(VALIDATE, &[("x-request-id", "a"), ("x-request-id", "b")])
        .await;
    assert!(ended.request_id().len() > 1);
    let (first, second) = (
        edge.call(VALIDATE, &[]).await,
        edge.call(VALIDATE, &[]).await,
    );
    assert_ne!(first.request_id(), second.request_id());
}

#[tokio::test]
async fn the_trace_is_the_callers_or_a_new_one() {
    let (log, _guard) = Log::capture(tracing::Level::INFO);
    let edge = Edge::new();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    edge.call(VALIDATE, &[("traceparent", &traceparent)]).await;
    assert_eq!(log.access_line()["spans"][0]["trace_id"], trace);
    edge.call(VALIDATE, &[("traceparent", "nonsense")]).await;
    let made = log.access_line()["spans"][0]["trace_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(made.len() == 32 && made != "0".repeat(32), "{made}");
}

#[tokio::test]
async fn ids_are_in_the_log_at_every_level() {
    let (log, _guard) = Log::capture(tracing::Level::ERROR);
    let edge = Edge::new();
    edge.call(VALIDATE, &[("x-do", "panic"), ("x-request-id", "mine")])
        .await;
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["spans"][0]["correlation_id"], "mine");
}

#[tokio::test]
async fn late_failures_are_sealed_in_the_trailers() {
    let edge = Edge::new();
    let ended = edge.call(VALIDATE, &[("x-do", "fail late")]).await;
    assert!(ended.trailers.is_some());
    ended.assert_failed(Code::Unknown, Reason::OutcomeUnknown);
}
