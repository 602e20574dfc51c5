//! `key`: signing keys, shown and rotated, and the master key that all keys are
//! sealed under, changed. Nodes hear of it at once. Only public facts are shown.

use std::fmt::Write as _;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use countersign_verifier::Algorithm;
use serde_json::{Value, json};

use super::{Format, secret_key, table::table, user::seconds};
use crate::{
    crypto::seal,
    domain::{Call, signing_key::SigningKey},
    service::{
        Core, keyring, keys,
        once::{Made, Repeatable},
        rewrap::{self, Outcome, Standing},
    },
};

/// What can be done with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List signing keys with their state
    List(List),
    /// Make the next key and publish it; it signs nothing yet
    Stage(Stage),
    /// Have the next key sign; waits up to 10 seconds until all nodes and validators know it
    #[command(after_help = "\
The key before it verifies until its last token has expired. If it has leaked:
  countersign key stage
  countersign key activate KID --force --retire-previous")]
    Activate(Activate),
    /// Take a next or retired key away: its tokens are refused from then on
    Retire(Retire),
    /// Seal all keys under the first master key of the ring, while nodes serve
    #[command(after_help = "\
To change the master key:
  1. put the new one in front of the ring of every node, and restart them one by one
  2. countersign key rewrap
  3. take the old one out of the ring of every node, and restart them one by one")]
    Rewrap(Rewrap),
    /// List, rotate and take away symmetric keys
    #[command(subcommand)]
    Secret(secret_key::Command),
}

/// Arguments of `key rewrap`.
#[derive(Debug, Clone, Default, Args)]
pub struct Rewrap {
    /// Change nothing; print which master keys are in use, and how many nodes have them
    #[arg(long)]
    pub check: bool,
}

/// Arguments of `key list`.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `key stage`.
#[derive(Debug, Clone, Default, Args)]
pub struct Stage {
    /// What it signs with [default: the setting tokens.algorithm]
    #[arg(long, value_enum)]
    pub algorithm: Option<Choice>,
}

/// An algorithm by its name on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Ed25519.
    #[value(name = "EdDSA")]
    EdDsa,
    /// P-256.
    #[value(name = "ES256")]
    Es256,
}

/// Arguments of `key activate`.
#[derive(Debug, Clone, Args)]
pub struct Activate {
    /// Id of the next key
    pub kid: String,
    /// Also if it has not been published for long enough, or not everybody knows it
    #[arg(long)]
    pub force: bool,
    /// Take the key before it away at once: its tokens are refused from then on
    #[arg(long)]
    pub retire_previous: bool,
}

/// Arguments of `key retire`.
#[derive(Debug, Clone, Args)]
pub struct Retire {
    /// Id of a next or retired key
    pub kid: String,
}

impl From<Choice> for Algorithm {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::EdDsa => Self::Ed25519,
            Choice::Es256 => Self::Es256,
        }
    }
}

/// Signing keys as they are printed.
pub fn show(keys: &[SigningKey], format: Format) -> String {
    match format {
        Format::Table => {
            let rows: Vec<_> = keys
                .iter()
                .map(|key| {
                    let until = key.verify_until.map(|until| seconds(until).to_string());
                    [
                        key.kid.clone(),
                        key.algorithm.name().to_owned(),
                        key.state.name().to_owned(),
                        seconds(key.created_at).to_string(),
                        seconds(key.changed_at).to_string(),
                        until.unwrap_or_else(|| "-".to_owned()),
                        master_key(key).unwrap_or_else(|| "-".to_owned()),
                    ]
                })
                .collect();
            let heading = [
                "kid",
                "alg",
                "state",
                "created",
                "since",
                "until",
                "master key",
            ];
            table(heading, &rows)
        }
        Format::Json => {
            let object = |key: &SigningKey| {
                json!({
                    "kid": key.kid,
                    "alg": key.algorithm.name(),
                    "state": key.state.name(),
                    "created_at": key.created_at.to_string(),
                    "changed_at": key.changed_at.to_string(),
                    "verify_until": key.verify_until.map(|until| until.to_string()),
                    "master_key": master_key(key),
                })
            };
            let keys: Value = keys.iter().map(object).collect();
            format!("{keys:#}\n")
        }
    }
}

/// The master key that it says it is sealed under; those of earlier versions do
/// not say.
fn master_key(key: &SigningKey) -> Option<String> {
    seal::sealed_under(&key.sealed).map(|id| id.to_string())
}

/// What `key rewrap --check` prints.
pub fn show_standing(standing: &Standing) -> String {
    let nodes = standing.nodes.len();
    let rows: Vec<_> = standing
        .master_keys()
        .into_iter()
        .map(|id| {
            let here = match standing.ring.iter().position(|known| *known == id) {
                Some(0) => "first",
                Some(_) => "yes",
                None => "no",
            };
            let keys = standing.in_use.get(&id).copied().unwrap_or_default();
            let with = nodes - standing.lacking(id).count();
            [
                id.to_string(),
                here.to_owned(),
                keys.to_string(),
                format!("{with} of {nodes}"),
            ]
        })
        .collect();
    table(
        [
            "master key",
            "in this ring",
            "keys under it",
            "nodes with it",
        ],
        &rows,
    )
}

/// Why nothing was rewrapped.
fn lacking(standing: &Standing) -> String {
    let mut text = format!(
        "not every node has the master key {} yet, so nothing was changed; put it in the ring of \
         these and restart them:",
        standing.to
    );
    for node in standing.lacking(standing.to) {
        // Writing to a string does not fail.
        write!(
            text,
            "\n  {} (started {})",
            node.id,
            seconds(node.started_at)
        )
        .ok();
    }
    text
}

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<String> {
    let call = Call::internal("cli");
    core.store.migrate_up().await?;
    if !matches!(
        command,
        Command::List(_) | Command::Rewrap(Rewrap { check: true })
    ) {
        keyring::create_missing(core, &call).await?;
    }
    match command {
        Command::List(List { format }) => Ok(show(&keys::list(core, &call).await?, format)),
        Command::Stage(Stage { algorithm }) => {
            let algorithm = algorithm.map(Algorithm::from);
            let made = keys::stage(core, &call, algorithm, Repeatable::once()).await?;
            let Made::Now(key) = made else {
                bail!("the key was made before")
            };
            Ok(format!("staged {}\n", key.kid))
        }
        Command::Activate(Activate {
            kid,
            force,
            retire_previous,
        }) => {
            let wish = keys::Activation {
                kid,
                force,
                retire_previous,
            };
            let key = keys::activate(core, &call, &wish).await?;
            Ok(format!("{} signs from now on\n", key.kid))
        }
        Command::Retire(Retire { kid }) => {
            keys::retire(core, &call, &kid).await?;
            Ok(format!("{kid} is gone; its tokens are refused\n"))
        }
        Command::Secret(command) => secret_key::run(command, core, &call).await,
        Command::Rewrap(Rewrap { check: true }) => {
            Ok(show_standing(&rewrap::standing(core, &call).await?))
        }
        Command::Rewrap(Rewrap { check: false }) => match rewrap::rewrap(core, &call).await? {
            Outcome::Lacking(standing) => bail!(lacking(&standing)),
            Outcome::Rewrapped { to, keys: 0 } => Ok(format!(
                "all keys are sealed under the master key {to} already\n"
            )),
            Outcome::Rewrapped { to, keys } => {
                Ok(format!("sealed {keys} keys under the master key {to}\n"))
            }
        },
    }
}
