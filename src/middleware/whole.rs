//! Waits until the message of a request has arrived whole. So a caller who
//! sends headers, and the rest slowly or never, holds no place that others
//! need: places are for work, and there is none before the message is here.
//!
//! What may arrive is bounded: in size by the RPC's row (which also says what
//! becomes of more), in time by
//! [`ARRIVAL`], in number by the streams of a connection, and all that has
//! arrived in part by [`MEMORY`]. Whether the bytes are a message is for the
//! decoder. Requests of streams pass as they are: they
//! arrive as long as the stream lives.

use std::{
    mem,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Bytes;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{BoxError, Service};

use super::{
    access::{Class, Larger},
    method, refused,
    share::{Share, Stock},
};
use crate::{
    domain::Call,
    error::{Error, Reason, Result},
};

/// The longest that a message may take to arrive.
pub const ARRIVAL: Duration = Duration::from_secs(5);

/// The most bytes of requests that have arrived in part, on one listener. One
/// peer may hold a quarter.
pub const MEMORY: usize = 64 * 1024 * 1024;

/// When others are likely to have arrived.
const RETRY: Duration = Duration::from_millis(250);

/// The flag and the length before each message (gRPC over HTTP/2, "Requests").
const PREFIX: usize = 5;

/// A message of no bytes.
const EMPTY: Bytes = Bytes::from_static(&[0; PREFIX]);

/// Hands requests on when they have arrived.
#[derive(Debug, Clone)]
pub struct Whole<S> {
    inner: S,
    memory: Arc<Stock>,
}

pin_project! {
    /// The body of a request.
    #[derive(Debug)]
    #[project = MessageProjected]
    pub enum Message<B> {
        /// All of it.
        Whole { bytes: Bytes },
        /// That of a stream.
        Open {
            #[pin]
            body: B,
        },
    }
}

pin_project! {
    /// A response to a request that is still arriving, or is being answered.
    #[derive(Debug)]
    #[project = ArrivingProjected]
    #[project_replace = ArrivingReplaced]
    pub enum Arriving<S, F, B> {
        Request {
            inner: S,
            head: request::Parts,
            #[pin]
            body: B,
            arrived: Arrived,
            // Set when the message did not come along with the headers.
            #[pin]
            late: Option<Sleep>,
        },
        Response {
            #[pin]
            inner: F,
        },
        Gone,
    }
}

/// What is here. A message in one frame, as nearly all are, is not copied.
#[derive(Debug)]
pub struct Arrived {
    first: Bytes,
    more: Vec<u8>,
    most: usize,
    larger: Larger,
    /// It was larger, and all of it is passed over.
    emptied: bool,
    address: Option<IpAddr>,
    memory: Arc<Stock>,
    /// Counted only while more is waited for.
    held: Option<Share>,
}

impl<S> Whole<S> {
    /// Waits for the requests of a service; `memory` is for what waits.
    pub fn new(inner: S, memory: Arc<Stock>) -> Self {
        Self { inner, memory }
    }
}

impl<S, B> Service<Request<B>> for Whole<S>
where
    S: Service<Request<Message<B>>, Error = BoxError> + Clone,
    B: Body<Data = Bytes>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Arriving<S, S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let unary = method::row(&request)
            .ok()
            .filter(|row| row.class != Class::Stream);
        let Some(row) = unary else {
            let inner = self.inner.call(request.map(|body| Message::Open { body }));
            return Arriving::Response { inner };
        };
        let (head, body) = request.into_parts();
        // The one that was asked whether it is ready goes; a copy stays.
        let copy = self.inner.clone();
        let call = head.extensions.get::<Call>();
        let address = call.and_then(|call| call.peer.address);
        Arriving::Request {
            inner: mem::replace(&mut self.inner, copy),
            head,
            body,
            arrived: Arrived {
                first: Bytes::new(),
                more: Vec::new(),
                most: PREFIX + row.most_bytes,
                larger: row.larger,
                emptied: false,
                address,
                memory: Arc::clone(&self.memory),
                held: None,
            },
            late: None,
        }
    }
}

