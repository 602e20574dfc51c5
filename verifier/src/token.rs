//! A token taken apart: the compact serialisation (RFC 7515, section 7.1) and its header.
//!
//! Only form is judged here, before any key is looked up. Everything is bounded by the token's
//! length, which is checked first.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::Rejection;
use crate::object::Object;

/// A longer token is refused unread.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The header's `typ` (RFC 9068, section 2.1), so that no other kind of JWT passes for an access
/// token.
pub const TOKEN_TYPE: &str = "at+jwt";

/// A well-formed token of which nothing has been verified.
pub(crate) struct Token<'a> {
    pub(crate) algorithm: String,
    pub(crate) kid: String,
    pub(crate) claims: Vec<u8>,
    /// What the signature is over: header, dot, claims.
    pub(crate) signed: &'a [u8],
    pub(crate) signature: Vec<u8>,
}

/// The parameters that matter. Others are ignored (RFC 7515, section 4).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    alg: String,
    typ: String,
    kid: Option<String>,
    crit: Parameter,
    jku: Parameter,
    jwk: Parameter,
    x5u: Parameter,
    x5c: Parameter,
    x5t: Parameter,
    #[serde(rename = "x5t#S256")]
    x5t_s256: Parameter,
}

/// Whether a parameter is there at all, whatever its value, `null` included.
#[derive(Default, PartialEq, Eq)]
enum Parameter {
    #[default]
    Absent,
    Present,
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self::Present)
    }
}

impl<'a> Token<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, Rejection> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Rejection::TooLong);
        }
        if !token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        {
            return Err(Rejection::Malformed("alphabet"));
        }
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or(Rejection::Malformed("parts"))?;
        let (header, claims) = signed
            .split_once('.')
            .ok_or(Rejection::Malformed("parts"))?;
        if claims.contains('.') {
            return Err(Rejection::Malformed("parts"));
        }

        let header = Header::parse(&decode(header)?)?;
        if header.crit == Parameter::Present {
            return Err(Rejection::Critical);
        }
        if header.brings_its_own_key() {
            return Err(Rejection::OwnKey);
        }
        if !header.is_access_token() {
            return Err(Rejection::Type);
        }
        Ok(Self {
            algorithm: header.alg,
            kid: header.kid.ok_or(Rejection::Malformed("kid"))?,
            claims: decode(claims)?,
            signed: signed.as_bytes(),
            signature: decode(signature)?,
        })
    }
}

impl Header {
    fn parse(json: &[u8]) -> Result<Self, Rejection> {
        let mut json = serde_json::Deserializer::from_slice(json);
        let header = Self::deserialize(Object(&mut json));
        header
            .and_then(|header| json.end().map(|()| header))
            .map_err(|_| Rejection::Malformed("header"))
    }

    fn brings_its_own_key(&self) -> bool {
        let parameters = [
            &self.jku,
            &self.jwk,
            &self.x5u,
            &self.x5c,
            &self.x5t,
            &self.x5t_s256,
        ];
        parameters.contains(&&Parameter::Present)
    }

    /// The prefix `application/` may be left out, and case does not matter (RFC 7515, section 4.1.9).
    fn is_access_token(&self) -> bool {
        const PREFIX: &str = "application/";
        let short = match self.typ.split_at_checked(PREFIX.len()) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case(PREFIX) => rest,
            _ => &self.typ,
        };
        short.eq_ignore_ascii_case(TOKEN_TYPE)
    }
}

/// Canonical base64url only, so that one token has one spelling: this engine refuses padding and
/// trailing bits.
fn decode(part: &str) -> Result<Vec<u8>, Rejection> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Rejection::Malformed("base64url"))
}
