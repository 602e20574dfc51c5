//! `key`: signing keys as they stand. Only public facts are shown.

use clap::{Args, Subcommand};
use countersign_verifier::KeyState;
use serde_json::{Value, json};

use super::{Format, table::table, user::seconds};
use crate::{
    domain::{Call, signing_key::SigningKey},
    service::Core,
    store::keys,
};

/// What can be done with signing keys.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List signing keys with their state
    List(List),
}

/// Arguments of `key list`.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Signing keys as they are printed.
pub fn show(keys: &[SigningKey], format: Format) -> String {
    match format {
        Format::Table => {
            let rows: Vec<_> = keys
                .iter()
                .map(|key| {
                    [
                        key.kid.clone(),
                        key.algorithm.name().to_owned(),
                        state(key.state).to_owned(),
                        seconds(key.created_at).to_string(),
                        seconds(key.changed_at).to_string(),
                    ]
                })
                .collect();
            table(["kid", "alg", "state", "created", "since"], &rows)
        }
        Format::Json => {
            let object = |key: &SigningKey| {
                json!({
                    "kid": key.kid,
                    "alg": key.algorithm.name(),
                    "state": state(key.state),
                    "created_at": key.created_at.to_string(),
                    "changed_at": key.changed_at.to_string(),
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
    let Command::List(List { format }) = command;
    let mut conn = core.store.read(&Call::internal("cli")).await?;
    Ok(show(&keys::signing_keys(&mut conn).await?, format))
}
