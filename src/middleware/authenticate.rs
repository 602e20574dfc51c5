//! Authenticates by the access table: takes the bearer token or API key of a call,
//! else the certificate of its connection, has it judged, and leaves the caller in
//! the request's `Call`.
//!
//! A permission in the row is checked here, before a handler sees the request;
//! what depends on the request itself is for the service behind it. The caller
//! learns one reason for all bad credentials; which it was, the log and the metric
//! know.

use std::sync::Arc;

use countersign_verifier::{Caller, Credential, Rejection, Subject, Verifier};
use http::{HeaderMap, Request, header::AUTHORIZATION};
use tower::{BoxError, filter::Predicate};

use super::{
    access::{Kinds, Row, Who},
    method,
    peer::Connection,
};
use crate::{
    domain::{Call, Permission, Workloads, call},
    error::{Error, Reason, Result},
};

/// Lets a call pass if its row says so.
#[derive(Debug, Clone)]
pub struct Authenticate {
    /// Judges the tokens.
    pub verifier: Arc<Verifier>,
    /// Ours. A token that was narrowed to another service's is not for this
    /// API: whoever it was shown to could use it here (RFC 9068, section 5).
    pub audience: Arc<str>,
    /// Whom certificates may speak for. One that speaks for nobody here is no
    /// credential, and nothing is wrong with it.
    pub workloads: Workloads,
}

impl Authenticate {
    /// Who calls, as far as the row wants to know.
    fn caller(
        &self,
        row: &Row,
        headers: &HeaderMap,
        workload: Option<Result<Arc<Caller>, Rejection>>,
    ) -> Result<Option<Arc<Caller>>> {
        let needed = match row.who {
            Who::Public => return Ok(None),
            Who::OptionalCaller if !headers.contains_key(AUTHORIZATION) => return Ok(None),
            Who::OptionalCaller | Who::Caller => None,
            Who::Needs(permission) => Some(permission),
        };
        // A token comes before the certificate of whoever carries it.
        let caller = if headers.contains_key(AUTHORIZATION) {
            let token = bearer(headers).ok_or(Reason::CredentialsMissing)?;
            self.verifier.verify(token, Some(&self.audience))
        } else {
            workload.ok_or(Reason::CredentialsMissing)?
        };
        let caller = caller.map_err(rejected)?;
        // Also of whoever is refused below.
        tracing::Span::current().record("subject", tracing::field::display(&caller.subject));
        // Before the permission: with it the call would be refused all the same.
        let in_person = matches!(caller.credential, Credential::AccessToken { .. });
        if row.kinds == Kinds::AccessTokens && !in_person {
            return Err(Error::kind_not_allowed(call::kind(&caller)));
        }
        match needed {
            Some(permission) if !holds(&caller, permission) => {
                Err(Error::permission_denied(permission.name()))
            }
            _ => Ok(Some(caller)),
        }
    }

    /// The workload whose certificate the connection showed. Judged anew for each
    /// call: a connection may outlive the certificate that it began with.
    fn workload(&self, connection: Option<&Connection>) -> Option<Result<Arc<Caller>, Rejection>> {
        let certificate = connection?.certificate.as_deref()?;
        let caller = self.workloads.caller(certificate)?;
        Some(self.verifier.recheck(&caller).map(|()| Arc::new(caller)))
    }
}

impl<B> Predicate<Request<B>> for Authenticate {
    type Request = Request<B>;

    fn check(&mut self, mut request: Request<B>) -> Result<Request<B>, BoxError> {
        let row = method::row(&request)?;
        let workload = self.workload(request.extensions().get());
        let name = match &workload {
            Some(Ok(caller)) => workload_name(caller),
            _ => None,
        };
        let caller = self.caller(row, request.headers(), workload)?;
        // Nobody further in has a use for it.
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(call) = request.extensions_mut().get_mut::<Call>() {
            call.caller = caller;
            call.workload = name;
        }
        Ok(request)
    }
}

fn workload_name(caller: &Caller) -> Option<Arc<str>> {
    match &caller.subject {
        Subject::Workload(name) => Some(Arc::clone(name)),
        Subject::User(_) => None,
    }
}

fn holds(caller: &Caller, permission: Permission) -> bool {
    caller.scopes.iter().any(|scope| scope == permission.name())
}

/// The token, if there is exactly one `authorization` and it is `Bearer`
/// (RFC 6750, section 2.1; the scheme is matched without case, RFC 9110,
/// section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn rejected(rejection: Rejection) -> Error {
    let label = rejection.label();
    metrics::counter!("countersign_token_rejections_total", "rejection" => label).increment(1);
    tracing::Span::current().record("rejection", label);
    match rejection {
        Rejection::NotReady => Error::not_ready(),
        _ => Reason::TokenInvalid.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_bearer_token_is_taken() {
        for (values, expected) in [
            (&["Bearer abc"][..], Some("abc")),
            (&["bearer abc"], Some("abc")),
            (&["BEARER  abc"], Some("abc")),
            (&[], None),
            (&["Bearer abc", "Bearer abc"], None),
            (&["Bearer abc", "Basic abc"], None),
            (&["Bearer"], None),
            (&["Bearer "], None),
            (&["Bearerabc"], None),
            (&["Basic abc"], None),
            (&["abc"], None),
            (&[" Bearer abc"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(bearer(&headers), expected, "{values:?}");
        }
    }
}
