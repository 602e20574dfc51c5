//! `key secret`: the symmetric keys, shown, rotated and taken away. Only public
//! facts are shown.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Format, table::table, user::seconds};
use crate::{
    crypto::seal,
    domain::{
        Call,
        signing_key::{Purpose, SecretKey},
    },
    service::{Core, secret_keys},
};

/// What can be done with symmetric keys.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List symmetric keys
    List(List),
    /// Make a new key; it takes over from the one before it a minute later
    Rotate(Rotate),
    /// Take a key away that has leaked, and put a new one in its place at once
    #[command(after_help = "\
Of a refresh key the sessions end whose refresh token is under it, and people log in again. Of a
request key page tokens end, and devices are strangers until their next login. If it is cut short,
do it again: it goes on where it was. A key that records of the audit log or password hashes are under
is not taken away; `user reseal` moves the hashes to the newest.")]
    Retire(Retire),
}

/// Arguments of `key secret list`.
#[derive(Debug, Clone, Default, Args)]
pub struct List {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `key secret rotate`.
#[derive(Debug, Clone, Args)]
pub struct Rotate {
    /// What the key is for
    #[arg(value_enum)]
    pub purpose: Rotated,
}

/// The purposes whose keys are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rotated {
    /// Refresh tokens
    Refresh,
    /// Page tokens, device tokens, and repeated requests
    Request,
    /// The audit log
    Audit,
    /// Password hashes, where they are sealed
    Password,
}

/// Arguments of `key secret retire`.
#[derive(Debug, Clone, Args)]
pub struct Retire {
    /// Id of the key
    pub id: i32,
}

impl From<Rotated> for Purpose {
    fn from(rotated: Rotated) -> Self {
        match rotated {
            Rotated::Refresh => Self::Refresh,
            Rotated::Request => Self::Request,
            Rotated::Audit => Self::Audit,
            Rotated::Password => Self::Password,
        }
    }
}

/// Symmetric keys as they are printed.
pub fn show(keys: &[SecretKey], format: Format) -> String {
    let master_key = |key: &SecretKey| seal::sealed_under(&key.sealed).map(|id| id.to_string());
    match format {
        Format::Table => {
            let rows: Vec<_> = keys
                .iter()
                .map(|key| {
                    [
                        key.id.to_string(),
                        key.purpose.as_str().to_owned(),
                        seconds(key.created_at).to_string(),
                        master_key(key).unwrap_or_else(|| "-".to_owned()),
                    ]
                })
                .collect();
            table(["id", "purpose", "created", "master key"], &rows)
        }
        Format::Json => {
            let object = |key: &SecretKey| {
                json!({
                    "id": key.id,
                    "purpose": key.purpose.as_str(),
                    "created_at": key.created_at.to_string(),
                    "master_key": master_key(key),
                })
            };
            let keys: Value = keys.iter().map(object).collect();
            format!("{keys:#}\n")
        }
    }
}

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core, call: &Call) -> anyhow::Result<String> {
    match command {
        Command::List(List { format }) => Ok(show(&secret_keys::list(core, call).await?, format)),
        Command::Rotate(Rotate { purpose }) => {
            let key = secret_keys::rotate(core, call, purpose.into()).await?;
            let (purpose, id) = (key.purpose.as_str(), key.id);
            let wait = SecretKey::AHEAD.as_secs();
            Ok(format!(
                "the {purpose} key {id} takes over in {wait} seconds\n"
            ))
        }
        Command::Retire(Retire { id }) => {
            let retired = secret_keys::retire(core, call, id).await?;
            let mut text = format!(
                "the key {id} is gone; {} sessions are ended\n",
                retired.sessions
            );
            if retired.unaware > 0 {
                // Writing to a string does not fail.
                writeln!(
                    text,
                    "{} nodes have not heard of it within 10 seconds: look at them, and do it again",
                    retired.unaware
                )
                .ok();
            }
            Ok(text)
        }
    }
}
