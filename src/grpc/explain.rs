//! Why a token is refused, as a message. The command line prints it too.

use countersign_proto::v1::{self, TokenFinding};
use countersign_verifier::{Credential, Explanation, Rejection};

use super::convert;

/// The answer of ExplainToken.
pub fn response(explained: &Explanation) -> v1::ExplainTokenResponse {
    let malformed_part = match explained.rejection {
        Some(Rejection::Malformed(part)) => part,
        _ => "",
    };
    let off_by = explained.off_by.and_then(|off_by| off_by.try_into().ok());
    v1::ExplainTokenResponse {
        finding: finding(explained.rejection).into(),
        explanation: explained.to_string(),
        malformed_part: malformed_part.to_owned(),
        off_by: off_by.and_then(|off_by: std::time::Duration| off_by.try_into().ok()),
        caller: explained.caller.as_deref().map(convert::caller),
        claims: claims(explained),
    }
}

/// What an access token says of itself, if its signature is good.
pub(super) fn claims(explained: &Explanation) -> Option<v1::TokenClaims> {
    let Credential::AccessToken {
        token_id,
        key_id,
        epoch,
        ..
    } = &explained.caller.as_ref()?.credential
    else {
        return None;
    };
    Some(v1::TokenClaims {
        issuer: explained.issuer.clone()?,
        not_before: explained.not_before.map(convert::timestamp),
        token_id: token_id.to_string(),
        key_id: key_id.clone(),
        epoch: *epoch,
    })
}

fn finding(rejection: Option<Rejection>) -> TokenFinding {
    let Some(rejection) = rejection else {
        return TokenFinding::Good;
    };
    match rejection {
        Rejection::TooLong => TokenFinding::TooLong,
        Rejection::Malformed(_) => TokenFinding::Malformed,
        Rejection::Critical => TokenFinding::CriticalHeader,
        Rejection::OwnKey => TokenFinding::OwnKey,
        Rejection::Type => TokenFinding::Type,
        Rejection::UnknownKey => TokenFinding::KeyUnknown,
        Rejection::KeyRevoked => TokenFinding::KeyRevoked,
        Rejection::Algorithm => TokenFinding::Algorithm,
        Rejection::Signature => TokenFinding::Signature,
        Rejection::Issuer => TokenFinding::Issuer,
        Rejection::Audience => TokenFinding::Audience,
        Rejection::Expired => TokenFinding::Expired,
        Rejection::NotYetValid => TokenFinding::NotYetValid,
        Rejection::IssuedInFuture => TokenFinding::IssuedInFuture,
        Rejection::UnknownApiKey => TokenFinding::ApiKeyUnknown,
        Rejection::SessionRevoked => TokenFinding::SessionRevoked,
        Rejection::UserRevoked => TokenFinding::UserRevoked,
        // Neither is an answer to this question; and what a later verifier adds.
        _ => TokenFinding::Unspecified,
    }
}
