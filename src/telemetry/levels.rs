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
    filter::{LevelFilter, Targets},
    layer::Context,
};

use super::SERVICE;

/// What is in force. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Levels(Arc<ArcSwap<Targets>>);

/// A part of a list of levels that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a level nor target=level")]
pub struct Unreadable(String);

/// Reads a level, or a list such as `info,countersign::access=warn`. By the
/// library's own reading a word that is no level is a target, and all else is silent.
pub(super) fn parse(levels: &str) -> Result<Targets, Unreadable> {
    let words = levels.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .try_fold(Targets::new(), |targets, word| {
            let unreadable = || Unreadable(word.to_owned());
            let level = |level: &str| match level.trim() {
                "" => Err(unreadable()),
                level => level.parse::<LevelFilter>().map_err(|_| unreadable()),
            };
            let Some((target, of_target)) = word.split_once('=') else {
                return Ok(targets.with_default(level(word)?));
            };
            let target = target.trim();
            // No filter by spans and their fields.
            if target.is_empty() || target.contains(['[', '{']) {
                return Err(unreadable());
            }
            Ok(targets.with_target(target, level(of_target)?))
        })
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
    fn a_list_is_read_as_it_is_meant() {
        let access = "countersign::access";
        for (list, level, of_access) in [
            ("info", Some(Level::INFO), Some(Level::INFO)),
            ("INFO", Some(Level::INFO), Some(Level::INFO)),
            ("off", None, None),
            ("info,", Some(Level::INFO), Some(Level::INFO)),
            (
                "warn, countersign::access = debug",
                Some(Level::WARN),
                Some(Level::DEBUG),
            ),
            ("countersign::access=off,,trace", Some(Level::TRACE), None),
            ("countersign=debug", None, Some(Level::DEBUG)),
        ] {
            let targets = parse(list).unwrap();
            for (target, loudest) in [("tokio", level), (access, of_access)] {
                for line in [
                    Level::ERROR,
                    Level::WARN,
                    Level::INFO,
                    Level::DEBUG,
                    Level::TRACE,
                ] {
                    let logged = loudest.is_some_and(|loudest| line <= loudest);
                    assert_eq!(
                        targets.would_enable(target, &line),
                        logged,
                        "{list}: {target}, {line}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_level_is_refused() {
        for list in [
            "inof",
            "countersign",
            "info,countersign::access",
            "a=b=c",
            "countersign=loud",
            "countersign=",
            "=info",
            "countersign[call]=debug",
            "[{subject}]=debug",
        ] {
            parse(list).unwrap_err();
        }
        assert_eq!(parse("info,inof").unwrap_err(), Unreadable("inof".into()));
    }
}
