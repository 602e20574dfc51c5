//! A limit for each class on the calls that run at once. Nothing queues here: a
//! call that finds no place is refused, and costs next to nothing. One peer has
//! at most a quarter of the places of a class.
//!
//! The place is given back with the answer; that of a stream with its end. It
//! travels in the `Call`, so that work that outlives its caller keeps its place
//! for as long: resetting streams makes no room for more.

use std::{
    future::{Ready, ready},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::Either;
use http::{Request, Response};
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tower::{BoxError, Service};

use super::{
    access::Class,
    held::Held,
    method, refused,
    share::{Share, Short, Stock},
};
use crate::{
    domain::Call,
    error::{Error, Result},
};

/// When a place is likely to be free again.
const RETRY: Duration = Duration::from_millis(250);

/// A call's place among those of its class.
pub type Place = Arc<Share>;

/// `[limits.concurrency]`: how many calls of each class may run at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Answered from memory: validation, keys, health.
    pub validate: usize,
    /// Reading the database.
    pub read: usize,
    /// Changing the database.
    pub write: usize,
    /// Hashing a password. The queue before the hash lanes has its own bound.
    pub hash: usize,
    /// Streams that are open.
    pub stream: usize,
}

/// The places that are left, for each class.
#[derive(Debug)]
pub struct Places {
    validate: Arc<Stock>,
    read: Arc<Stock>,
    write: Arc<Stock>,
    hash: Arc<Stock>,
    stream: Arc<Stock>,
}

/// Lets a call pass if its class has a place left.
#[derive(Debug, Clone)]
pub struct Limit<S> {
    inner: S,
    places: Arc<Places>,
}

pin_project! {
    /// A response that is being made in a place of its class.
    #[derive(Debug)]
    pub struct Placed<F> {
        #[pin]
        inner: F,
        place: Option<Place>,
        class: Class,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            validate: 4096,
            read: 256,
            write: 256,
            hash: 512,
            stream: 256,
        }
    }
}

impl Config {
    pub(super) fn validate(&self, problems: &mut Vec<String>) {
        for class in Class::ALL {
            let limit = self.of(class);
            if limit == 0 {
                let class = class.label();
                problems.push(format!(
                    "limits.concurrency.{class} is 0, which lets nobody in; set it to 1 or more"
                ));
            }
        }
    }

    fn of(&self, class: Class) -> usize {
        match class {
            Class::Validate => self.validate,
            Class::Read => self.read,
            Class::Write => self.write,
            Class::Hash => self.hash,
            Class::Stream => self.stream,
        }
    }
}

impl Places {
    /// All places free.
    pub fn new(config: &Config) -> Arc<Self> {
        let places = |class| Stock::new(config.of(class));
        Arc::new(Self {
            validate: places(Class::Validate),
            read: places(Class::Read),
            write: places(Class::Write),
            hash: places(Class::Hash),
            stream: places(Class::Stream),
        })
    }

    fn of(&self, class: Class) -> &Arc<Stock> {
        match class {
            Class::Validate => &self.validate,
            Class::Read => &self.read,
            Class::Write => &self.write,
            Class::Hash => &self.hash,
            Class::Stream => &self.stream,
        }
    }

    fn take(&self, class: Class, address: Option<IpAddr>) -> Result<Place> {
        let place = self.of(class).take(address, 1).map_err(|short| {
            let by = match short {
                Short::OfAll => "concurrency",
                Short::OfPeer => "concurrency_of_peer",
            };
            refused(by, class.label());
            Error::overloaded(RETRY)
        });
        place.map(Arc::new)
    }

    /// A place for a request, which its `Call` holds too.
    fn place<B>(&self, request: &mut Request<B>) -> Result<(Class, Place)> {
        let class = method::row(request)?.class;
        let mut call = request.extensions_mut().get_mut::<Call>();
        let address = call.as_ref().and_then(|call| call.peer.address);
        let place = self.take(class, address)?;
        if let Some(call) = &mut call {
            call.place = Some(Arc::clone(&place) as _);
        }
        Ok((class, place))
    }
}

impl<S> Limit<S> {
    /// Limits the calls of a service.
    pub fn new(inner: S, places: Arc<Places>) -> Self {
        Self { inner, places }
    }
}

impl<S, B, R> Service<Request<B>> for Limit<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = BoxError>,
{
    type Response = Response<Held<R, Place>>;
    type Error = BoxError;
    type Future = Either<Placed<S::Future>, Ready<Result<Self::Response, BoxError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.places.place(&mut request) {
            Ok((class, place)) => Either::Left(Placed {
                inner: self.inner.call(request),
                place: Some(place),
                class,
            }),
            Err(error) => Either::Right(ready(Err(error.into()))),
        }
    }
}

impl<F, R> Future for Placed<F>
where
    F: Future<Output = Result<Response<R>, BoxError>>,
{
    type Output = Result<Response<Held<R, Place>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        // A client that is slow to read an answer that is ready must not keep
        // others from theirs.
        let place = this.place.take().filter(|_| *this.class == Class::Stream);
        Poll::Ready(Ok(response.map(|body| Held::new(body, place))))
    }
}
