//! How the message of a request arrives, and what becomes of one that does not.

use futures_util::stream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;

const VALIDATE_MANY: &str = "/countersign.v1.TokenService/ValidateTokens";

type Sender = UnboundedSender<Result<Frame<Bytes>, Status>>;

/// A request whose body is sent by the test.
fn arriving(path: &str, what: &str) -> (Sender, Request<Body>) {
    let (sender, mut frames) = unbounded_channel();
    let body = StreamBody::new(stream::poll_fn(move |cx| frames.poll_recv(cx)));
    let request = request(path, &[("x-do", what)]).map(|_| Body::new(body));
    (sender, request)
}

fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, Status> {
    Ok(Frame::data(Bytes::from_static(bytes)))
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
    const LOGOUT: &str = "/countersign.v1.AuthService/Logout";
    let (sender, slow) = arriving(LOGOUT, "count");
    let slow = send_on(&edge, slow).await;
    sender.send(data(b"\0\0\0")).unwrap();
    assert_eq!(edge.call(LOGOUT, &[]).await.status.code(), Code::Ok);
    assert_eq!(edge.reached(), 1);

    sender.send(data(b"\0\x02ab")).unwrap();
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
