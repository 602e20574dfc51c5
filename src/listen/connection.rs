//! One connection from its first byte to its last: it must begin in time, is
//! closed when idle or old or when the node stops, and while it is being closed
//! its calls have a while to end.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service, ServiceExt as _};

use super::{
    Config,
    budget::{self, Budget},
};
use crate::middleware::{held::Held, peer};

/// The client's preface and the head of the SETTINGS frame that must follow it
/// (RFC 9113, section 3.4). No request of HTTP/1.1 that means anything is shorter.
const PREFACE_BYTES: usize = budget::PREFACE.len() + budget::HEAD;

const KIB: u32 = 1024;

/// What holds for each connection of a listener.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    http: auto::Builder<TokioExecutor>,
    idle: Duration,
    grace: Duration,
}

/// What a connection is doing, seen from beside it.
#[derive(Debug)]
struct Activity {
    started: Instant,
    bytes: AtomicUsize,
    calls: AtomicUsize,
    /// When the last call ended, in milliseconds after the start.
    quiet_since: AtomicU64,
}

/// One call of a connection.
#[derive(Debug)]
struct Running(Arc<Activity>);

/// Where a connection is in its life, and until when.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Beginning(Instant),
    Open,
    Closing(Instant),
}

pin_project! {
    /// Counts what is read, and ends when its budget is spent.
    struct Counted<I> {
        #[pin]
        io: I,
        activity: Arc<Activity>,
        budget: Budget,
    }
}

impl Rules {
    /// The rules for HTTP/2, and for HTTP/1.1 where that is served.
    pub(super) fn new(config: &Config, http1: bool) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(config.handshake_timeout_ms))
            .max_buf_size(64 * 1024);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(config.max_concurrent_streams)
            .max_header_list_size(16 * KIB)
            // Modest: what one connection can make the node hold in memory.
            .initial_stream_window_size(64 * KIB)
            .initial_connection_window_size(256 * KIB)
            .keep_alive_interval(Duration::from_secs(config.keepalive_seconds))
            .keep_alive_timeout(Duration::from_secs(config.keepalive_timeout_seconds));
        Self {
            http: if http1 { http } else { http.http2_only() },
            idle: Duration::from_secs(config.idle_seconds),
            grace: Duration::from_secs(config.close_grace_seconds),
        }
    }

    /// Serves a connection until it ends. It must begin until `begin_by`, and is
    /// closed at `old_at`.
    pub(super) async fn serve<I, S, B>(
        &self,
        io: I,
        connection: peer::Connection,
        service: S,
        (begin_by, old_at): (Instant, Instant),
        shutdown: CancellationToken,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let activity = Arc::new(Activity::new());
        let io = Counted {
            io,
            activity: Arc::clone(&activity),
            budget: Budget::new(),
        };
        let calls = Arc::clone(&activity);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            let running = Running::new(&calls);
            let response = service.clone().oneshot(request);
            async move {
                let response = response.await?;
                Ok::<_, Infallible>(response.map(|body| Held::new(body, Some(running))))
            }
        });
        let mut http = pin!(self.http.serve_connection(TokioIo::new(io), service));
        let mut phase = Phase::Beginning(begin_by);
        loop {
            let wake = match phase {
                Phase::Beginning(until) | Phase::Closing(until) => until,
                Phase::Open => old_at.min(activity.idle_at(self.idle)),
            };
            let stop = tokio::select! {
                biased;
                _ended = http.as_mut() => return,
                () = shutdown.cancelled(), if !matches!(phase, Phase::Closing(_)) => true,
                () = sleep_until(wake) => false,
            };
            let now = Instant::now();
            phase = match phase {
                // The grace is over, or nobody has spoken in time.
                Phase::Closing(_) => return,
                Phase::Beginning(_) if !activity.has_begun() => return,
                _ if stop || now >= old_at || now >= activity.idle_at(self.idle) => {
                    http.as_mut().graceful_shutdown();
                    Phase::Closing(now + self.grace)
                }
                _ => Phase::Open,
            };
        }
    }
}

impl Activity {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            bytes: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            quiet_since: AtomicU64::new(0),
        }
    }

    fn has_begun(&self) -> bool {
        self.bytes.load(Relaxed) >= PREFACE_BYTES
    }

    /// When the connection will have been idle for so long, if no call comes.
    fn idle_at(&self, idle: Duration) -> Instant {
        if self.calls.load(Relaxed) > 0 {
            return Instant::now() + idle;
        }
        self.started + Duration::from_millis(self.quiet_since.load(Relaxed)) + idle
    }
}

impl Running {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.calls.fetch_add(1, Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let since = self.0.started.elapsed().as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.0.quiet_since.store(since, Relaxed);
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

impl<I: AsyncRead + AsyncWrite> AsyncRead for Counted<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let before = buffer.filled().len();
        ready!(this.io.as_mut().poll_read(cx, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        this.activity.bytes.fetch_add(read.len(), Relaxed);
        let Err(spent) = this.budget.read(read) else {
            return Poll::Ready(Ok(()));
        };
        metrics::counter!("countersign_connections_calmed_total").increment(1);
        // As well as it can be said: who does not read will not hear it.
        if this.budget.is_between_frames() {
            let _ = this.io.as_mut().poll_write(cx, &spent.farewell());
            let _ = this.io.poll_flush(cx);
        }
        Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()))
    }
}

impl<I: AsyncWrite> AsyncWrite for Counted<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let written = ready!(this.io.poll_write(cx, bytes))?;
        this.budget
            .written(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.project();
        let written = ready!(this.io.poll_write_vectored(cx, slices))?;
        let mut rest = written;
        for slice in slices {
            let of_slice = rest.min(slice.len());
            this.budget
                .written(slice.get(..of_slice).unwrap_or_default());
            rest -= of_slice;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
