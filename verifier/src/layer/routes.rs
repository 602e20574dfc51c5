//! What each route asks for, and which route a path takes.
//!
//! A guard and the router behind it must read a path alike, or a request is judged by one route and
//! served by another. So a path with a second spelling is not read at all but refused: dot segments,
//! empty segments, backslashes, percent-encoding where none is needed or where it hides a slash, and
//! what should be encoded and is not.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use super::refusal::Refusal;
use crate::Caller;

/// What a route asks of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Require {
    pub(super) who: Who,
    /// All of them are needed.
    scopes: Vec<String>,
    /// One of them is needed, if there are any.
    roles: Vec<String>,
    freshness: Option<Freshness>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Nothing is looked at.
    Anyone,
    /// A credential need not be there, but is judged if it is.
    AnyoneOrCaller,
    Caller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Freshness {
    within: Duration,
    /// Whether to serve, and say so, when the knowledge is older.
    serve_beyond: bool,
}

/// What each route asks for. The most special one counts: a path before a prefix, and the longer
/// prefix before the shorter, in whatever order they are listed.
///
/// What is not listed is refused, unless [`otherwise`](Self::otherwise) says something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    paths: BTreeMap<String, Require>,
    prefixes: BTreeMap<String, Require>,
    otherwise: Option<Require>,
    invalid: Option<InvalidRoute>,
}

/// A route that could never be met as it is written: no request with such a path gets through, so what
/// it asks for would not be enforced where it was meant to be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the route {route:?} {problem}")]
pub struct InvalidRoute {
    route: String,
    problem: &'static str,
}

impl Require {
    /// Lets everyone pass and looks at nothing; a credential stays in the request, unjudged.
    pub fn nothing() -> Self {
        Self::who(Who::Anyone)
    }

    /// Lets everyone pass who brings no credential or a good one. A bad one is refused, so that nobody
    /// who believes to be somebody is served as nobody.
    pub fn nothing_or_caller() -> Self {
        Self::who(Who::AnyoneOrCaller)
    }

    /// Lets everyone pass who brings a good credential.
    pub fn caller() -> Self {
        Self::who(Who::Caller)
    }

    /// Lets callers with this scope pass.
    pub fn scope(scope: impl Into<String>) -> Self {
        Self::caller().and_scope(scope)
    }

    /// Lets callers with any of these roles pass. API keys have scopes only, and no roles.
    pub fn any_role<R: Into<String>>(roles: impl IntoIterator<Item = R>) -> Self {
        Self {
            roles: roles.into_iter().map(Into::into).collect(),
            ..Self::caller()
        }
    }

    /// Asks for this scope, too, of whoever is a caller.
    pub fn and_scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// Fail closed: refuses with 503 or `UNAVAILABLE` while what the verifier knows is older than this,
    /// as a revocation might have been missed.
    pub fn fresh_within(mut self, age: Duration) -> Self {
        self.freshness = Some(Freshness {
            within: age,
            serve_beyond: false,
        });
        self
    }

    /// Fail open: serves while what the verifier knows is older than this, and says so in the response
    /// ([`STALENESS`](super::STALENESS)), the counters and the request's extensions.
    pub fn mark_beyond(mut self, age: Duration) -> Self {
        self.freshness = Some(Freshness {
            within: age,
            serve_beyond: true,
        });
        self
    }

    fn who(who: Who) -> Self {
        Self {
            who,
            scopes: Vec::new(),
            roles: Vec::new(),
            freshness: None,
        }
    }

    /// The staleness, if it is more than the route wants and the route serves all the same.
    pub(super) fn beyond(&self, staleness: Duration) -> Result<Option<Duration>, Refusal> {
        match self.freshness {
            Some(freshness) if staleness > freshness.within => {
                if freshness.serve_beyond {
                    Ok(Some(staleness))
                } else {
                    Err(Refusal::Stale)
                }
            }
            _ => Ok(None),
        }
    }

