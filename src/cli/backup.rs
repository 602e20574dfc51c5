//! `backup`: a consistent copy of the SQLite database.

use std::path::PathBuf;

use clap::Args;

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
