//! What a group of measurements has found, before it is written down.

use crate::series::Series;

/// What was asked for, and whether it must be reached from above or below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// One promise: a ratio to a yardstick, or a bound.
#[derive(Debug, Clone)]
pub struct Row {
    pub what: &'static str,
    pub bar: Bar,
    /// What would be excellent.
    pub dream: Option<f64>,
    /// One value for each round.
    pub seen: Series,
    pub unit: &'static str,
}

/// A figure behind the ratios.
#[derive(Debug, Clone)]
pub struct Figure {
    pub what: String,
    pub seen: Series,
    pub unit: &'static str,
}

/// All that a group has found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub rows: Vec<Row>,
    pub figures: Vec<Figure>,
    /// What a reader must know to judge them.
    pub notes: Vec<String>,
}

impl Bar {
    pub fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }
}

impl Row {
    pub fn is_met(&self) -> bool {
        self.off() <= 1.0
    }

    /// How much of what the bar allows is used up: 1 is exactly at the bar, and
    /// less is better, whichever side it must be reached from.
    pub fn off(&self) -> f64 {
        let seen = self.seen.median();
        match self.bar {
            Bar::AtMost(bar) => seen / bar,
            Bar::AtLeast(bar) => bar / seen,
        }
    }
}

impl Findings {
    pub fn row(
        &mut self,
        what: &'static str,
        bar: Bar,
        dream: Option<f64>,
        unit: &'static str,
        seen: Series,
    ) {
        self.rows.push(Row {
            what,
            bar,
            dream,
            seen,
            unit,
        });
    }

    pub fn figure(&mut self, what: impl Into<String>, unit: &'static str, seen: &Series) {
        self.figures.push(Figure {
            what: what.into(),
            seen: seen.clone(),
            unit,
        });
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub fn append(&mut self, mut other: Self) {
        self.rows.append(&mut other.rows);
        self.figures.append(&mut other.figures);
        self.notes.append(&mut other.notes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_from_its_own_side() {
        let row = |bar, seen| Row {
            what: "",
            bar,
            dream: None,
            seen: Series(vec![seen]),
            unit: "",
        };
        assert!(row(Bar::AtMost(1.5), 1.5).is_met());
        assert!(!row(Bar::AtMost(1.5), 1.6).is_met());
        assert!(row(Bar::AtLeast(0.9), 0.9).is_met());
        assert!(!row(Bar::AtLeast(0.9), 0.8).is_met());
    }
}
