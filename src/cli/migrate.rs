//! `migrate`: the database schema. `serve` brings it up by itself; this is for
//! whoever wants to do so before, to look, or to go back.

use clap::{Args, Subcommand};

use super::table::table;
use crate::{service::Core, store::MigrationState};

/// What can be done with the schema.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Apply what is missing
    Up,
    /// Undo the newest migrations, with the data that only they hold
    #[command(after_help = "\
What the audit log needs to be whole is not taken back: see docs/audit.md.

Example:
  countersign migrate down --steps 2 --yes")]
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

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<String> {
    let store = &core.store;
    match command {
        Command::Up => {
            let done = store.migrate_up().await?;
            Ok(changes(&done, "applied", "the schema is up to date\n"))
        }
        // clap has seen to it that `yes` was said.
        Command::Down(Down { steps, .. }) => {
            let mut done = Vec::new();
            for _ in 0..steps {
                done.extend(store.migrate_down().await?);
            }
            Ok(changes(
                &done,
                "taken back",
                "there is no migration to take back\n",
            ))
        }
        Command::Status => {
            let all = store.migrate_status().await?.into_iter();
            let rows: Vec<_> = all
                .map(|migration| {
                    let state = match migration.state {
                        MigrationState::Applied => "applied",
                        MigrationState::Pending => "pending",
                        MigrationState::Unknown => "unknown to this version",
                    };
                    (migration.name, state)
                })
                .collect();
            Ok(show(&rows))
        }
    }
}

fn changes(names: &[String], what: &str, none: &str) -> String {
    if names.is_empty() {
        return none.to_owned();
    }
    let lines: Vec<_> = names
        .iter()
        .map(|name| format!("{what} {name}\n"))
        .collect();
    lines.concat()
}
