//! TokenService: answers from the verifier's memory, on the serving runtime.

use std::sync::Arc;

use countersign_proto::v1::{self, token_service_server::TokenService, validate_token_result};
use countersign_verifier::{Caller, Rejection};
use tonic::{Request, Response, Status};

use super::{TokenApi, convert, explain};
use crate::{
    domain::{Invalid, Violations},
    error::{Error, Reason, Result},
};

/// The most tokens of one ValidateTokens.
const MOST_ITEMS: usize = 100;

impl TokenApi {
    fn verdict(&self, item: &v1::ValidateTokenRequest) -> Result<Arc<Caller>, Rejection> {
        let audience = Some(item.audience.as_str()).filter(|audience| !audience.is_empty());
        let verdict = self.verifier.verify(&item.token, audience);
        if let Err(rejection) = &verdict {
            let label = rejection.label();
            metrics::counter!("countersign_token_rejections_total", "rejection" => label)
                .increment(1);
            tracing::Span::current().record("rejection", label);
        }
        verdict
    }
}

#[tonic::async_trait]
impl TokenService for TokenApi {
    async fn validate_token(
        &self,
        request: Request<v1::ValidateTokenRequest>,
    ) -> Result<Response<v1::ValidateTokenResponse>, Status> {
        let item = request.get_ref();
        check(std::slice::from_ref(item), false)?;
        match self.verdict(item) {
            Ok(caller) => Ok(Response::new(v1::ValidateTokenResponse {
                caller: Some(convert::caller(&caller)),
            })),
            Err(Rejection::NotReady) => Err(Error::not_ready().into()),
            Err(_) => Err(Error::new(Reason::TokenInvalid).into()),
        }
    }

    async fn validate_tokens(
        &self,
        request: Request<v1::ValidateTokensRequest>,
    ) -> Result<Response<v1::ValidateTokensResponse>, Status> {
        let items = &request.get_ref().items;
        check(items, true)?;
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            let verdict = match self.verdict(item) {
                Ok(caller) => validate_token_result::Verdict::Caller(convert::caller(&caller)),
                Err(Rejection::NotReady) => return Err(Error::not_ready().into()),
                Err(_) => validate_token_result::Verdict::Reason(Reason::TokenInvalid.into()),
            };
            results.push(v1::ValidateTokenResult {
                verdict: Some(verdict),
            });
        }
        Ok(Response::new(v1::ValidateTokensResponse { results }))
    }

    async fn explain_token(
        &self,
        request: Request<v1::ExplainTokenRequest>,
    ) -> Result<Response<v1::ExplainTokenResponse>, Status> {
        let v1::ExplainTokenRequest { token, audience } = request.into_inner();
        let item = v1::ValidateTokenRequest { token, audience };
        check(std::slice::from_ref(&item), false)?;
        let audience = Some(item.audience.as_str()).filter(|audience| !audience.is_empty());
        let explained = self.verifier.explain(&item.token, audience);
        let explained = explained.map_err(|_| Error::not_ready())?;
        // Who looks at the sessions of others leaves a trace, whichever calls are
        // sampled.
        let claims = explain::claims(&explained);
        tracing::info!(
            finding = explained
                .rejection
                .as_ref()
                .map_or("good", Rejection::label),
            token_id = claims.as_ref().map(|claims| &*claims.token_id),
            "a token was explained"
        );
        Ok(Response::new(explain::response(&explained)))
    }

    async fn get_jwks(
        &self,
        _request: Request<v1::GetJwksRequest>,
    ) -> Result<Response<v1::GetJwksResponse>, Status> {
        let state = self.verifier.state().ok_or_else(Error::not_ready)?;
        let keys = state.keys.jwks().into_iter().map(|jwk| v1::Jwk {
            kty: jwk.kty.to_string(),
            crv: jwk.crv.to_string(),
            x: jwk.x.clone(),
            y: jwk.y.clone().unwrap_or_default(),
            kid: jwk.kid.clone(),
            alg: jwk.alg.to_string(),
            r#use: jwk.use_.to_string(),
        });
        Ok(Response::new(v1::GetJwksResponse {
            keys: keys.collect(),
            max_age: prost_types::Duration::try_from(self.jwks_max_age).ok(),
            issuer: state.issuer.clone(),
            seq: state.seq,
        }))
    }
}

pub(super) fn check(items: &[v1::ValidateTokenRequest], batch: bool) -> Result<()> {
    let mut violations = Violations::default();
    if batch && !(1..=MOST_ITEMS).contains(&items.len()) {
        violations.add("items", Invalid::new("must be 1 to 100"));
    }
    for (i, item) in items.iter().enumerate().take(MOST_ITEMS) {
        let field = |name: &str| {
            if batch {
                format!("items[{i}].{name}")
            } else {
                name.to_owned()
            }
        };
        if item.token.is_empty() {
            violations.add(field("token"), Invalid::new("must not be empty"));
        }
        if item.audience.len() > 256 {
            violations.add(field("audience"), Invalid::new("must be at most 256 bytes"));
        }
    }
    Ok(violations.finish()?)
}
