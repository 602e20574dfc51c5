//! Names of master keys: which one a key is sealed under, and which ones a node
//! has. The keys themselves are not known here.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::Invalid;

/// The name of a master key. It follows from the key, so that nobody has to
/// give it one and two nodes cannot mean different keys by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasterKeyId(pub [u8; Self::BYTES]);

impl MasterKeyId {
    /// Its length.
    pub const BYTES: usize = 8;
}

impl fmt::Display for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKeyId({self})")
    }
}

impl FromStr for MasterKeyId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        let bytes = bytes.try_into();
        bytes
            .map(Self)
            .map_err(|_| Invalid::new("must be 8 bytes as base64url"))
    }
}
