//! The groups of the table. Within a round each group measures the service and
//! its yardsticks in turn, and a ratio is made of the figures of one round: so
//! what else the machine does troubles both alike.

mod growth;
mod login;
mod start;
mod storm;
mod validate;
mod writes;

use std::fmt;

use clap::ValueEnum;

use crate::{Bench, findings::Findings};

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// CPU of a validation and of Envoy's check.
    Validate,
    /// CPU of a login, and of a hash.
    Login,
    /// Validations during a login storm, overload, memory.
    Storm,
    /// Refreshes on both databases.
    Writes,
    /// Start, and memory when idle.
    Start,
    /// Logins and refreshes with ten million users: not in the table, and longer.
    Growth,
}

impl Group {
    /// Those of the table.
    pub const ALL: [Self; 5] = [
        Self::Validate,
        Self::Login,
        Self::Storm,
        Self::Writes,
        Self::Start,
    ];

    pub fn measure(self, bench: &Bench) -> anyhow::Result<Findings> {
        match self {
            Self::Validate => validate::measure(bench),
            Self::Login => login::measure(bench),
            Self::Storm => storm::measure(bench),
            Self::Writes => writes::measure(bench),
            Self::Start => start::measure(bench),
            Self::Growth => growth::measure(bench),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