impl<S, F, B, T> Future for Arriving<S, F, B>
where
    S: Service<Request<Message<B>>, Error = BoxError, Future = F>,
    F: Future<Output = Result<T, BoxError>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<T, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project() {
            ArrivingProjected::Request {
                body,
                arrived,
                late,
                ..
            } => ready!(poll_arrival(body, arrived, late, cx))?,
            ArrivingProjected::Response { inner } => return inner.poll(cx),
            ArrivingProjected::Gone => return Poll::Pending,
        }
        if let ArrivingReplaced::Request {
            mut inner,
            head,
            arrived,
            ..
        } = self.as_mut().project_replace(Self::Gone)
        {
            let bytes = arrived.into_bytes();
            let request = Request::from_parts(head, Message::Whole { bytes });
            let inner = inner.call(request);
            self.set(Self::Response { inner });
        }
        self.poll(cx)
    }
}

/// Reads to the end of the body.
fn poll_arrival<B: Body<Data = Bytes>>(
    mut body: Pin<&mut B>,
    arrived: &mut Arrived,
    mut late: Pin<&mut Option<Sleep>>,
    cx: &mut Context<'_>,
) -> Poll<Result<()>> {
    loop {
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Trailers of requests mean nothing in gRPC.
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                arrived.add(data)?;
            }
            // The stream was reset, or its connection is gone.
            Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Reason::Cancelled.into())),
            Poll::Ready(None) => return Poll::Ready(Ok(())),
            Poll::Pending => break,
        }
    }
    arrived.hold()?;
    if late.is_none() {
        late.set(Some(tokio::time::sleep(ARRIVAL)));
    }
    match late.as_pin_mut() {
        Some(late) => late
            .poll(cx)
            .map(|()| Err(Error::new(Reason::DeadlineExceeded))),
        None => Poll::Pending,
    }
}

impl Arrived {
    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn add(&mut self, data: Bytes) -> Result<()> {
        if self.emptied {
            return Ok(());
        }
        if data.len() > self.most.saturating_sub(self.len()) {
            if self.larger == Larger::Fails {
                return Err(Reason::RequestTooLarge.into());
            }
            self.emptied = true;
            self.first = EMPTY;
            self.more = Vec::new();
            return Ok(());
        }
        if self.len() == 0 {
            self.first = data;
            return Ok(());
        }
        // Only from here on it is worth a copy, and one that grows: a frame of
        // one byte kept as it is would hold on to what it came in.
        if self.more.is_empty() {
            self.more.extend_from_slice(&mem::take(&mut self.first));
        }
        self.more.extend_from_slice(&data);
        Ok(())
    }

    /// Counts what is here against what may wait.
    fn hold(&mut self) -> Result<()> {
        let here = self.len();
        let held = match &mut self.held {
            Some(held) => held.grow(here.saturating_sub(held.amount())),
            None if here == 0 => Ok(()),
            None => self
                .memory
                .take(self.address, here)
                .map(|share| self.held = Some(share)),
        };
        held.map_err(|_| {
            refused("memory", "arriving");
            Error::overloaded(RETRY)
        })
    }

    fn into_bytes(self) -> Bytes {
        if self.more.is_empty() {
            self.first
        } else {
            self.more.into()
        }
    }
}

impl<B: Body<Data = Bytes>> Body for Message<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            MessageProjected::Whole { bytes } if bytes.is_empty() => Poll::Ready(None),
            MessageProjected::Whole { bytes } => {
                Poll::Ready(Some(Ok(Frame::data(mem::take(bytes)))))
            }
            MessageProjected::Open { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { bytes } => bytes.is_empty(),
            Self::Open { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Self::Open { body } => body.size_hint(),
        }
    }
}
