//! The claims of an access token as they travel (RFC 9068, section 2.2).
//!
//! Minting serialises this type and verification reads it back, so that the two cannot disagree.
//! Reading is strict: a JSON object, every claim here present, integers for times (RFC 7519 would
//! allow fractions), no member twice. Members that are not listed are ignored, so that a later issuer
//! may add some. Whether the values are acceptable is the verifier's question, not this file's.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::object::Object;

/// The claims of an access token. Times are whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// The user's id.
    pub sub: Uuid,
    /// Whom the token is meant for. Written as an array; read as an array or one string
    /// (RFC 7519, section 4.1.3).
    pub aud: Vec<String>,
    /// From when on the token is refused.
    pub exp: i64,
    /// When the token was minted.
    pub iat: i64,
    /// Before when the token is refused.
    pub nbf: i64,
    /// The token's own id.
    pub jti: Uuid,
    /// The session that the token was minted in.
    pub sid: Uuid,
    /// The workload that asked for the token.
    pub client_id: String,
    /// Permissions, separated by spaces (RFC 8693, section 4.2).
    pub scope: String,
    /// Names of roles.
    pub roles: Vec<String>,
    /// How the subject proved who it is (RFC 8176).
    pub amr: Vec<String>,
    /// When the subject last proved who it is.
    pub auth_time: i64,
    /// The user's epoch at minting; a change to the account that must end its tokens raises it.
    pub epoch: i64,
}

/// Repeats [`Claims`] because serde's derive alone would accept an array of values and would not see
/// an unlisted member named twice; [`Object`] refuses both. The compiler keeps the two in step.
#[derive(Deserialize)]
#[serde(remote = "Claims")]
struct Members {
    iss: String,
    sub: Uuid,
    #[serde(deserialize_with = "one_or_many")]
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: Uuid,
    sid: Uuid,
    client_id: String,
    scope: String,
    roles: Vec<String>,
    amr: Vec<String>,
    auth_time: i64,
    epoch: i64,
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Members::deserialize(Object(deserializer))
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or an array of strings")
        }

        fn visit_str<E: de::Error>(self, one: &str) -> Result<Self::Value, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Self::Value, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = many.next_element()? {
                values.push(value);
            }
            Ok(values)
        }
    }

    deserializer.deserialize_any(OneOrMany)
}
