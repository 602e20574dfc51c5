//! A tower layer for services built on tonic or axum: it judges each request's credential in process,
//! enforces what the route asks for, and leaves the typed caller in the request's extensions.
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use countersign_verifier::{Policy, SystemClock, Verifier};
//! use countersign_verifier::layer::{GuardLayer, Require, Routes};
//!
//! # let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), Policy::default()));
//! let routes = Routes::default() // what is not listed is refused
//!     .path("/healthz", Require::nothing())
//!     .prefix("/orders", Require::scope("orders.read"))
//!     .path("/orders/export", Require::scope("orders.export").fresh_within(Duration::from_secs(5)));
//! let guard = GuardLayer::new(verifier, routes)?.audience("orders");
//! // axum: `Router::new().route(…).layer(guard)`; tonic: `Server::builder().layer(guard)`.
//! # Ok::<(), countersign_verifier::layer::InvalidRoute>(())
//! ```
//!
//! A handler finds an `Arc<Caller>`, where there is one, and a [`Staleness`] in the extensions. In
//! axum that is `Extension<Arc<Caller>>`, in tonic `request.extensions().get::<Arc<Caller>>()`.
//!
//! Where it stands: outside of everything that acts on a request and inside of what answers by
//! itself before, such as CORS or the translation of gRPC-Web. It looks at the path as it is there: in
//! axum's `nest` the prefix is gone already, so it belongs on the outermost router.
//!
//! What it does not do: judge by the HTTP method (put a guard on the method's own router for that),
//! look at the message, or fetch anything. A request that it refuses never reaches the service.

mod counts;
mod refusal;
mod routes;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::counts::Counters;
use self::refusal::Refusal;
use self::routes::Who;
use crate::{Caller, Rejection, Verifier};

pub use self::counts::GuardCounts;
pub use self::routes::{InvalidRoute, Require, Routes};

/// Says in a response that it rests on older knowledge than its route wants; the age in whole seconds.
pub const STALENESS: HeaderName = HeaderName::from_static("x-countersign-staleness");

/// In a request's extensions: how old the knowledge was by which its caller was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness(pub Duration);

/// Puts a [`Guard`] before a service. Clones share their counters.
#[derive(Clone)]
pub struct GuardLayer(Arc<Rules>);

/// A service that only requests reach which may.
#[derive(Clone, Debug)]
pub struct Guard<S> {
    inner: S,
    rules: GuardLayer,
}

#[derive(Clone)]
struct Rules {
    verifier: Arc<Verifier>,
    routes: Routes,
    audience: Option<String>,
    keep_credential: bool,
    counters: Arc<Counters>,
}

enum Presented<'a> {
    Nothing,
    /// No bearer token, or more than one thing.
    Garbage,
    Token(&'a str),
}

/// A request that may pass.
struct Pass {
    /// Set if its route wants fresher knowledge and serves all the same.
    stale: Option<Duration>,
    staleness: Option<Duration>,
    caller: Option<Arc<Caller>>,
}

