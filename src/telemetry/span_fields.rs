//! The fields of a call's span as JSON, written once for each call.
//!
//! The library's own way builds a map of values and serialises it, and for a field
//! that comes later parses and builds it again. That costs more than the rest of
//! the span, for calls of which most have no line in the log.

use std::fmt;

use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// Writes fields as members of one JSON object. Of two with one name the last
/// counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SpanFields;

struct Members<'a> {
    to: &'a mut dyn fmt::Write,
    is_first: bool,
    result: fmt::Result,
}

impl<'w> FormatFields<'w> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        writer.write_char('{')?;
        let mut members = Members::new(&mut writer, true);
        fields.record(&mut members);
        members.result?;
        writer.write_char('}')
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let text = &mut current.fields;
        text.pop();
        let is_first = text == "{";
        let mut members = Members::new(text, is_first);
        fields.record(&mut members);
        members.result?;
        text.push('}');
        Ok(())
    }
}

impl<'a> Members<'a> {
    fn new(to: &'a mut dyn fmt::Write, is_first: bool) -> Self {
        Self {
            to,
            is_first,
            result: Ok(()),
        }
    }

    fn member(&mut self, field: &Field, value: impl FnOnce(&mut dyn fmt::Write) -> fmt::Result) {
        let comma = if self.is_first { "" } else { "," };
        self.is_first = false;
        let write = || {
            self.to.write_str(comma)?;
            string(self.to, field.name())?;
            self.to.write_char(':')?;
            value(self.to)
        };
        self.result = self.result.and_then(|()| write());
    }
}

impl Visit for Members<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |to| write!(to, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |to| write!(to, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |to| write!(to, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |to| string(to, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |to| string(to, &format!("{value:?}")));
    }
}

/// A string of JSON (RFC 8259, section 7).
fn string(to: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    if text.bytes().any(|b| b < b' ' || b == b'"' || b == b'\\') {
        return write!(to, "{}", serde_json::Value::from(text));
    }
    to.write_char('"')?;
    to.write_str(text)?;
    to.write_char('"')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tracing::{Span, field};
    use tracing_subscriber::{Registry, layer::SubscriberExt as _, registry::LookupSpan as _};

    use super::*;

    /// What is kept of a span.
    fn kept(make: impl FnOnce() -> Span) -> String {
        let layer = tracing_subscriber::fmt::layer().fmt_fields(SpanFields);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let kept = make().with_subscriber(|(id, dispatch)| {
                let registry = dispatch.downcast_ref::<Registry>().unwrap();
                let span = registry.span(id).unwrap();
                let fields = span.extensions();
                fields
                    .get::<FormattedFields<SpanFields>>()
                    .unwrap()
                    .fields
                    .clone()
            });
            kept.unwrap()
        })
    }

    #[test]
    fn whatever_is_in_it_it_is_json_and_the_last_word_counts() {
        let kept = kept(|| {
            let span = tracing::error_span!(
                "call",
                text = "plain",
                hostile = "a \"quote\", a \\, a \n and an é",
                signed = -1_i64,
                unsigned = u64::MAX,
                truth = true,
                shown = field::display("d"),
                none = Option::<&str>::None,
                later = field::Empty,
            );
            span.record("later", "l");
            span.record("text", "changed");
            span
        });
        let fields: Value = serde_json::from_str(&kept).unwrap();
        let expected = json!({
            "text": "changed",
            "hostile": "a \"quote\", a \\, a \n and an é",
            "signed": -1,
            "unsigned": u64::MAX,
            "truth": true,
            "shown": "d",
            "later": "l",
        });
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_span_without_fields_can_get_some() {
        let kept = kept(|| {
            let span = tracing::error_span!("call", later = field::Empty);
            span.record("later", 1);
            span
        });
        assert_eq!(kept, r#"{"later":1}"#);
    }
}
