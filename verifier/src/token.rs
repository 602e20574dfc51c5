//! A token taken apart: the compact serialisation (RFC 7515, section 7.1) and its header.
//!
//! Only form is judged here, before any key is looked up. Everything is bounded by the token's
//! length, which is checked first.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeSliceError, Engine as _};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::object::Object;
use crate::{Claims, PublicKey, Rejection};

/// A longer token is refused unread.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The header's `typ` (RFC 9068, section 2.1), so that no other kind of JWT passes for an access
/// token.
pub const TOKEN_TYPE: &str = "at+jwt";

/// Every signature has 64 bytes; the decoder wants room for whole groups of three.
const SIGNATURE_BUFFER: usize = 66;

/// The three parts of a token, of which nothing has been verified.
pub(crate) struct Token<'a> {
    /// Names the key. Base64url, as all of them.
    pub(crate) header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// What the signature is over: header, dot, claims.
    signed: &'a str,
}

/// The parameters of a header that matter. Others are ignored (RFC 7515, section 4).
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Header {
    pub(crate) alg: String,
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
        // Without a way out in the middle the compiler looks at many bytes at once.
        let is_legal = |b: u8| b.is_ascii_alphanumeric() | matches!(b, b'-' | b'_' | b'.');
        if !token.bytes().fold(true, |legal, b| legal & is_legal(b)) {
            return Err(Rejection::Malformed("alphabet"));
        }
        let parts = Rejection::Malformed("parts");
        let (signed, signature) = token.rsplit_once('.').ok_or(parts)?;
        let (header, claims) = signed.split_once('.').ok_or(parts)?;
        if claims.contains('.') {
            return Err(parts);
        }
        Ok(Self {
            header,
            claims,
            signature,
            signed,
        })
    }

    /// The claims as they were signed by this key.
    pub(crate) fn verified_by(&self, key: &PublicKey) -> Result<Claims, Rejection> {
        let claims = decode(self.claims)?;
        let mut signature = [0; SIGNATURE_BUFFER];
        let length = URL_SAFE_NO_PAD.decode_slice(self.signature, &mut signature);
        let signature = match length {
            Ok(length) => signature.get(..length).unwrap_or_default(),
            Err(DecodeSliceError::DecodeError(_)) => return Err(Rejection::Malformed("base64url")),
            Err(DecodeSliceError::OutputSliceTooSmall) => return Err(Rejection::Signature),
        };
        if !key.verifies(self.signed.as_bytes(), signature) {
            return Err(Rejection::Signature);
        }
        // As text at once: serde_json would look at each string by itself.
        let claims = std::str::from_utf8(&claims).ok();
        claims
            .and_then(|claims| serde_json::from_str(claims).ok())
            .ok_or(Rejection::Malformed("claims"))
    }
}

impl Header {
    /// Reads a header and checks all of it that does not depend on the key.
    pub(crate) fn parse(base64url: &str) -> Result<Self, Rejection> {
        let json = decode(base64url)?;
        let mut json = serde_json::Deserializer::from_slice(&json);
        let header = Self::deserialize(Object(&mut json));
        let header = header
            .and_then(|header| json.end().map(|()| header))
            .map_err(|_| Rejection::Malformed("header"))?;
        if header.crit == Parameter::Present {
            return Err(Rejection::Critical);
        }
        if header.brings_its_own_key() {
            return Err(Rejection::OwnKey);
        }
        if !header.is_access_token() {
            return Err(Rejection::Type);
        }
        Ok(header)
    }

    pub(crate) fn kid(&self) -> Result<&str, Rejection> {
        self.kid.as_deref().ok_or(Rejection::Malformed("kid"))
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

/// Canonical base64url only, so that one token has one spelling: the engine refuses padding and
/// trailing bits.
fn decode(part: &str) -> Result<Vec<u8>, Rejection> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Rejection::Malformed("base64url"))
}
