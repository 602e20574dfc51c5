//! Passwords: as typed, and as stored.

use std::fmt;

use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::Invalid;

/// A password as typed, normalised by the profile `OpaqueString` (RFC 8265,
/// section 4.2): spaces of all kinds become U+0020, then NFC; case is kept.
/// Wiped from memory when dropped, and mute in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

/// A hashed password: a PHC string. Not a secret to be compared, but not for
/// logs either.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

/// A password as its row has it: a hash, or one that is sealed.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredPassword(String);

impl Password {
    /// The fewest characters of a new password where it is the only factor
    /// (NIST SP 800-63B-4, section 3.1.1.2).
    pub const FEWEST: usize = 15;
    /// The most characters.
    pub const MOST: usize = 256;

    /// Reads a password that is to be compared. Its length is not checked
    /// from below: the rule may have been another when it was set.
    pub fn parse(raw: &str) -> Result<Self, Invalid> {
        // No legal password has more bytes; a longer one is not normalised.
        if raw.len() > Self::MOST * 4 {
            return Err(too_long());
        }
        if raw.is_empty() {
            return Err(Invalid::new("must not be empty"));
        }
        if raw.chars().any(char::is_control) {
            return Err(Invalid::new("must not contain control characters"));
        }
        let spaced = raw.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
        // Reserved at once: growing would leave copies behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(raw.len() * 3));
        text.extend(spaced.nfc());
        if text.chars().count() > Self::MOST {
            return Err(too_long());
        }
        Ok(Self(text))
    }

    /// How many characters it has.
    pub fn length(&self) -> usize {
        self.0.chars().count()
    }

    /// The text, for hashing and for the blocklist only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn too_long() -> Invalid {
    Invalid::new("must be at most 256 characters")
}

impl PasswordHash {
    /// Wraps a PHC string that was made or checked by the hashing room.
    pub fn from_phc(text: String) -> Self {
        Self(text)
    }

    /// The PHC string.
    pub fn as_phc(&self) -> &str {
        &self.0
    }
}

impl StoredPassword {
    /// Wraps the text of a row.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text for a row.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

impl fmt::Debug for StoredPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredPassword(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_password_from_two_keyboards_is_equal() {
        // RFC 8265, section 4.3: example 3 maps U+1680 to a space.
        let ogham = Password::parse("foo\u{1680}bar").unwrap();
        assert_eq!(ogham.expose(), "foo bar");
        assert_eq!(Password::parse("e\u{301}"), Password::parse("\u{e9}"));
        assert_ne!(Password::parse("Foo"), Password::parse("foo"));
    }

    #[test]
    fn length_counts_characters_not_bytes() {
        assert!(Password::parse(&"é".repeat(256)).is_ok());
        assert!(Password::parse(&"é".repeat(257)).is_err());
        assert!(Password::parse(&"a".repeat(1_000_000)).is_err());
        assert!(Password::parse("").is_err());
        assert!(Password::parse("tab\tinside").is_err());
    }
}
