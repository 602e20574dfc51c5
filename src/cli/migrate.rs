//! `migrate`: the database schema. `serve` brings it up by itself; this is for
//! whoever wants to do so before, to look, or to go back.

use clap::{Args, Subcommand};

use super::table::table;

/// What can be done with the schema.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Apply what is missing
    Up,
    /// Undo the newest migrations, with the data that only they hold
    #[command(after_help = "Example:\n  countersign migrate down --steps 2 --yes")]
    Down(Down),
    /// Show which migrations are applied
    Status,
}

/// Arguments of `migrate down`.
#[derive(Debug, Clone, Args)]
pub struct Down {
    /// How many to undo
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Confirm that data may be lost
    #[arg(long, required = true)]
    pub yes: bool,
}

/// Migrations as they are printed: each name and where it stands.
pub fn show(migrations: &[(String, &str)]) -> String {
    let rows: Vec<_> = migrations
        .iter()
        .map(|(name, state)| [name.clone(), (*state).to_owned()])
        .collect();
    table(["migration", "state"], &rows)
}
