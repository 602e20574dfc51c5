//! Checkpoints: the signed word that the log holds so many records, and which.
//!
//! A checkpoint that is kept elsewhere is an anchor. Its text is `csa_` and
//! base64url of [`Checkpoint::FIELDS`] bytes, which are signed, and the
//! signature:
//!
//! ```text
//! batch 8 | position 8 | created_at in µs 8 | key id 4 | root 32 | signature 64
//! ```

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use crate::domain::Invalid;

const PREFIX: &str = "csa_";

/// The log up to a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number; the first is 1.
    pub batch: i64,
    /// The last record that it covers, and so how many there are.
    pub position: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// Under which key its links and its signature are.
    pub key_id: i32,
    /// The link of that record.
    pub root: [u8; 32],
    /// Of the fields above.
    pub signature: [u8; 64],
}

impl Checkpoint {
    /// How many bytes are signed.
    pub const FIELDS: usize = 60;

    /// What is signed: all fields in the order of the anchor.
    pub fn fields(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(Self::FIELDS);
        fields.extend(self.batch.to_be_bytes());
        fields.extend(self.position.to_be_bytes());
        fields.extend(self.created_at.as_microsecond().to_be_bytes());
        fields.extend(self.key_id.to_be_bytes());
        fields.extend(self.root);
        fields
    }

    /// The text to be kept elsewhere.
    pub fn anchor(&self) -> String {
        let bytes = [&self.fields(), &self.signature[..]].concat();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (batch, rest) = bytes.split_first_chunk()?;
        let (position, rest) = rest.split_first_chunk()?;
        let (created_at, rest) = rest.split_first_chunk()?;
        let (key_id, rest) = rest.split_first_chunk()?;
        let (root, rest) = rest.split_first_chunk()?;
        Some(Self {
            batch: i64::from_be_bytes(*batch),
            position: i64::from_be_bytes(*position),
            created_at: Timestamp::from_microsecond(i64::from_be_bytes(*created_at)).ok()?,
            key_id: i32::from_be_bytes(*key_id),
            root: *root,
            signature: rest.try_into().ok()?,
        })
    }
}

impl FromStr for Checkpoint {
    type Err = Invalid;

    /// Reads an anchor. Whether it is genuine is not known by that.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.trim()
            .strip_prefix(PREFIX)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
            .and_then(|bytes| Self::read(&bytes))
            .ok_or_else(|| Invalid::new("must be an anchor: csa_ and 166 characters"))
    }
}

/// As an anchor.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.anchor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_read_as_it_was_written() {
        let checkpoint = Checkpoint {
            batch: 7,
            position: 1_000,
            created_at: Timestamp::from_microsecond(1_800_000_000_000_001).unwrap(),
            key_id: 3,
            root: [5; 32],
            signature: [9; 64],
        };
        assert_eq!(checkpoint.fields().len(), Checkpoint::FIELDS);
        let text = checkpoint.to_string();
        assert_eq!(text.len(), 4 + 166);
        assert_eq!(format!(" {text}\n").parse(), Ok(checkpoint));
        for wrong in ["", "csa_", &text[..100], &text[4..], &format!("{text}AA")] {
            assert!(wrong.parse::<Checkpoint>().is_err(), "{wrong}");
        }
    }
}
