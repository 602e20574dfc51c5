//! A limit for each class on the calls that run at once. Nothing queues here: a
//! call that finds no place is refused, and costs next to nothing.
//!
//! The place is given back with the answer; that of a stream with its end.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::Either;
use http::{Request, Response};
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, Service};

use super::{access::Class, held::Held, method, refused};
use crate::error::{Error, Result};

/// When a place is likely to be free again.
const RETRY: Duration = Duration::from_millis(250);

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
    validate: Arc<Semaphore>,
    read: Arc<Semaphore>,
    write: Arc<Semaphore>,
    hash: Arc<Semaphore>,
    stream: Arc<Semaphore>,
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
        place: Option<OwnedSemaphorePermit>,
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
            if !(1..=Semaphore::MAX_PERMITS).contains(&limit) {
                let class = class.label();
                problems.push(format!(
                    "limits.concurrency.{class} is {limit}; set it to 1 or more"
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
        let places = |class| {
            let limit = config.of(class).min(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(limit))
        };
        Arc::new(Self {
            validate: places(Class::Validate),
            read: places(Class::Read),
            write: places(Class::Write),
            hash: places(Class::Hash),
            stream: places(Class::Stream),
        })
    }

    fn of(&self, class: Class) -> &Arc<Semaphore> {
        match class {
            Class::Validate => &self.validate,
            Class::Read => &self.read,
            Class::Write => &self.write,
            Class::Hash => &self.hash,
            Class::Stream => &self.stream,
        }
    }

    fn take(&self, class: Class) -> Result<OwnedSemaphorePermit> {
        let places = Arc::clone(self.of(class));
        places.try_acquire_owned().map_err(|_| {
            refused("concurrency", class.label());
            Error::overloaded(RETRY)
        })
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
    type Response = Response<Held<R, OwnedSemaphorePermit>>;
    type Error = BoxError;
    type Future = Either<Placed<S::Future>, Ready<Result<Self::Response, BoxError>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let class = method::row(&request).map(|row| row.class);
        match class.and_then(|class| Ok((class, self.places.take(class)?))) {
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
    type Output = Result<Response<Held<R, OwnedSemaphorePermit>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        // A client that is slow to read an answer that is ready must not keep
        // others from theirs.
        let place = this.place.take().filter(|_| *this.class == Class::Stream);
        Poll::Ready(Ok(response.map(|body| Held::new(body, place))))
    }
}
