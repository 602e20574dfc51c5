//! Why a request is refused, and how that is said: to a gRPC client as a status with details, as by
//! the service itself, and to any other as an HTTP status with the headers that go with it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no credential.
    Missing,
    /// There is one, or more than one, and it is not good. Which it was, nobody learns.
    Bad,
    /// The caller lacks a role or one of the scopes, which are listed here.
    Lacking { scope: String },
    /// Nothing says who may use this path.
    Unlisted,
    /// The path could be read in two ways.
    Unclear,
    /// What is known is older than the route accepts.
    Stale,
    /// Nothing is known yet.
    NotReady,
}

const DOMAIN: &str = "countersign";

/// When to come back, in seconds: the feed beats each second.
const RETRY: u8 = 1;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Tells a gRPC client's retry machinery when to come back (gRFC A6).
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The gRPC codes that are used here.
#[derive(Clone, Copy)]
enum Code {
    InvalidArgument = 3,
    PermissionDenied = 7,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Refusal {
    pub(super) fn response<B: Default>(&self, request: &HeaderMap) -> Response<B> {
        let mut response = Response::new(B::default());
        let (status, code) = self.status();
        if let Some(content_type) = grpc(request) {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, content_type.clone());
            headers.insert(GRPC_STATUS, HeaderValue::from(code as u16));
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.message()));
            if let Ok(details) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(self.details())) {
                headers.insert(GRPC_DETAILS, details);
            }
            if self.is_passing() {
                headers.insert(GRPC_PUSHBACK, HeaderValue::from(u32::from(RETRY) * 1000));
            }
            return response;
        }
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge() {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if self.is_passing() {
            headers.insert(RETRY_AFTER, HeaderValue::from(u16::from(RETRY)));
        }
        response
    }

    fn status(&self) -> (StatusCode, Code) {
        match self {
            Self::Missing | Self::Bad => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
            Self::Lacking { .. } | Self::Unlisted => {
                (StatusCode::FORBIDDEN, Code::PermissionDenied)
            }
            Self::Unclear => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            Self::Stale | Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
        }
    }

    /// The service's own names for these, so that a client needs to know one list.
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "CREDENTIALS_MISSING",
            Self::Bad => "TOKEN_INVALID",
            Self::Lacking { .. } | Self::Unlisted => "PERMISSION_DENIED",
            Self::Unclear => "INVALID_REQUEST",
            Self::Stale => "TRUST_STALE",
            Self::NotReady => "NOT_READY",
        }
    }

    /// Printable ASCII without `%`, so that it may stand in a header as it is.
    fn message(&self) -> &'static str {
        match self {
            Self::Missing => "send exactly one `authorization: Bearer <token>`",
            Self::Bad => "the access token is not valid",
            Self::Lacking { .. } => "the caller may not do this",
            Self::Unlisted => "nobody may do this",
            Self::Unclear => "the path has another spelling; use that",
            Self::Stale => "what this server knows is older than the call accepts",
            Self::NotReady => "the server is starting; try again later",
        }
    }

    /// Whether it is likely to be over soon.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Stale | Self::NotReady)
    }

    /// RFC 6750, section 3: whoever sent no credential is told no error.
    fn challenge(&self) -> Option<HeaderValue> {
        let error = match self {
            Self::Missing => String::new(),
            Self::Bad => r#", error="invalid_token""#.to_owned(),
            Self::Lacking { scope } if scope.is_empty() => {
                r#", error="insufficient_scope""#.to_owned()
            }
            Self::Lacking { scope } => format!(r#", error="insufficient_scope", scope="{scope}""#),
            Self::Unlisted | Self::Unclear | Self::Stale | Self::NotReady => return None,
        };
        HeaderValue::from_str(&format!(r#"Bearer realm="{DOMAIN}"{error}"#)).ok()
    }

    /// A `google.rpc.Status` with `ErrorInfo` and, where it helps, `RetryInfo`. Written by hand: five
    /// fields do not earn the tree of a protobuf library.
    fn details(&self) -> Vec<u8> {
        let mut info = bytes(1, self.reason().as_bytes());
        info.extend(bytes(2, DOMAIN.as_bytes()));
        if let Self::Lacking { scope } = self
            && !scope.is_empty()
        {
            // An entry of a map: key, value.
            let entry = [bytes(1, b"scope"), bytes(2, scope.as_bytes())].concat();
            info.extend(bytes(3, &entry));
        }
        let (_, code) = self.status();
        let mut status = vec![1 << 3, code as u8];
        status.extend(bytes(2, self.message().as_bytes()));
        status.extend(bytes(3, &any("google.rpc.ErrorInfo", &info)));
        if self.is_passing() {
            let delay = bytes(1, &[1 << 3, RETRY]);
            status.extend(bytes(3, &any("google.rpc.RetryInfo", &delay)));
        }
        status
    }
}

/// The content type of a gRPC request, of whatever kind.
fn grpc(request: &HeaderMap) -> Option<&HeaderValue> {
    const GRPC: &[u8] = b"application/grpc";
    let content_type = request.get(CONTENT_TYPE)?;
    let start = content_type.as_bytes().get(..GRPC.len())?;
    start.eq_ignore_ascii_case(GRPC).then_some(content_type)
}

fn any(name: &str, message: &[u8]) -> Vec<u8> {
    let url = format!("type.googleapis.com/{name}");
    [bytes(1, url.as_bytes()), bytes(2, message)].concat()
}

/// A field of bytes, text or a message: tag, length, content.
fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    let mut written = vec![field << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        written.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    written.push(u8::try_from(length).unwrap_or_default());
    written.extend_from_slice(content);
    written
}
