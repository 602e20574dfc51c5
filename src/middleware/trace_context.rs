//! The trace that a call belongs to, as W3C Trace Context writes it in the
//! header `traceparent`.

use std::fmt;

use http::HeaderMap;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};

const TRACEPARENT: &str = "traceparent";

/// What a valid `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    trace_id: u128,
    /// The caller's span; never zero.
    parent_id: u64,
    sampled: bool,
}

impl TraceContext {
    /// Reads the header. None if it is absent, there are two, or it does not
    /// have the form that section 3.2.2 asks for.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let context = Self {
            trace_id: hex(parts.next()?, 32)?,
            parent_id: u64::try_from(hex(parts.next()?, 16)?).ok()?,
            sampled: hex(parts.next()?, 2)? & 1 == 1,
        };
        // A later version may append fields (section 3.2.4), ours has none.
        let ends_well = match version {
            0 => parts.next().is_none(),
            0xff => false,
            _ => true,
        };
        (ends_well && context.trace_id != 0 && context.parent_id != 0).then_some(context)
    }

    /// The trace's id, for the log.
    pub fn trace_id(self) -> Id {
        Id(self.trace_id)
    }

    /// The context as a parent for exported spans.
    pub fn to_remote(self) -> Context {
        let flags = if self.sampled {
            TraceFlags::SAMPLED
        } else {
            TraceFlags::default()
        };
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from(self.trace_id),
            SpanId::from(self.parent_id),
            flags,
            true,
            TraceState::NONE,
        ))
    }
}

/// A trace id; displayed as 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(pub u128);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Exactly so many lower-case digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn the_example_of_the_recommendation_is_read() {
        let context = TraceContext::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(context.trace_id().to_string(), TRACE);
        assert_eq!(context.parent_id, 0x00f0_67aa_0ba9_02b7);
        assert!(context.sampled);
        let remote = context.to_remote();
        let span = remote.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), TRACE);
        assert_eq!(span.span_id().to_string(), "00f067aa0ba902b7");
        assert!(span.is_remote() && span.is_sampled());
    }

    #[test]
    fn another_form_is_not_believed() {
        for (text, good) in [
            (format!("00-{TRACE}-00f067aa0ba902b7-00"), true),
            // A later version may say more.
            (format!("01-{TRACE}-00f067aa0ba902b7-01"), true),
            (format!("01-{TRACE}-00f067aa0ba902b7-01-more"), true),
            (format!("00-{TRACE}-00f067aa0ba902b7-01-more"), false),
            (format!("ff-{TRACE}-00f067aa0ba902b7-01"), false),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), false),
            (format!("00-{TRACE}-0000000000000000-01"), false),
            (
                format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
                false,
            ),
            (format!("00-{TRACE}-00f067aa0ba902b7"), false),
            (format!("00-{TRACE}-00f067aa0ba902b7-+1"), false),
            (format!("00-{}-00f067aa0ba902b7-01", &TRACE[1..]), false),
            (String::new(), false),
        ] {
            assert_eq!(TraceContext::parse(&text).is_some(), good, "{text}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let value: http::HeaderValue = format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, value.clone());
        assert!(TraceContext::from_headers(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert!(TraceContext::from_headers(&headers).is_none());
    }
}
