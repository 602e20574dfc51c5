//! Which lines are logged, by level and target; it can change while the process
//! runs.
//!
//! Decided once for each place in the program that logs, and again when it
//! changes, so that it costs a call nothing. The library's own filter that can be
//! changed is asked, under a lock, whenever a span is made, entered or left.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::{Level, Metadata, Subscriber, callsite, subscriber::Interest};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, ParseError, Targets},
    layer::Context,
};

use super::SERVICE;

/// What is in force. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Levels(Arc<ArcSwap<Targets>>);

/// Reads a level, or a list such as `info,countersign::access=warn`.
pub(super) fn parse(levels: &str) -> Result<Targets, ParseError> {
    // Alone, any other word would be taken for a target, and all else be silent.
    for word in levels.split(',').map(str::trim) {
        if !word.is_empty() && !word.contains('=') {
            word.parse::<LevelFilter>()?;
        }
    }
    levels.parse()
}

impl Levels {
    pub(super) fn new(targets: Targets) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(targets)))
    }

    /// From now on.
    pub(super) fn set(&self, targets: Targets) {
        self.0.store(Arc::new(targets));
        callsite::rebuild_interest_cache();
    }

    fn passes(&self, line: &Metadata<'_>) -> bool {
        is_harmless(line) && self.0.load().would_enable(line.target(), line.level())
    }
}

impl<S: Subscriber> Layer<S> for Levels {
    fn register_callsite(&self, line: &'static Metadata<'static>) -> Interest {
        if self.passes(line) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, line: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.passes(line)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<S>::max_level_hint(&**self.0.load())
    }
}

/// Below `info` libraries write what they send: the driver of PostgreSQL the
/// parameters of each statement, e-mail addresses and password hashes among
/// them. No setting brings these lines out.
fn is_harmless(line: &Metadata<'_>) -> bool {
    *line.level() <= Level::INFO || line.target().starts_with(SERVICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level() {
        for good in [
            "info",
            "INFO",
            "off",
            "warn,countersign::access=debug",
            "countersign=trace, error",
        ] {
            parse(good).unwrap();
        }
        for bad in [
            "inof",
            "countersign",
            "info,countersign::access",
            "a=b=c",
            "countersign=loud",
        ] {
            parse(bad).unwrap_err();
        }
    }
}
