//! `api-key`: API keys, made and ended without a token. That is how the first
//! program gets its credential. The secret goes to standard output, alone, so
//! that it can go on into a file or another command.

use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::{Value, json};

use super::{
    Format, remark,
    table::table,
    user::{Account, seconds},
};
use crate::{
    domain::{
        ApiKey, ApiKeyId, ApiKeyName, Call, Invalid, PageSize, PermissionName, api_key::Overlap,
    },
    service::{
        Core, api_keys, keyring,
        once::{Made, Repeatable},
    },
    store,
};

/// What can be done with API keys.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Create an API key and print its secret, which cannot be seen again
    #[command(after_help = "\
Examples:
  countersign api-key create ana@example.com --name importer --scope orders.read
  (umask 077 && countersign api-key create ana@example.com --name ci --expires-in 90d >ci.key)")]
    Create(Create),
    /// List the API keys of an account
    List(List),
    /// Give an API key another secret and print it; the one before stays good for a while
    #[command(after_help = "\
Examples:
  countersign api-key rotate 01997e5c-…            the secret before is good for 24 hours more
  countersign api-key rotate 01997e5c-… --overlap 0s   it has leaked: end it at once")]
    Rotate(Rotate),
    /// End an API key
    Revoke(Revoke),
}

/// Arguments of `api-key create`.
#[derive(Debug, Clone, Args)]
pub struct Create {
    /// Account that it acts for: e-mail address, username or id
    pub account: Account,
    /// Name for people; the services that it calls see it in client_id
    #[arg(long)]
    pub name: ApiKeyName,
    /// Permission that the account holds; may be repeated
    #[arg(long = "scope", value_name = "PERMISSION")]
    pub scopes: Vec<PermissionName>,
    /// Whom it is meant for; may be repeated; without it all that are configured
    #[arg(long = "audience", value_name = "AUDIENCE")]
    pub audiences: Vec<String>,
    /// End it after so long, such as 90d or 12h; without it when it is revoked
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub expires_in: Option<SignedDuration>,
}

/// Arguments of `api-key list`.
#[derive(Debug, Clone, Args)]
pub struct List {
    /// E-mail address, username or id
    pub account: Account,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `api-key rotate`.
#[derive(Debug, Clone, Args)]
pub struct Rotate {
    /// Id of the key
    pub id: ApiKeyId,
    /// How long the secrets before stay good: 0s to 30d; without it 24 hours
    #[arg(long, value_parser = overlap, value_name = "DURATION")]
    pub overlap: Option<Overlap>,
}

/// Arguments of `api-key revoke`.
#[derive(Debug, Clone, Args)]
pub struct Revoke {
    /// Id of the key
    pub id: ApiKeyId,
}

fn duration(text: &str) -> Result<SignedDuration, Invalid> {
    let invalid = |_| Invalid::new("must be a duration such as 90d, 12h or 30m");
    let span: Span = text.parse().map_err(invalid)?;
    span.to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(invalid)
}

fn overlap(text: &str) -> Result<Overlap, Invalid> {
    duration(text).and_then(Overlap::new)
}

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<String> {
    let call = Call::internal("cli");
    if !matches!(command, Command::List(_)) {
        keyring::create_missing(core, &call).await?;
    }
    match command {
        Command::Create(create) => create.run(core, &call).await,
        Command::List(List { account, format }) => {
            let owner = account.find(core, &call).await?;
            let size = PageSize::new(i32::from(PageSize::MOST))?;
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let mut conn = core.store.read(&call).await?;
                let now = core.now();
                let page = store::api_keys::list(&mut conn, owner, now, after, size).await?;
                found.extend(page.items);
                after = page.next;
                if after.is_none() {
                    return Ok(show(&found, format));
                }
            }
        }
        Command::Rotate(Rotate { id, overlap }) => {
            let overlap = overlap.unwrap_or_default();
            let (key, secret) = api_keys::rotate(core, &call, id, overlap).await?;
            remark(&match key.overlap_until {
                Some(until) => format!(
                    "rotated {id}; the secrets before are good until {} at the latest\n",
                    seconds(until)
                ),
                None => format!("rotated {id}; the secrets before are good no more\n"),
            });
            Ok(format!("{}\n", secret.expose()))
        }
        Command::Revoke(Revoke { id }) => {
            api_keys::revoke(core, &call, id).await?;
            Ok(format!("revoked {id}\n"))
        }
    }
}

impl Create {
    async fn run(self, core: &Core, call: &Call) -> anyhow::Result<String> {
        let wish = api_keys::NewApiKey {
            owner: Some(self.account.find(core, call).await?),
            name: self.name,
            scopes: self.scopes,
            audiences: self.audiences,
            expires_at: match self.expires_in {
                Some(life) => Some(core.now().checked_add(life)?),
                None => None,
            },
        };
        let made = api_keys::create(core, call, wish, Repeatable::once()).await?;
        let Made::Now((key, secret)) = made else {
            bail!("the key was made before")
        };
        remark(&format!(
            "created {}; its secret is shown only now\n",
            key.id
        ));
        Ok(format!("{}\n", secret.expose()))
    }
}

/// API keys as they are printed.
pub fn show(keys: &[ApiKey], format: Format) -> String {
    match format {
        Format::Table => {
            let heading = [
                "id",
                "name",
                "scopes",
                "audiences",
                "created",
                "rotated",
                "expires",
            ];
            let rows: Vec<_> = keys.iter().map(row).collect();
            table(heading, &rows)
        }
        Format::Json => {
            let keys: Value = keys.iter().map(object).collect();
            format!("{keys:#}\n")
        }
    }
}

fn row(key: &ApiKey) -> [String; 7] {
    let or_dash = |texts: Vec<&str>| match texts.join(",") {
        none if none.is_empty() => "-".to_owned(),
        some => some,
    };
    let time = |at: Option<Timestamp>| at.map_or("-".to_owned(), |at| seconds(at).to_string());
    [
        key.id.to_string(),
        key.name.as_str().to_owned(),
        or_dash(key.scopes.iter().map(PermissionName::as_str).collect()),
        or_dash(key.audiences.iter().map(String::as_str).collect()),
        time(Some(key.created_at)),
        time(key.rotated_at),
        time(key.expires_at),
    ]
}

fn object(key: &ApiKey) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let scopes: Vec<_> = key.scopes.iter().map(PermissionName::as_str).collect();
    json!({
        "id": key.id.to_string(),
        "owner": key.owner.to_string(),
        "name": key.name.as_str(),
        "scopes": scopes,
        "audiences": key.audiences,
        "created_at": key.created_at.to_string(),
        "expires_at": time(key.expires_at),
        "rotated_at": time(key.rotated_at),
        "overlap_until": time(key.overlap_until),
    })
}