    pub(super) fn satisfied_by(&self, caller: &Caller) -> Result<(), Refusal> {
        let has_role = self.roles.is_empty() || self.roles.iter().any(|role| caller.has_role(role));
        if has_role && self.scopes.iter().all(|scope| caller.has_scope(scope)) {
            return Ok(());
        }
        Err(Refusal::Lacking {
            scope: self.scopes.join(" "),
        })
    }

    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<&'static str> {
        // RFC 6749, section 3.3.
        let is_scope = |scope: &String| {
            let legal = |b| matches!(b, b'!' | b'#'..=b'[' | b']'..=b'~');
            !scope.is_empty() && scope.bytes().all(legal)
        };
        if !self.scopes.iter().all(is_scope) {
            Some("asks for something that is no scope")
        } else if self.who == Who::Anyone && (!self.scopes.is_empty() || self.freshness.is_some()) {
            Some("asks for something of everyone, whom nobody judges")
        } else {
            None
        }
    }
}

impl Routes {
    /// What exactly this path asks for, such as `/orders.v1.Orders/Cancel`.
    pub fn path(mut self, path: impl Into<String>, require: Require) -> Self {
        let path = path.into();
        if !path.starts_with('/') {
            self.invalidate(&path, "does not start with a slash");
        } else if !is_clear(&path) {
            self.invalidate(&path, "has a second spelling");
        } else if let Some(problem) = require.problem() {
            self.invalidate(&path, problem);
        } else if self.paths.insert(path.clone(), require).is_some() {
            self.invalidate(&path, "is listed twice");
        }
        self
    }

    /// What this path and all below it ask for: `/orders` is for `/orders` and `/orders/7`, not for
    /// `/orders-archive`. A gRPC service is `/orders.v1.Orders`.
    pub fn prefix(mut self, prefix: impl Into<String>, require: Require) -> Self {
        let prefix = prefix.into();
        if !prefix.starts_with('/') {
            self.invalidate(&prefix, "does not start with a slash");
        } else if prefix.ends_with('/') {
            self.invalidate(&prefix, "ends with a slash, which is understood");
        } else if !is_clear(&prefix) {
            self.invalidate(&prefix, "has a second spelling");
        } else if let Some(problem) = require.problem() {
            self.invalidate(&prefix, problem);
        } else if self.prefixes.insert(prefix.clone(), require).is_some() {
            self.invalidate(&prefix, "is listed twice");
        }
        self
    }

    /// What every path asks for that is not listed.
    pub fn otherwise(mut self, require: Require) -> Self {
        if let Some(problem) = require.problem() {
            self.invalidate("otherwise", problem);
        }
        self.otherwise = Some(require);
        self
    }

    pub(super) fn checked(self) -> Result<Self, InvalidRoute> {
        match self.invalid {
            Some(invalid) => Err(invalid),
            None => Ok(self),
        }
    }

    /// What this path asks for.
    pub(super) fn find(&self, path: &str) -> Result<&Require, Refusal> {
        if !is_clear(path) {
            return Err(Refusal::Unclear);
        }
        let exact = self.paths.get(path);
        // A few dozen are listed: to look at each is fast, and bounded by what was listed and not by
        // what was asked. In the order of the alphabet the longer of two that fit is the later.
        let above = || {
            let mut prefixes = self.prefixes.iter().rev();
            prefixes.find(|(prefix, _)| is_below(path, prefix))
        };
        exact
            .or_else(|| above().map(|(_, require)| require))
            .or(self.otherwise.as_ref())
            .ok_or(Refusal::Unlisted)
    }

