//! What a route asks for: Envoy's `context_extensions`, which its operator
//! writes. A key that is not known may be a misspelt requirement, so it makes
//! the route refuse everything instead of asking for less.

use std::{collections::BTreeMap, time::Duration};

use countersign_verifier::Caller;

use super::Lack;

/// The requirements of a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Route<'a> {
    /// `audience`: whom the credential must be meant for; else any of the
    /// configured ones.
    pub(super) audience: Option<&'a str>,
    /// `role`: names separated by commas, of which the caller holds one.
    roles: Vec<&'a str>,
    /// `scope`: names separated by spaces, all of which the credential carries.
    scopes: Vec<&'a str>,
    /// `optional`: whether a request without a credential passes.
    pub(super) optional: bool,
    /// `preflight`: whether a CORS preflight without a credential passes.
    pub(super) preflight: bool,
    /// `max_staleness`: how old, in seconds, what is known may be.
    pub(super) max_staleness: Option<Duration>,
    /// `strip_token`: whether the credential is kept from the service behind.
    pub(super) strip_token: bool,
}

impl<'a> Route<'a> {
    /// Reads the requirements.
    ///
    /// # Errors
    ///
    /// What cannot be followed.
    pub(super) fn read(extensions: &'a BTreeMap<String, String>) -> Result<Self, String> {
        let mut route = Self::default();
        for (key, value) in extensions {
            let bad = || format!("{key} = {value:?}");
            match key.as_str() {
                "audience" if !value.is_empty() => route.audience = Some(value),
                "role" => route.roles = names(value, ',').ok_or_else(bad)?,
                "scope" => route.scopes = names(value, ' ').ok_or_else(bad)?,
                "optional" => route.optional = flag(value).ok_or_else(bad)?,
                "preflight" => route.preflight = flag(value).ok_or_else(bad)?,
                "strip_token" => route.strip_token = flag(value).ok_or_else(bad)?,
                "max_staleness" => {
                    let seconds = value.parse().map_err(|_| bad())?;
                    route.max_staleness = Some(Duration::from_secs(seconds));
                }
                _ => return Err(bad()),
            }
        }
        if route.optional && !(route.roles.is_empty() && route.scopes.is_empty()) {
            return Err(
                "optional beside role or scope: strangers would pass, and callers not".into(),
            );
        }
        Ok(route)
    }

    /// What the caller lacks, if anything.
    pub(super) fn lacking(&self, caller: &Caller) -> Option<Lack> {
        if !self.roles.is_empty() && !self.roles.iter().any(|role| caller.has_role(role)) {
            return Some(Lack::Role);
        }
        let all = self.scopes.iter().all(|scope| caller.has_scope(scope));
        (!all).then(|| Lack::Scope(self.scopes.join(" ")))
    }
}

/// At least one name, and none that is empty or could not stand in a quoted
/// header parameter (RFC 6749, section 3.3).
fn names(list: &str, separator: char) -> Option<Vec<&str>> {
    let legal = |name: &&str| {
        let character = |c| matches!(c, '!'..='~') && c != '"' && c != '\\';
        !name.is_empty() && name.chars().all(character)
    };
    let names: Vec<&str> = list.split(separator).collect();
    names.iter().all(legal).then_some(names)
}

fn flag(value: &str) -> Option<bool> {
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extensions: &[(&str, &str)]) -> Result<String, String> {
        let owned = extensions.iter();
        let owned: BTreeMap<String, String> = owned
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Route::read(&owned).map(|route| format!("{route:?}"))
    }

    #[test]
    fn every_key_is_read() {
        assert_eq!(read(&[]), Ok(format!("{:?}", Route::default())));
        let all = read(&[
            ("audience", "orders"),
            ("role", "admin,clerk"),
            ("scope", "orders.read orders.write"),
            ("optional", "false"),
            ("preflight", "true"),
            ("max_staleness", "30"),
            ("strip_token", "true"),
        ]);
        let expected = Route {
            audience: Some("orders"),
            roles: vec!["admin", "clerk"],
            scopes: vec!["orders.read", "orders.write"],
            optional: false,
            preflight: true,
            max_staleness: Some(Duration::from_secs(30)),
            strip_token: true,
        };
        assert_eq!(all, Ok(format!("{expected:?}")));
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for (key, value) in [
            ("roles", "admin"),
            ("Role", "admin"),
            ("", ""),
            ("audience", ""),
            ("role", ""),
            ("role", "admin,"),
            ("role", "admin, clerk"),
            ("scope", ""),
            ("scope", "a  b"),
            ("scope", "a\"b"),
            ("scope", "ä"),
            ("optional", ""),
            ("optional", "yes"),
            ("optional", "True"),
            ("strip_token", "1"),
            ("preflight", "allow"),
            ("max_staleness", "-1"),
            ("max_staleness", "5s"),
            ("max_staleness", ""),
        ] {
            assert!(read(&[(key, value)]).is_err(), "{key} = {value:?}");
            // Whatever else is said.
            assert!(read(&[("scope", "a"), (key, value)]).is_err() || key == "scope");
        }
        assert!(read(&[("optional", "true"), ("scope", "a")]).is_err());
        assert!(read(&[("optional", "true"), ("role", "a")]).is_err());
    }
}
