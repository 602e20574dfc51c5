//! The head of a request that Envoy asks about.

use std::str;

use countersign_proto::envoy::service::auth::v3::attribute_context::HttpRequest;

const GRPC: &[u8] = b"application/grpc";

/// A request as Envoy shows it. Envoy fills in one of two lists of headers; here
/// both count, so that none is overlooked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a>(&'a HttpRequest);

/// What a request presents as its credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presented<'a> {
    /// Nothing.
    Nothing,
    /// Something that is no bearer token, or more than one thing.
    Garbage,
    /// An access token or an API key.
    Token(&'a str),
}

impl<'a> Asked<'a> {
    pub(super) fn new(http: &'a HttpRequest) -> Self {
        Self(http)
    }

    /// All headers, by name and value.
    pub(super) fn headers(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let joined = self.0.headers.iter();
        let joined = joined.map(|(name, value)| (name.as_str(), value.as_bytes()));
        let raw = self.0.header_map.iter().flat_map(|map| &map.headers);
        let raw = raw.map(|header| {
            let value = match header.raw_value.as_slice() {
                [] => header.value.as_bytes(),
                raw => raw,
            };
            (header.key.as_str(), value)
        });
        joined.chain(raw)
    }

    fn values(self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = move |(given, _): &(&str, &[u8])| given.eq_ignore_ascii_case(name);
        self.headers().filter(of_name).map(|(_, value)| value)
    }

    /// The credential: exactly one `authorization` of the scheme `Bearer` (RFC
    /// 6750, section 2.1). Two that Envoy has joined by a comma are no token.
    pub(super) fn presented(self) -> Presented<'a> {
        let mut values = self.values("authorization");
        let Some(value) = values.next() else {
            return Presented::Nothing;
        };
        if values.next().is_some() {
            return Presented::Garbage;
        }
        let text = str::from_utf8(value).unwrap_or_default();
        match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Presented::Token(token.trim_start_matches(' '))
            }
            _ => Presented::Garbage,
        }
    }

    /// Whether a browser asks if it may send the real request (Fetch, section
    /// 3.3.2); such a question never carries a credential.
    pub(super) fn is_preflight(self) -> bool {
        let has = |name| self.values(name).next().is_some();
        self.0.method == "OPTIONS" && has("origin") && has("access-control-request-method")
    }

    /// Whether the answer should be understood by gRPC clients.
    pub(super) fn is_grpc(self) -> bool {
        self.values("content-type").any(|value| {
            let start = value.get(..GRPC.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        })
    }
}

#[cfg(test)]
mod tests {
    use countersign_proto::envoy::config::core::v3::{HeaderMap, HeaderValue};

    use super::*;

    fn joined(headers: &[(&str, &str)]) -> HttpRequest {
        let headers = headers.iter();
        HttpRequest {
            headers: headers
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..HttpRequest::default()
        }
    }

    fn raw(headers: &[(&str, &[u8])]) -> HttpRequest {
        let headers = headers.iter().map(|(key, value)| HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.to_vec(),
            ..HeaderValue::default()
        });
        HttpRequest {
            header_map: Some(HeaderMap {
                headers: headers.collect(),
            }),
            ..HttpRequest::default()
        }
    }

    #[test]
    fn one_bearer_token_is_taken_in_either_form() {
        for (value, expected) in [
            ("Bearer abc", Presented::Token("abc")),
            ("bearer  abc", Presented::Token("abc")),
            ("Bearer abc,Bearer abc", Presented::Token("abc,Bearer abc")),
            ("Bearer", Presented::Garbage),
            ("Basic abc", Presented::Garbage),
            (" Bearer abc", Presented::Garbage),
            ("", Presented::Garbage),
        ] {
            let http = joined(&[("authorization", value)]);
            assert_eq!(Asked::new(&http).presented(), expected, "{value}");
            let http = raw(&[("Authorization", value.as_bytes())]);
            assert_eq!(Asked::new(&http).presented(), expected, "{value}");
        }
        let http = raw(&[("authorization", b"Bearer \xff\xfe")]);
        assert_eq!(Asked::new(&http).presented(), Presented::Garbage);
        assert_eq!(
            Asked::new(&raw(&[("x", b"y")])).presented(),
            Presented::Nothing
        );
    }

    #[test]
    fn two_are_none_wherever_they_stand() {
        let two = raw(&[
            ("authorization", b"Bearer a"),
            ("AUTHORIZATION", b"Bearer a"),
        ]);
        assert_eq!(Asked::new(&two).presented(), Presented::Garbage);
        let mut one_in_each = raw(&[("authorization", b"Bearer a")]);
        one_in_each.headers = joined(&[("authorization", "Bearer a")]).headers;
        assert_eq!(Asked::new(&one_in_each).presented(), Presented::Garbage);
    }
}
