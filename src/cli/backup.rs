//! `backup`: a consistent copy of the SQLite database.

use std::path::PathBuf;

use clap::Args;

use crate::service::Core;

/// Arguments of `backup`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The copy is useless without the master key, which is not part of it: keep that elsewhere.
PostgreSQL has pg_dump for this.

Example:
  countersign backup /var/backups/countersign-$(date +%F).db")]
pub struct Arguments {
    /// File to make; must not exist yet
    pub path: PathBuf,
}

/// Does it, and returns what to print.
pub async fn run(arguments: Arguments, core: &Core) -> anyhow::Result<String> {
    core.store.backup(&arguments.path).await?;
    Ok(format!("wrote {}\n", arguments.path.display()))
}
