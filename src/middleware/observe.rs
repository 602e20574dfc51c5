//! What is seen of a call: its correlation id, its span, its line in the access
//! log, its metrics.
//!
//! The outermost layer, so that whatever answers further in (a handler, a
//! refusal, a caught panic, the router itself) leaves with the correlation id in
//! `x-request-id` and in its error details, and is counted and logged once, with
//! its cost. A call ends with the `grpc-status`: in the headers if it failed
//! early, else in the trailers, which is why the body is watched too. One that
//! ends with neither was left by its caller.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use countersign_verifier::Clock;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::USER_AGENT};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::trace::TraceContextExt as _;
use pin_project_lite::pin_project;
use tonic::Code;
use tower::Service;
use tracing::{Instrument as _, Level, Span, field, instrument::Instrumented};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{
    Parts,
    access::{Class, Row},
    peer::{Connection, Trusted},
    rpc::{self, Rpc, Rpcs},
    trace_context::{Id, TraceContext},
};
use crate::{
    domain::{Call, CorrelationId, Cost, Entropy, Peer, Presence, id::uuid_v7},
    error,
};

/// Names the call, on the way in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const GRPC_STATUS: &str = "grpc-status";

/// The most of a `user-agent` that is kept, in bytes.
const USER_AGENT_BYTES: usize = 256;

/// Observes the calls of a service.
#[derive(Debug, Clone)]
pub struct Observe<S> {
    inner: S,
    observer: Arc<Observer>,
}

#[derive(Debug)]
struct Observer {
    rpcs: Rpcs,
    trusted: Trusted,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    traces_exported: bool,
    /// One of so many good validations is logged.
    sample: u32,
    validations: AtomicU32,
}

/// A call that has not ended yet. Dropped before its end, it was left.
#[derive(Debug)]
struct Open {
    rpc: Arc<Rpc>,
    started: Instant,
    peer: Option<IpAddr>,
    correlation_id: CorrelationId,
    cost: Arc<Cost>,
    presence: Presence,
    span: Span,
    observer: Arc<Observer>,
    ended: bool,
}

pin_project! {
    /// A response that is being made.
    #[derive(Debug)]
    pub struct Watched<F> {
        #[pin]
        inner: Instrumented<F>,
        open: Option<Open>,
    }
}

pin_project! {
    /// A body that is being sent.
    #[derive(Debug)]
    pub struct WatchedBody<B> {
        #[pin]
        inner: B,
        open: Option<Open>,
    }
}

