//! Envoy's external authorization (`envoy.service.auth.v3.Authorization`):
//! Envoy shows the head of each request, and is told whether it may pass, as
//! whom, and what is to be changed in it.
//!
//! What depends on the request is always an answer, and a refusal where anything
//! is wrong: too large, no message, no header that can be read. A failed call
//! means to Envoy that nobody could judge, and its `failure_mode_allow` may then
//! let the request pass; so a caller must not be able to bring one about. Calls
//! fail only while nothing is known, or when what is known is older than the
//! route accepts.
//!
//! It answers from the verifier's memory, and never looks at a path: which route
//! a request takes is Envoy's business, and what the route asks for is in its
//! `context_extensions`.

mod answer;
mod asked;
mod codec;
mod route;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Ready,
    sync::Arc,
    task::{Context, Poll},
};

use countersign_proto::envoy::service::auth::v3::{
    CheckRequest, CheckResponse, attribute_context::HttpRequest,
};
use countersign_verifier::{Caller, Rejection, Verifier};
use http_body::Body;
use tonic::{
    Request, Response, Status,
    codegen::{BoxFuture, StdError},
    server::{Grpc, NamedService, UnaryService},
    service::Routes,
};
use tower::Service;

use self::{
    asked::{Asked, Presented},
    codec::Lenient,
    route::Route,
};
use crate::{
    domain::call::CHECK_BYTES,
    error::{Error, Reason, Result},
};

/// The service. Written out, as a generated one would fail a call that it
/// cannot decode.
#[derive(Debug, Clone)]
pub struct Authorization(Check);

#[derive(Debug, Clone)]
struct Check {
    verifier: Arc<Verifier>,
}

/// Why a request may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Denial {
    /// It needs a credential and brings none.
    Missing,
    /// What it brings is no good credential.
    Bad,
    /// Its caller lacks what the route asks for.
    Lacking(Lack),
    /// It cannot be read.
    Unreadable,
    /// Nobody can say: the route's configuration or the caller's name is none.
    Broken,
}

/// What a caller lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lack {
    Role,
    /// All that the route asks for, separated by spaces.
    Scope(String),
}

impl Authorization {
    /// The service over this verifier.
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self(Check { verifier })
    }

    /// Adds the service to the routes.
    pub fn routes(self, routes: Routes) -> Routes {
        routes.add_service(self)
    }
}

impl NamedService for Authorization {
    const NAME: &'static str = "envoy.service.auth.v3.Authorization";
}

impl<B> Service<http::Request<B>> for Authorization
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// It has one method, and the access table lets no other path through.
    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let check = self.0.clone();
        Box::pin(async move {
            let grpc = Grpc::new(Lenient);
            let mut grpc = grpc.apply_max_message_size_config(Some(CHECK_BYTES), None);
            Ok(grpc.unary(check, request).await)
        })
    }
}

impl UnaryService<CheckRequest> for Check {
    type Response = CheckResponse;
    type Future = Ready<Result<Response<CheckResponse>, Status>>;

    fn call(&mut self, request: Request<CheckRequest>) -> Self::Future {
        let answer = self.answer(request.get_ref());
        std::future::ready(answer.map(Response::new).map_err(Status::from))
    }
}

impl Check {
    fn answer(&self, request: &CheckRequest) -> Result<CheckResponse> {
        let outcome = self.judge(request);
        let label = match &outcome {
            Ok((verdict, _)) => verdict.label(),
            Err(error) if error.reason() == Reason::TrustStale => "stale",
            Err(_) => "not_ready",
        };
        metrics::counter!("countersign_ext_authz_checks_total", "verdict" => label).increment(1);
        outcome.map(|(_, response)| response)
    }

    fn judge(&self, request: &CheckRequest) -> Result<(Verdict, CheckResponse)> {
        let denied = |denial: Denial, asked: Option<Asked<'_>>| {
            let response = answer::denied(&denial, asked);
            Ok((Verdict::Denied(denial), response))
        };
        let Some((http, extensions)) = parts(request) else {
            return denied(Denial::Unreadable, None);
        };
        let asked = Asked::new(http);
        let route = match Route::read(extensions) {
            Ok(route) => route,
            Err(problem) => {
                tracing::error!(%problem, "a route's context_extensions cannot be followed");
                return denied(Denial::Broken, Some(asked));
            }
        };
        let staleness = self.verifier.staleness().ok_or_else(Error::not_ready)?;
        if route.max_staleness.is_some_and(|most| staleness > most) {
            return Err(Reason::TrustStale.into());
        }
        let caller = match self.caller(asked, &route) {
            Ok(caller) => caller,
            Err(Refusal::Denied(denial)) => return denied(denial, Some(asked)),
            Err(Refusal::Failed(error)) => return Err(error),
        };
        match answer::allowed(asked, &route, caller.as_deref(), staleness) {
            Some(response) => Ok((Verdict::Allowed, response)),
            None => denied(Denial::Broken, Some(asked)),
        }
    }

    /// Who asks; none where the route lets nobody in particular pass.
    fn caller(&self, asked: Asked<'_>, route: &Route<'_>) -> Result<Option<Arc<Caller>>, Refusal> {
        let token = match asked.presented() {
            Presented::Token(token) => token,
            Presented::Nothing if route.optional => return Ok(None),
            Presented::Nothing if route.preflight && asked.is_preflight() => return Ok(None),
            Presented::Nothing => return Err(Denial::Missing.into()),
            Presented::Garbage => return Err(Denial::Bad.into()),
        };
        let caller = self.verifier.verify(token, route.audience);
        let caller = caller.map_err(rejected)?;
        let span = tracing::Span::current();
        span.record("subject", tracing::field::display(&caller.subject));
        match route.lacking(&caller) {
            Some(lack) => Err(Denial::Lacking(lack).into()),
            None => Ok(Some(caller)),
        }
    }
}

/// How a check went.
#[derive(Debug)]
enum Verdict {
    Allowed,
    Denied(Denial),
}

/// Why there is no caller.
enum Refusal {
    Denied(Denial),
    Failed(Error),
}

impl Verdict {
    fn label(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied(Denial::Missing | Denial::Bad) => "unauthenticated",
            Self::Denied(Denial::Lacking(_)) => "forbidden",
            Self::Denied(Denial::Unreadable) => "unreadable",
            Self::Denied(Denial::Broken) => "broken",
        }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// The request that is asked about, and what its route says.
fn parts(request: &CheckRequest) -> Option<(&HttpRequest, &BTreeMap<String, String>)> {
    let attributes = request.attributes.as_ref()?;
    let http = attributes.request.as_ref()?.http.as_ref()?;
    Some((http, &attributes.context_extensions))
}

fn rejected(rejection: Rejection) -> Refusal {
    let label = rejection.label();
    metrics::counter!("countersign_token_rejections_total", "rejection" => label).increment(1);
    tracing::Span::current().record("rejection", label);
    match rejection {
        Rejection::NotReady => Refusal::Failed(Error::not_ready()),
        _ => Denial::Bad.into(),
    }
}