pin_project! {
    /// The answer of a [`Guard`]: its own refusal, or the service's.
    #[must_use = "futures do nothing unless polled"]
    pub struct GuardFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B> {
        Refused { response: Option<Response<B>> },
        Passed { #[pin] inner: F, stale: Option<HeaderValue> },
    }
}

impl GuardLayer {
    /// A layer that asks this verifier and enforces these routes.
    ///
    /// # Errors
    ///
    /// [`InvalidRoute`] if one of the routes could never be met, or not be told apart from another.
    pub fn new(verifier: Arc<Verifier>, routes: Routes) -> Result<Self, InvalidRoute> {
        Ok(Self(Arc::new(Rules {
            verifier,
            routes: routes.checked()?,
            audience: None,
            keep_credential: false,
            counters: Arc::default(),
        })))
    }

    /// Takes credentials for exactly this audience. Without it, those for any of the audiences that the
    /// issuer has configured are taken: then every service of the fleet takes every token.
    pub fn audience(self, audience: impl Into<String>) -> Self {
        let audience = Some(audience.into());
        self.with(|rules| Rules { audience, ..rules })
    }

    /// Leaves the `authorization` header in the request, for services that pass it on. It is a
    /// secret: whoever logs or forwards it gives the caller's rights away.
    pub fn keep_credential(self) -> Self {
        self.with(|rules| Rules {
            keep_credential: true,
            ..rules
        })
    }

    /// How requests have fared.
    pub fn counts(&self) -> GuardCounts {
        self.0.counters.read()
    }

    fn with(self, change: impl FnOnce(Rules) -> Rules) -> Self {
        Self(Arc::new(change(Arc::unwrap_or_clone(self.0))))
    }
}

impl Rules {
    fn judge<B>(&self, request: &Request<B>) -> Result<Pass, Refusal> {
        let require = self.routes.find(request.uri().path())?;
        if require.who == Who::Anyone {
            return Ok(Pass {
                stale: None,
                staleness: None,
                caller: None,
            });
        }
        let staleness = self.verifier.staleness().ok_or(Refusal::NotReady)?;
        let stale = require.beyond(staleness)?;
        let caller = match presented(request.headers()) {
            Presented::Token(token) => Some(self.caller(token)?),
            Presented::Garbage => return Err(Refusal::Bad),
            Presented::Nothing if require.who == Who::AnyoneOrCaller => None,
            Presented::Nothing => return Err(Refusal::Missing),
        };
        if let Some(caller) = &caller {
            require.satisfied_by(caller)?;
        }
        Ok(Pass {
            stale,
            staleness: Some(staleness),
            caller,
        })
    }

    fn caller(&self, token: &str) -> Result<Arc<Caller>, Refusal> {
        let verdict = self.verifier.verify(token, self.audience.as_deref());
        verdict.map_err(|rejection| match rejection {
            Rejection::NotReady => Refusal::NotReady,
            _ => Refusal::Bad,
        })
    }
}

/// What a request presents as its credential: good is exactly one bearer token (RFC 6750, section 2.1).
fn presented(headers: &HeaderMap) -> Presented<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Presented::Nothing;
    };
    if values.next().is_some() {
        return Presented::Garbage;
    }
    match value.to_str().ok().and_then(|value| value.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Presented::Token(token.trim_start_matches(' '))
        }
        _ => Presented::Garbage,
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard {
            inner,
            rules: self.clone(),
        }
    }
}

impl<S, Q, B> Service<Request<Q>> for Guard<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = GuardFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let rules = &self.rules.0;
        let verdict = rules.judge(&request);
        rules.counters.count(&verdict);
        let pass = match verdict {
            Ok(pass) => pass,
            Err(refusal) => {
                let response = Some(refusal.response(request.headers()));
                let state = State::Refused { response };
                return GuardFuture { state };
            }
        };
        if pass.staleness.is_some() && !rules.keep_credential {
            request.headers_mut().remove(AUTHORIZATION);
        }
        let extensions = request.extensions_mut();
        // Whatever stands there was not put there by this guard.
        extensions.remove::<Arc<Caller>>();
        if let Some(caller) = pass.caller {
            extensions.insert(caller);
        }
        if let Some(staleness) = pass.staleness {
            extensions.insert(Staleness(staleness));
        }
        let state = State::Passed {
            inner: self.inner.call(request),
            stale: pass.stale.map(|age| HeaderValue::from(age.as_secs())),
        };
        GuardFuture { state }
    }
}

impl<F, B, E> Future for GuardFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Refused { response } => {
                Poll::Ready(Ok(response.take().unwrap_or_default()))
            }
            StateProjection::Passed { inner, stale } => {
                let mut response = ready!(inner.poll(cx))?;
                if let Some(age) = stale.take() {
                    response.headers_mut().insert(STALENESS, age);
                }
                Poll::Ready(Ok(response))
            }
        }
    }
}

impl fmt::Debug for GuardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardLayer")
            .field("routes", &self.0.routes)
            .field("audience", &self.0.audience)
            .finish_non_exhaustive()
    }
}

impl<F, B> fmt::Debug for GuardFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardFuture").finish_non_exhaustive()
    }
}
