//! A response body that holds something until it is done: a place among the
//! calls of its class, or among the streams of its connection.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A body and what is let go when the body is dropped.
    #[derive(Debug)]
    pub struct Held<B, T> {
        #[pin]
        body: B,
        held: Option<T>,
    }
}

impl<B, T> Held<B, T> {
    /// Ties the two together.
    pub fn new(body: B, held: Option<T>) -> Self {
        Self { body, held }
    }
}

impl<B: Default, T> Default for Held<B, T> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body, T> Body for Held<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
