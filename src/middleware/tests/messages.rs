//! How the message of a request arrives, and what becomes of one that does not.

use futures_util::stream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use super::*;
use crate::middleware::{share, whole};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const VALIDATE_MANY: &str = "/countersign.v1.TokenService/ValidateTokens";

type Sender = UnboundedSender<Result<Frame<Bytes>, Status>>;

/// A request whose body is sent by the test.
fn arriving(path: &str, what: &str) -> (Sender, Request<Body>) {
    let (sender, mut frames) = unbounded_channel();
    let body = StreamBody::new(stream::poll_fn(move |cx| frames.poll_recv(cx)));
    let request = request(path, &[("x-do", what)]).map(|_| Body::new(body));
    (sender, request)
}

fn data(bytes: &'static [u8]) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes))
}

/// A request with these frames.
fn with_frames(path: &str, frames: Vec<Bytes>) -> Request<Body> {
    let frames = frames
        .into_iter()
        .map(|data| Ok::<_, Status>(Frame::data(data)));
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    request(path, &[("x-do", "count")]).map(|_| body)
}

async fn send_on(edge: &Edge, request: Request<Body>) -> tokio::task::JoinHandle<Ended> {
    let service = edge.service.clone();
    let task = tokio::spawn(async move { end(service.oneshot(request).await.unwrap()).await });
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_not_arrived_takes_no_place() {
    let edge = Edge::with(|parts| parts.config.concurrency.write = 1);
    let (sender, slow) = arriving(LOGOUT, "count");
    let slow = send_on(&edge, slow).await;
    sender.send(Ok(data(b"\0\0\0"))).unwrap();
    assert_eq!(edge.call(LOGOUT, &[]).await.status.code(), Code::Ok);
    assert_eq!(edge.reached(), 1);

    sender.send(Ok(data(b"\0\x02ab"))).unwrap();
    drop(sender);
    assert_eq!(slow.await.unwrap().status.code(), Code::Ok);
    assert_eq!(edge.last_call().cost.database_micros(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_arrive_in_time_is_given_up() {
    let edge = Edge::new();
    for (path, timeout, seconds) in [(VALIDATE, "20S", 5), (VALIDATE, "2S", 2)] {
        let (sender, mut slow) = arriving(path, "count");
        slow.headers_mut()
            .insert("grpc-timeout", timeout.parse().unwrap());
        let started = tokio::time::Instant::now();
        let ended = end(edge.send(slow).await).await;
        ended.assert_failed(Code::DeadlineExceeded, Reason::DeadlineExceeded);
        let took = started.elapsed().as_millis();
        assert!(took.abs_diff(seconds * 1000) <= 5, "{took} ms");
        drop(sender);
    }
    assert_eq!(edge.reached(), 0);
}

#[tokio::test]
async fn envoy_has_an_answer_however_large_a_request_was_made() {
    let edge = Edge::new();
    let kib = |n: usize| Bytes::from(vec![7; n * 1024]);
    let prefix = || Bytes::from_static(&[0; 5]);
    for (frames, reads) in [
        (vec![prefix(), kib(256)], 256 * 1024 + 5),
        // The empty message, whatever follows.
        (vec![prefix(), kib(256), Bytes::from_static(b"x")], 5),
        (vec![prefix(), kib(200), kib(100), kib(1), kib(300)], 5),
        (vec![kib(1000)], 5),
    ] {
        let ended = end(edge.send(with_frames(CHECK, frames)).await).await;
        assert_eq!(ended.status.code(), Code::Ok);
        assert_eq!(edge.last_call().cost.database_micros(), reads);
    }
}

#[tokio::test]
async fn a_message_may_be_as_large_as_its_row_says() {
    let edge = Edge::new();
    let kib = |n: usize| Bytes::from(vec![7; n * 1024]);
    let prefix = || Bytes::from_static(&[0; 5]);
    for (path, kibs) in [(VALIDATE, 64), (VALIDATE_MANY, 1024)] {
        let frames = vec![prefix(), kib(kibs / 2), kib(kibs / 2)];
        let fits = end(edge.send(with_frames(path, frames.clone())).await).await;
        assert_eq!(fits.status.code(), Code::Ok);
        let read = edge.last_call().cost.database_micros();
        assert_eq!(read, kibs as u64 * 1024 + 5, "{path}");

        let reached = edge.reached();
        let more = frames.into_iter().chain([Bytes::from_static(b"x")]);
        let large = end(edge.send(with_frames(path, more.collect())).await).await;
        large.assert_failed(Code::ResourceExhausted, Reason::RequestTooLarge);
        assert_eq!(edge.reached(), reached);
    }
}

#[tokio::test]
async fn a_caller_who_breaks_off_reaches_nobody() {
    let edge = Edge::new();
    let (sender, broken) = arriving(VALIDATE, "count");
    let broken = send_on(&edge, broken).await;
    sender.send(Err(Status::unknown("reset"))).unwrap();
    let ended = broken.await.unwrap();
    ended.assert_failed(Code::Cancelled, Reason::Cancelled);
    assert_eq!(edge.reached(), 0);
}

#[tokio::test]
async fn a_stream_is_served_before_its_requests_have_ended() {
    let edge = Edge::new();
    let (sender, open) = arriving(WATCH, "stream");
    let response = edge.send(open).await;
    assert_eq!(edge.reached(), 1);
    drop((sender, response));
}

#[tokio::test(start_paused = true)]
async fn what_one_peer_sends_in_parts_is_bounded_and_others_do_not_feel_it() {
    let edge = Edge::new();
    let part = || Bytes::from(vec![0; 1024 * 1024]);
    let mut waiting = Vec::new();
    for _ in 0..whole::MEMORY / share::PEERS / part().len() {
        let (sender, slow) = arriving(VALIDATE_MANY, "count");
        sender.send(Ok(Frame::data(part()))).unwrap();
        waiting.push((sender, send_on(&edge, slow).await));
    }
    let one_more = |address: &str| {
        let (sender, mut slow) = arriving(VALIDATE_MANY, "count");
        let address = Some(address.parse().unwrap());
        slow.extensions_mut().insert(Connection {
            address,
            ..Connection::default()
        });
        sender.send(Ok(data(b"\0"))).unwrap();
        (sender, slow)
    };
    let (_sender, slow) = one_more("198.51.100.1");
    let ended = end(edge.send(slow).await).await;
    ended.assert_failed(Code::ResourceExhausted, Reason::Overloaded);
    // What is here at once waits for nothing.
    assert_eq!(edge.call(VALIDATE, &[]).await.status.code(), Code::Ok);
    let (sender, slow) = one_more("203.0.113.9");
    let other = send_on(&edge, slow).await;
    drop(sender);
    assert_eq!(other.await.unwrap().status.code(), Code::Ok);

    for (sender, task) in waiting.drain(..) {
        drop(sender);
        assert_eq!(task.await.unwrap().status.code(), Code::Ok);
    }
    let (sender, slow) = one_more("198.51.100.1");
    let again = send_on(&edge, slow).await;
    drop(sender);
    assert_eq!(again.await.unwrap().status.code(), Code::Ok);
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_callers_fault() {
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    let health = HealthService::from_health_reporter(HealthReporter::new());
    let mint = Mint::new();
    let service = stack(Routes::new(HealthServer::new(health)), &Edge::parts(&mint));
    let invalid = (Code::InvalidArgument, Reason::InvalidRequest);
    // As the protocol wants it.
    let unknown = (Code::Unimplemented, Reason::InvalidRequest);
    let cases: &[(&str, &[u8], Option<&str>, _)] = &[
        ("nothing", b"", None, invalid),
        ("half a prefix", b"\0\0\0", None, invalid),
        ("a prefix alone", b"\0\0\0\0\x05", None, invalid),
        ("half a message", b"\0\0\0\0\x05\x0a\x03a", None, invalid),
        ("a message and a half", b"\0\0\0\0\0\0", None, invalid),
        (
            "a second that is no message",
            b"\0\0\0\0\0\x07\0\0\0\0",
            None,
            invalid,
        ),
        ("compressed by nothing", b"\x01\0\0\0\0", None, invalid),
        (
            "compressed by identity",
            b"\x01\0\0\0\0",
            Some("identity"),
            invalid,
        ),
        ("compressed by gzip", b"\x01\0\0\0\0", Some("gzip"), unknown),
        ("compressed by what?", b"\0\0\0\0\0", Some("what"), unknown),
        ("no such flag", b"\x07\0\0\0\0", None, invalid),
        (
            "text that is not UTF-8",
            b"\0\0\0\0\x03\x0a\x01\xff",
            None,
            invalid,
        ),
        ("the field 0", b"\0\0\0\0\x02\0\0", None, invalid),
        (
            "a wire type that is none",
            b"\0\0\0\0\x01\x0f",
            None,
            invalid,
        ),
        ("another wire type", b"\0\0\0\0\x02\x08\x01", None, invalid),
        ("a field cut short", b"\0\0\0\0\x03\x0a\x09a", None, invalid),
        (
            "a number without an end",
            b"\0\0\0\0\x02\x10\xff",
            None,
            invalid,
        ),
        ("the end of no group", b"\0\0\0\0\x01\x14", None, invalid),
        ("JSON", b"{\"service\":\"\"}", None, invalid),
        (
            "a length beyond all limits",
            b"\0\xff\xff\xff\xff",
            None,
            (Code::ResourceExhausted, Reason::RequestTooLarge),
        ),
    ];
    for (what, bytes, encoding, (code, reason)) in cases {
        let mut request =
            request(CHECK, &[]).map(|_| Body::new(Full::new(Bytes::from_static(bytes))));
        if let Some(encoding) = encoding {
            let encoding = encoding.parse().unwrap();
            request.headers_mut().insert("grpc-encoding", encoding);
        }
        let response = service.clone().oneshot(request).await.unwrap();
        let ended = end(response.map(BodyExt::boxed_unsync)).await;
        let seen = (ended.status.code(), ended.reason());
        let wanted = (*code, crate::error::reason_name(*reason).to_owned());
        assert_eq!(seen, wanted, "{what}");
    }
}
