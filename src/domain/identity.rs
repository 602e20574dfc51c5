//! By what names a person is known: e-mail address, username, display name.

use std::{fmt, str::FromStr};

use unicode_normalization::UnicodeNormalization;

use super::{Invalid, text};

/// A normalised e-mail address: NFC, lower case. Whether it reaches anybody is
/// not known here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email(String);

/// A normalised username: 3 to 64 of a-z, 0-9, `.`, `_`, `-`, starting with a
/// letter. It never contains `@`, so no username is anybody's address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Username(String);

/// What a person types to log in: an address or a username.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Identifier {
    /// Contains an `@`.
    Email(Email),
    /// Does not.
    Username(Username),
}

/// A name for people; free text of at most 128 characters.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DisplayName(String);

impl Email {
    /// The longest address in bytes (RFC 5321, section 4.5.3.1.3, less the
    /// angle brackets).
    pub const MOST_BYTES: usize = 254;

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A part of an address, normalised as addresses are, to search by.
    pub fn prefix(text: &str) -> Result<String, Invalid> {
        if text.len() > Self::MOST_BYTES {
            return Err(Invalid::new("must be at most 254 bytes"));
        }
        text::check(text, Self::MOST_BYTES)?;
        Ok(normalise(text))
    }
}

fn normalise(text: &str) -> String {
    text.nfc().flat_map(char::to_lowercase).nfc().collect()
}

impl FromStr for Email {
    type Err = Invalid;

    fn from_str(raw: &str) -> Result<Self, Invalid> {
        let malformed = || Invalid::new("must be an e-mail address such as ana@example.com");
        if raw.len() > Self::MOST_BYTES {
            return Err(Invalid::new("must be at most 254 bytes"));
        }
        text::check(raw, Self::MOST_BYTES)?;
        let text = normalise(raw);
        let (local, domain) = text.rsplit_once('@').ok_or_else(malformed)?;
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
        };
        let local_is_legal = !local.is_empty()
            && local.len() <= 64
            && local.split('.').all(|atom| !atom.is_empty())
            && local
                .chars()
                .all(|c| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c));
        if text.len() > Self::MOST_BYTES || !local_is_legal || !domain.split('.').all(label) {
            return Err(malformed());
        }
        Ok(Self(text))
    }
}

impl Username {
    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Username {
    type Err = Invalid;

    fn from_str(raw: &str) -> Result<Self, Invalid> {
        let text = raw.to_ascii_lowercase();
        if !(3..=64).contains(&text.len()) || !text::is_slug(&text, "._-") {
            return Err(Invalid::new(
                "must be 3 to 64 of a-z, 0-9, `.`, `_`, `-`, starting with a letter",
            ));
        }
        Ok(Self(text))
    }
}

impl Identifier {
    /// The normalised text. None is both an address and a username.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Email(email) => email.as_str(),
            Self::Username(username) => username.as_str(),
        }
    }
}

impl FromStr for Identifier {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let malformed = |_| Invalid::new("must be an e-mail address or a username");
        if text.contains('@') {
            text.parse().map(Self::Email).map_err(malformed)
        } else {
            text.parse().map(Self::Username).map_err(malformed)
        }
    }
}

impl DisplayName {
    /// The longest in characters.
    pub const MOST: usize = 128;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DisplayName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        text::check(text, Self::MOST)?;
        Ok(Self(text.to_owned()))
    }
}

/// Personal data stay out of logs: `Debug` names the type only.
macro_rules! mute {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+};
}
mute!(Email, Username, Identifier, DisplayName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_without_case() {
        let email: Email = "Ana.Lima@Example.COM".parse().unwrap();
        assert_eq!(email.as_str(), "ana.lima@example.com");
        // The same letter composed and decomposed.
        assert_eq!(
            "é@x.org".parse::<Email>(),
            "e\u{301}@x.org".parse::<Email>()
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "@",
            "a@",
            "@b",
            "a b@c.d",
            "a@b..c",
            ".a@b.c",
            "a.@b.c",
            "a@-b.c",
            "a\0@b.c",
            "a@b\u{202e}.c",
            "a",
            "a@b@c.d,",
            "<a@b.c>",
        ] {
            assert!(text.parse::<Email>().is_err(), "{text:?}");
        }
        assert!(format!("{}@b.c", "a".repeat(65)).parse::<Email>().is_err());
    }

    #[test]
    fn debug_says_nothing() {
        let email: Email = "ana@example.com".parse().unwrap();
        assert_eq!(format!("{email:?}"), "Email(…)");
    }
}
