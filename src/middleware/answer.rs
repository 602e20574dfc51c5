//! The one place where a failure becomes a response: a refusal by a layer, or a
//! panic anywhere further in. A panic fails its own call, and nothing else
//! notices.
//!
//! What panicked and where is logged by the process's panic hook, which runs
//! within the call's span, so that the line carries the correlation id.

use std::{
    any::Any,
    convert::Infallible,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll},
};

use futures_util::{
    FutureExt as _,
    future::{CatchUnwind, Either, Map},
};
use http::Response;
use tonic::Status;
use tower::{BoxError, Service};

use crate::error::Error;

type Outcome<R> = Result<Result<Response<R>, BoxError>, Box<dyn Any + Send>>;
type Answered<R> = Result<Response<R>, Infallible>;

/// Answers every call, whatever becomes of it further in.
#[derive(Debug, Clone)]
pub struct Answer<S>(pub S);

impl<S, B, R> Service<B> for Answer<S>
where
    S: Service<B, Response = Response<R>, Error = BoxError>,
    R: Default,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Either<
        Map<CatchUnwind<AssertUnwindSafe<S::Future>>, fn(Outcome<R>) -> Answered<R>>,
        Ready<Answered<R>>,
    >;

    /// Layers that refuse are always ready to.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: B) -> Self::Future {
        // The checks further in run here, not in the future.
        match catch_unwind(AssertUnwindSafe(|| self.0.call(request))) {
            Ok(future) => Either::Left(AssertUnwindSafe(future).catch_unwind().map(answer)),
            Err(panic) => Either::Right(ready(answer(Err(panic)))),
        }
    }
}

/// A failed call is answered by headers alone ("Trailers-Only").
#[expect(clippy::unnecessary_wraps, reason = "what the service's future yields")]
fn answer<R: Default>(outcome: Outcome<R>) -> Answered<R> {
    let error = match outcome {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(foreign) => Error::internal(foreign),
        },
        Err(_panic) => Error::internal("a panic, logged where it happened"),
    };
    Ok(Status::from(error).into_http())
}
