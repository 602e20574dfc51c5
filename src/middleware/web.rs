//! gRPC-Web, by which browsers call: they cannot read trailers, and ask before
//! they send (CORS, Fetch section 3.3). Only pages of the origins that are listed
//! may; with none listed this does not exist, and the port speaks HTTP/2 only.
//!
//! A list of origins keeps other pages from reading answers in a visitor's name.
//! It is no authentication: whoever calls without a browser is not held up by it.

use std::time::Duration;

use http::{
    HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::ServiceBuilder;
use tower_http::cors::{Cors, CorsLayer};

/// What pages may send.
const ALLOWED: [HeaderName; 7] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-user-agent"),
];

/// What pages may read, beside the body.
const EXPOSED: [HeaderName; 5] = [
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-retry-pushback-ms"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("x-request-id"),
];

/// How long a browser need not ask again.
const MAX_AGE: Duration = Duration::from_hours(1);

/// `[grpc_web]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The origins whose pages may call. None: no gRPC-Web.
    pub allowed_origins: Vec<String>,
}

impl Config {
    /// Whether it is served at all.
    pub fn is_on(&self) -> bool {
        !self.allowed_origins.is_empty()
    }

    /// Checks the values.
    ///
    /// # Errors
    ///
    /// What is wrong with each key, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        // As a browser writes it, or it would never match.
        let is_origin = |text: &str| {
            let url = text.parse::<url::Url>().ok();
            let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
            let as_written = |url: url::Url| url.origin().ascii_serialization() == text;
            !text.contains('*') && url.is_some_and(as_written)
        };
        let wrong = self.allowed_origins.iter().filter(|text| !is_origin(text));
        let problems: Vec<_> = wrong
            .map(|text| {
                format!(
                    "grpc_web.allowed_origins has {text:?}; write each as a browser does, such as \
                     https://app.example.com: no path, no slash at the end, no default port, no *"
                )
            })
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

/// Serves gRPC-Web beside gRPC. Outside of all layers, as each of them may
/// answer by itself, and a page must be able to read that too.
pub fn around<S>(inner: S, config: &Config) -> Cors<GrpcWebService<S>> {
    let origins = config.allowed_origins.iter();
    let origins = origins.filter_map(|origin| HeaderValue::from_str(origin).ok());
    let cors = CorsLayer::new()
        .allow_origin(origins.collect::<Vec<_>>())
        .allow_methods([Method::POST])
        .allow_headers(ALLOWED)
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    ServiceBuilder::new()
        .layer(cors)
        .layer(GrpcWebLayer::new())
        .service(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for (origin, good) in [
            ("https://app.example.com", true),
            ("https://app.example.com:8443", true),
            ("http://localhost:3000", true),
            ("http://127.0.0.1:3000", true),
            ("*", false),
            ("", false),
            ("null", false),
            ("app.example.com", false),
            ("https://*.example.com", false),
            ("https://app.example.com/", false),
            ("https://app.example.com/page", false),
            ("https://app.example.com:443", false),
            ("https://App.example.com", false),
            ("https://ana@app.example.com", false),
            ("file:///index.html", false),
        ] {
            let config = Config {
                allowed_origins: vec![origin.to_owned()],
            };
            assert_eq!(config.validate().is_ok(), good, "{origin}");
        }
        assert!(!Config::default().is_on());
    }
}
