//! Secrets among the settings.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Stands for a secret wherever settings are shown.
pub const REDACTED: &str = "[redacted]";

/// A secret text: mute in `Debug` and when it is serialized, wiped from memory
/// when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a secret in.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for whoever uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A URL without the passwords in it: that before the host, and those in the
/// query. Rather hides too much than too little, for the text may be malformed.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let rest = match rest.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map(|(user, _)| user);
            match user {
                Some(user) => format!("{user}:{REDACTED}@{host}"),
                None => rest.to_owned(),
            }
        }
        None => rest.to_owned(),
    };
    let (path, query) = rest.split_once('?').unwrap_or((&rest, ""));
    let query: Vec<_> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("password") => {
                format!("{name}={REDACTED}")
            }
            _ => pair.to_owned(),
        })
        .collect();
    let question = if rest.contains('?') { "?" } else { "" };
    format!("{scheme}://{path}{question}{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_passwords_only() {
        for (url, shown) in [
            ("sqlite://./data/a.db", "sqlite://./data/a.db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            (
                "postgres://u:p@a:1,b:2/db?sslmode=require",
                "postgres://u:[redacted]@a:1,b:2/db?sslmode=require",
            ),
            ("postgres://u:p/q?r@s@h/db", "postgres://u:[redacted]@h/db"),
            (
                "postgres://h/db?user=u&password=p&x=1",
                "postgres://h/db?user=u&password=[redacted]&x=1",
            ),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }

    #[test]
    fn secrets_are_mute() {
        let secret = Secret::new("canary".to_owned());
        assert_eq!(format!("{secret:?}"), REDACTED);
        assert_eq!(serde_json::to_value(&secret).unwrap(), REDACTED);
    }
}
