//! `audit`: whether the audit log is whole. The result goes to standard output
//! and the exit code; how far a long check has come, to standard error.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Format, remark};
use crate::{
    crypto::AuditKeys,
    domain::{Call, audit::Checkpoint},
    service::{
        Core,
        audit::{report::Report, verify},
    },
    store::MigrationState,
};

/// How often a long check says how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What can be done with the audit log.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Check every record, and name the first that was altered, removed or moved
    #[command(after_help = "\
Exits with 1 if anything is wrong. Nodes log an anchor (\"the audit log is chained\") once a minute at
most; kept elsewhere, it shows whether the end of the log was cut off or an older copy was restored.
docs/audit.md says what else can be found and what cannot.

Examples:
  countersign audit verify
  countersign audit verify --anchor csa_… --format json
  countersign audit verify --after-batch 17             # what is behind a record that is wrong in 17")]
    Verify(Verify),
}

/// Arguments of `audit verify`.
#[derive(Debug, Clone, Default, Args)]
pub struct Verify {
    /// The anchor of an earlier time: the log must go on from it
    #[arg(long)]
    pub anchor: Option<Checkpoint>,
    /// Begin behind this checkpoint, which is believed for its signature
    #[arg(long, default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(i64).range(0..))]
    pub after_batch: i64,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// What to print.
    pub output: String,
    /// Whether nothing is wrong.
    pub is_whole: bool,
}

/// Does it.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<Checked> {
    let Command::Verify(Verify {
        anchor,
        after_batch,
        format,
    }) = command;
    let call = Call::internal("cli");
    // Whoever checks changes nothing.
    let migrations = core.store.migrate_status().await?;
    if migrations
        .iter()
        .any(|migration| migration.state == MigrationState::Pending)
    {
        anyhow::bail!(
            "the database is of an older version; migrate it first: countersign migrate up"
        );
    }
    let keys = core.keyring.audit_keys(&core.store, &call).await?;
    let mut said = Instant::now();
    let progress = move |records| {
        if said.elapsed() >= SAY_EVERY {
            remark(&format!("{records} records are in order so far\n"));
            said = Instant::now();
        }
    };
    let report = verify::verify(core, &call, &keys, anchor.as_ref(), after_batch, progress).await?;
    Ok(Checked {
        output: match format {
            Format::Table => text(&report, after_batch),
            Format::Json => object(&report, after_batch, &keys),
        },
        is_whole: report.fault.is_none(),
    })
}

/// A report for people.
pub fn text(report: &Report, after_batch: i64) -> String {
    let Report {
        records,
        batches,
        unchained,
        unsealed,
        last_unsealed,
        expired,
        newest,
        fault,
        ..
    } = report;
    let mut lines = vec![match fault {
        Some(fault) => format!("NOT WHOLE: {fault}"),
        None if after_batch > 0 => {
            format!("nothing is wrong behind batch {after_batch}; what is before was not looked at")
        }
        None => "the audit log is whole".to_owned(),
    }];
    lines.push(format!(
        "{records} records in {batches} batches are in order"
    ));
    if let Some(expired) = expired {
        lines.push(format!(
            "records up to position {}, the end of batch {}, went by age by {}: their checkpoints \
             are left",
            expired.position, expired.batch, expired.created_at
        ));
    }
    if *unchained > 0 {
        lines.push(format!("{unchained} more wait to be chained"));
    }
    if *unsealed > 0 {
        let last = last_unsealed.map(|last| format!(", the last of {last} by its id"));
        lines.push(format!(
            "{unsealed} have no MAC{}: an older version wrote them, or somebody else",
            last.unwrap_or_default()
        ));
    }
    if let Some(newest) = newest {
        lines.push(format!("anchor of {}: {newest}", newest.created_at));
    }
    lines.join("\n") + "\n"
}

/// A report for programs.
fn object(report: &Report, after_batch: i64, keys: &AuditKeys) -> String {
    let fault = report.fault.as_ref().map(|fault| {
        json!({
            "what": fault.what.name(),
            "batch": fault.batch,
            "position": fault.position,
            "id": fault.id.map(|id| id.to_string()),
            "text": fault.to_string(),
        })
    });
    let newest = report.newest.as_ref();
    let public_key = newest.and_then(|newest| keys.public_key(newest.key_id));
    let object = json!({
        "whole": report.fault.is_none() && after_batch == 0,
        "fault": fault,
        "after_batch": after_batch,
        "records": report.records,
        "batches": report.batches,
        "expired_records": report.expired.as_ref().map_or(0, |expired| expired.position),
        "expired_batches": report.expired.as_ref().map_or(0, |expired| expired.batch),
        "unchained": report.unchained,
        "unsealed": report.unsealed,
        "last_unsealed": report.last_unsealed.map(|at| at.to_string()),
        "anchor": newest.map(Checkpoint::anchor),
        "anchor_at": newest.map(|newest| newest.created_at.to_string()),
        "public_key": public_key.map(|key| URL_SAFE_NO_PAD.encode(key)),
    });
    format!("{object:#}\n")
}
