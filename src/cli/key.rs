//! `key`: signing keys, shown and rotated. Nodes hear of it at once. Only public
//! facts are shown.

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use countersign_verifier::{Algorithm, KeyState};
use serde_json::{Value, json};

use super::{Format, table::table, user::seconds};
use crate::{
    domain::{Call, signing_key::SigningKey},
    service::{
        Core, keys,
        once::{Made, Repeatable},
    },
};

/// What can be done with signing keys.
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
                        state(key.state).to_owned(),
                        seconds(key.created_at).to_string(),
                        seconds(key.changed_at).to_string(),
                        until.unwrap_or_else(|| "-".to_owned()),
                    ]
                })
                .collect();
            let heading = ["kid", "alg", "state", "created", "since", "until"];
            table(heading, &rows)
        }
        Format::Json => {
            let object = |key: &SigningKey| {
                json!({
                    "kid": key.kid,
                    "alg": key.algorithm.name(),
                    "state": state(key.state),
                    "created_at": key.created_at.to_string(),
                    "changed_at": key.changed_at.to_string(),
                    "verify_until": key.verify_until.map(|until| until.to_string()),
                })
            };
            let keys: Value = keys.iter().map(object).collect();
            format!("{keys:#}\n")
        }
    }
}

fn state(state: KeyState) -> &'static str {
    match state {
        KeyState::Next => "next",
        KeyState::Active => "active",
        KeyState::Retired => "retired",
    }
}

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<String> {
    let call = Call::internal("cli");
    core.store.migrate_up().await?;
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
    }
}