impl<S> Observe<S> {
    /// Observes the calls of a service.
    pub fn new(inner: S, parts: &Parts) -> Self {
        let observer = Observer {
            rpcs: Rpcs::new(parts.access),
            trusted: parts.config.trusted(),
            clock: Arc::clone(&parts.clock),
            entropy: Arc::clone(&parts.entropy),
            traces_exported: parts.traces_exported,
            sample: parts.validation_log_sample.max(1),
            validations: AtomicU32::new(0),
        };
        Self {
            inner,
            observer: Arc::new(observer),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
{
    type Response = Response<WatchedBody<R>>;
    type Error = Infallible;
    type Future = Watched<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (open, call) = Open::new(&self.observer, &request);
        if let Some(row) = open.rpc.row {
            request.extensions_mut().insert(row);
        }
        request.extensions_mut().insert(call);
        // The checks further in run now; what they log belongs to the call.
        let inner = open.span.in_scope(|| self.inner.call(request));
        Watched {
            inner: inner.instrument(open.span.clone()),
            open: Some(open),
        }
    }
}

impl Observer {
    /// The id of a call, and of its trace if the exporter does not make it.
    fn ids(&self, headers: &HeaderMap, trace: Option<TraceContext>) -> (CorrelationId, Option<Id>) {
        let mut made = None;
        // One does for both.
        let mut make = || *made.get_or_insert_with(|| uuid_v7(self.clock.now(), &*self.entropy));
        let correlation_id = given_id(headers).unwrap_or_else(|| make().into());
        let trace_id = match trace {
            Some(trace) => Some(trace.trace_id()),
            None if self.traces_exported => None,
            None => Some(Id(make().as_u128())),
        };
        (correlation_id, trace_id)
    }

    fn span(
        &self,
        rpc: &'static str,
        id: &CorrelationId,
        trace_id: Option<Id>,
        trace: Option<TraceContext>,
    ) -> Span {
        // At the level of errors, so that no log level hides the ids.
        let span = tracing::error_span!(
            target: "countersign",
            "call",
            correlation_id = id.as_str(),
            trace_id = trace_id.map(field::display),
            subject = field::Empty,
            rejection = field::Empty,
            otel.name = field::Empty,
        );
        if self.traces_exported {
            span.record("otel.name", rpc);
            if let Some(trace) = trace {
                // Fails only where the exporter's layer is absent.
                drop(span.set_parent(trace.to_remote()));
            } else {
                let trace_id = span.context().span().span_context().trace_id();
                span.record("trace_id", field::display(trace_id));
            }
        }
        span
    }

    /// Whether a call that ended well, or by its caller's fault, has a line of
    /// its own at the usual level. A line costs more than a validation.
    fn is_sampled(&self, row: Option<&Row>) -> bool {
        let validation = row.is_some_and(|row| row.class == Class::Validate);
        !validation
            || self
                .validations
                .fetch_add(1, Relaxed)
                .is_multiple_of(self.sample)
    }
}

impl Open {
    fn new<B>(observer: &Arc<Observer>, request: &Request<B>) -> (Self, Call) {
        let headers = request.headers();
        let rpc = observer.rpcs.find(request.uri().path());
        let trace = TraceContext::from_headers(headers);
        let (correlation_id, trace_id) = observer.ids(headers, trace);
        let connection = request.extensions().get::<Connection>().cloned();
        let open = Self {
            rpc: Arc::clone(rpc),
            started: Instant::now(),
            peer: observer.trusted.client(
                &connection.unwrap_or_default(),
                headers,
                &*observer.clock,
            ),
            cost: Arc::default(),
            presence: Presence::default(),
            span: observer.span(rpc.name, &correlation_id, trace_id, trace),
            correlation_id,
            observer: Arc::clone(observer),
            ended: false,
        };
        let call = Call {
            caller: None,
            workload: None,
            peer: Peer { address: open.peer },
            user_agent: user_agent(headers),
            correlation_id: open.correlation_id.clone(),
            deadline: None,
            cost: Arc::clone(&open.cost),
            presence: open.presence.clone(),
            place: None,
        };
        (open, call)
    }

    /// Ends the call if these headers or trailers carry its status.
    fn read(&mut self, headers: &mut HeaderMap) {
        match code(headers) {
            None => {}
            Some(Code::Ok) => self.end(Code::Ok, None),
            Some(_) => {
                let seal = || error::seal(headers, &self.correlation_id);
                let reason = self.span.in_scope(seal);
                self.end(code(headers).unwrap_or(Code::Unknown), reason.as_deref());
            }
        }
    }

    fn end(&mut self, code: Code, reason: Option<&str>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.started.elapsed();
        self.rpc.count(code, duration);

        let ours = matches!(
            code,
            Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss
        );
        // The fields of both are the same; the macro wants the level constant.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "countersign::access",
                    rpc = self.rpc.name,
                    code = rpc::name(code),
                    reason,
                    duration_ms = millis(duration),
                    db_ms = millis(Duration::from_micros(self.cost.database_micros())),
                    queries = self.cost.queries(),
                    hash_wait_ms = millis(Duration::from_micros(self.cost.hash_wait_micros())),
                    hash_ms = millis(Duration::from_micros(self.cost.hash_micros())),
                    peer = self.peer.map(field::display),
                    "call"
                )
            };
        }
        if ours || self.observer.is_sampled(self.rpc.row) {
            let _in_call = self.span.enter();
            line!(info);
        } else if tracing::enabled!(target: "countersign::access", Level::DEBUG) {
            let _in_call = self.span.enter();
            line!(debug);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            self.presence.end();
        }
        if std::thread::panicking() {
            self.end(Code::Internal, Some("INTERNAL"));
        } else {
            self.end(Code::Cancelled, Some("CANCELLED"));
        }
    }
}

impl<F, R> Future for Watched<F>
where
    F: Future<Output = Result<Response<R>, Infallible>>,
{
    type Output = Result<Response<WatchedBody<R>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let mut open = this.open.take();
        if let Some(open) = &mut open {
            if let Ok(id) = HeaderValue::from_str(open.correlation_id.as_str()) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            open.read(response.headers_mut());
        }
        Poll::Ready(Ok(response.map(|inner| WatchedBody { inner, open })))
    }
}

impl<B: Body> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(open) = this.open else {
            return this.inner.poll_frame(cx);
        };
        let span = open.span.clone();
        let mut frame = ready!(span.in_scope(|| this.inner.poll_frame(cx)));
        if let Some(trailers) = frame
            .as_mut()
            .and_then(|frame| frame.as_mut().ok())
            .and_then(Frame::trailers_mut)
        {
            open.read(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What the caller calls the call, if that is one harmless id.
fn given_id(headers: &HeaderMap) -> Option<CorrelationId> {
    let mut given = headers.get_all(REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) => CorrelationId::accept(id.to_str().ok()?),
        _ => None,
    }
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Option<Code> {
    let code = headers.get(GRPC_STATUS)?;
    Some(Code::from_bytes(code.as_bytes()))
}

/// The printable part of a `user-agent`, cut.
fn user_agent(headers: &HeaderMap) -> String {
    let Some(value) = headers.get(USER_AGENT) else {
        return String::new();
    };
    let bytes = value.as_bytes().iter().take(USER_AGENT_BYTES);
    let printable = bytes.filter(|b| matches!(b, b' '..=b'~'));
    printable.map(|&b| char::from(b)).collect()
}

/// Milliseconds to a thousandth.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