    /// The first mistake is the one to report.
    fn invalidate(&mut self, route: &str, problem: &'static str) {
        self.invalid.get_or_insert_with(|| InvalidRoute {
            route: route.to_owned(),
            problem,
        });
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the path is the only spelling of itself.
fn is_clear(path: &str) -> bool {
    // RFC 3986, section 6.2.2: equivalent spellings by percent-encoding and by dot segments. `*` is
    // the path of a request about the server as a whole.
    let Some(segments) = path.strip_prefix('/') else {
        return path == "*";
    };
    let last = segments.split('/').count().saturating_sub(1);
    let clear = |(i, segment): (usize, &str)| {
        // Only the last may be empty: a slash at the end.
        !matches!(segment, "." | "..") && (i == last || !segment.is_empty())
    };
    segments.split('/').enumerate().all(clear)
        && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
        && path.split('%').skip(1).all(encodes_something)
}

/// Whether what follows a `%` encodes, in capitals, a byte that cannot stand for itself and is no slash.
fn encodes_something(after: &str) -> bool {
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'A'..=b'F');
    let hex = after.get(..2).filter(|hex| hex.bytes().all(is_digit));
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(b) => !(b.is_ascii_alphanumeric() || b"-._~/\\\0".contains(&b)),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_second_spelling_is_not_clear() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/a.b/C",
            "/a%20b",
            "/%C3%A9",
            "/a%3Fb",
            "/.well-known/x",
            "/...",
            "/a..b",
            "*",
            "/%25",
            "/a:b",
            "/a;b=c",
            "/a%2Bb",
            "/a/%40b",
        ] {
            assert!(is_clear(path), "{path}");
        }
        for path in [
            "",
            "a",
            "//",
            "//a",
            "/a//",
            "/a//b",
            "/.",
            "/..",
            "/a/.",
            "/a/..",
            "/a/./b",
            "/a/../b",
            "/%2e",
            "/%2E%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/%61",
            "/%7E",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/%é",
            "/%00",
            "/%2D",
            "/%5F",
            "/%30",
            "**",
            "/%c3%a9",
            "/é",
            "/a b",
        ] {
            assert!(!is_clear(path), "{path}");
        }
    }

    #[test]
    fn the_most_special_route_counts_whatever_the_order() {
        let scope = Require::scope;
        let found = |routes: &Routes, path: &str| routes.find(path).cloned().ok();
        let forward = Routes::default()
            .prefix("/a", scope("a"))
            .prefix("/a/b", scope("ab"))
            .prefix("/a-", scope("a-"))
            .path("/a/b/c", scope("abc"))
            .path("/a/b", scope("exact"));
        let backward = Routes::default()
            .path("/a/b", scope("exact"))
            .path("/a/b/c", scope("abc"))
            .prefix("/a-", scope("a-"))
            .prefix("/a/b", scope("ab"))
            .prefix("/a", scope("a"));
        assert_eq!(forward, backward);
        for (path, expected) in [
            ("/a", Some("a")),
            ("/a/", Some("a")),
            ("/a/x", Some("a")),
            ("/a/bc", Some("a")),
            ("/a/b", Some("exact")),
            ("/a/b/", Some("ab")),
            ("/a/b/c", Some("abc")),
            ("/a/b/c/", Some("ab")),
            ("/a/b/c/d", Some("ab")),
            ("/a-", Some("a-")),
            ("/a-/x", Some("a-")),
            ("/a-x", None),
            ("/ab", None),
            ("/A", None),
            ("/", None),
            ("*", None),
        ] {
            assert_eq!(found(&forward, path), expected.map(scope), "{path}");
        }
        let open = forward.otherwise(Require::caller());
        assert_eq!(found(&open, "/"), Some(Require::caller()));
        assert_eq!(found(&open, "/a/../b"), None);
    }

    #[test]
    fn a_route_that_could_not_be_enforced_is_a_mistake() {
        let caller = Require::caller;
        for (routes, message) in [
            (
                Routes::default().path("orders", caller()),
                r#"the route "orders" does not start with a slash"#,
            ),
            (
                Routes::default().prefix("/", caller()),
                r#"the route "/" ends with a slash, which is understood"#,
            ),
            (
                Routes::default().prefix("/a/../b", caller()),
                r#"the route "/a/../b" has a second spelling"#,
            ),
            (
                Routes::default().path("/a", caller()).path("/a", caller()),
                r#"the route "/a" is listed twice"#,
            ),
            (
                Routes::default()
                    .prefix("/a", caller())
                    .prefix("/a", caller()),
                r#"the route "/a" is listed twice"#,
            ),
            (
                Routes::default().path("/a", Require::scope("a b")),
                r#"the route "/a" asks for something that is no scope"#,
            ),
            (
                Routes::default().otherwise(Require::nothing().and_scope("a")),
                r#"the route "otherwise" asks for something of everyone, whom nobody judges"#,
            ),
            (
                Routes::default().path("/a", Require::nothing().fresh_within(Duration::ZERO)),
                r#"the route "/a" asks for something of everyone, whom nobody judges"#,
            ),
        ] {
            assert_eq!(routes.checked().unwrap_err().to_string(), message);
        }
        let both = Routes::default()
            .path("/a", caller())
            .prefix("/a", caller());
        assert!(both.checked().is_ok());
    }
}
