//! Deadlines: a call is given up when its caller stops waiting for it, or after
//! the longest time that any call may take.
//!
//! Giving up means that the caller gets its answer. Work that was spawned goes
//! on, so that no transaction is cut short; it knows the deadline too (in
//! `Call`), and begins nothing that cannot end in time. A stream must begin
//! within the deadline; how long it lives is up to its caller.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderMap, Request};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Service, filter::Predicate};

use crate::{
    domain::Call,
    error::{Error, Reason, Result},
};

const TIMEOUT: &str = "grpc-timeout";

/// Reads the deadline into the request's `Call`.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// The longest that a call may take, and what it gets if it does not say.
    pub longest: Duration,
}

/// Answers when the deadline of `Call` has passed.
#[derive(Debug, Clone)]
pub struct Enforce<S>(pub S);

pin_project! {
    /// A response within a deadline.
    #[derive(Debug)]
    pub struct Bounded<F> {
        #[pin]
        inner: F,
        #[pin]
        sleep: Sleep,
    }
}

impl<B> Predicate<Request<B>> for Read {
    type Request = Request<B>;

    fn check(&mut self, mut request: Request<B>) -> Result<Request<B>, BoxError> {
        let timeout = match timeout(request.headers())? {
            Some(timeout) => timeout.min(self.longest),
            None => self.longest,
        };
        if timeout.is_zero() {
            return Err(Error::from(Reason::DeadlineExceeded).into());
        }
        if let Some(call) = request.extensions_mut().get_mut::<Call>() {
            call.deadline = Instant::now().into_std().checked_add(timeout);
        }
        Ok(request)
    }
}

impl<S, B> Service<Request<B>> for Enforce<S>
where
    S: Service<Request<B>, Error = BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<Bounded<S::Future>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = request.extensions().get::<Call>();
        let deadline = call.and_then(|call| call.deadline);
        let inner = self.0.call(request);
        match deadline {
            Some(deadline) => Either::Left(Bounded {
                inner,
                sleep: tokio::time::sleep_until(deadline.into()),
            }),
            None => Either::Right(inner),
        }
    }
}

impl<F, T> Future for Bounded<F>
where
    F: Future<Output = Result<T, BoxError>>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // The timer is not even set for a call that is answered at once.
        if let Poll::Ready(result) = this.inner.poll(cx) {
            return Poll::Ready(result);
        }
        match this.sleep.poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::from(Reason::DeadlineExceeded).into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The `grpc-timeout` of a request, if it has one.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let mut values = headers.get_all(TIMEOUT).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match value.to_str().ok().and_then(parse) {
        Some(timeout) if values.next().is_none() => Ok(Some(timeout)),
        _ => Err(Error::invalid(
            TIMEOUT,
            "must be one value of 1 to 8 digits and a unit of H, M, S, m, u, n",
        )),
    }
}

/// `TimeoutValue TimeoutUnit` (gRPC over HTTP/2, "Requests").
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse::<u64>().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(value),
        "M" => Duration::from_mins(value),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_the_form_of_the_specification() {
        for (text, expected) in [
            ("1H", Some(Duration::from_hours(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("2M", Some(Duration::from_mins(2))),
            ("00000003S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0S", Some(Duration::ZERO)),
            ("100000000n", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("1h", None),
            ("-1S", None),
            ("+1S", None),
            (" 1S", None),
            ("1S ", None),
            ("1.5S", None),
            ("1SS", None),
            ("1é", None),
            ("١S", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn two_timeouts_are_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(timeout(&headers).unwrap(), None);
        headers.append(TIMEOUT, "1S".parse().unwrap());
        assert_eq!(timeout(&headers).unwrap(), Some(Duration::from_secs(1)));
        headers.append(TIMEOUT, "1S".parse().unwrap());
        assert_eq!(
            timeout(&headers).unwrap_err().reason(),
            Reason::InvalidRequest
        );
    }
}
