//! `token`: why an access token or an API key is refused. It is read from standard
//! input: arguments are seen by other users and kept in the shell's history.

use std::{
    fmt::Write as _,
    io::{self, Read as _},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use countersign_proto::v1::{CallerKind, ExplainTokenResponse, TokenFinding};
use countersign_verifier::{MAX_TOKEN_BYTES, Policy, Verifier};
use serde_json::json;

use super::Format;
use crate::{
    config::Config,
    grpc::explain,
    service::{Core, Feed, trust::Follower},
};

/// What can be asked about tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Say which check a token fails, and what it would stand for
    #[command(after_help = "\
Reads the token from standard input. Exits with 3 if it is refused, and with 1 if it could not be judged.
Nodes are not asked: it is judged by what the database says now, and by this machine's clock. Of a token
whose signature is not good nothing is shown.

Examples:
  countersign token explain <token.txt
  countersign token explain --audience orders --format json <token.txt")]
    Explain(Explain),
}

/// Arguments of `token explain`.
#[derive(Debug, Clone, Default, Args)]
pub struct Explain {
    /// The audience that it must be meant for; without it any of the configured ones
    #[arg(long)]
    pub audience: Option<String>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Exit code for a token that is refused: 1 says that something failed, and 2 that
/// the command was misspelt.
pub const REFUSED: u8 = 3;

/// What was found.
#[derive(Debug)]
pub struct Explained {
    /// What to print.
    pub output: String,
    /// Whether the token is good.
    pub is_good: bool,
}

/// Does it.
pub async fn run(command: Command, core: Core, config: &Config) -> anyhow::Result<Explained> {
    let Command::Explain(Explain { audience, format }) = command;
    let mut bytes = Vec::new();
    // One that is longer is refused for that, however much more there is.
    let most = 2 * MAX_TOKEN_BYTES as u64;
    io::stdin().take(most).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let token = text.trim();
    anyhow::ensure!(!token.is_empty(), "there is no token on standard input");

    let policy = Policy {
        leeway: Duration::from_secs(u64::from(config.tokens.leeway_seconds)),
        ..Policy::default()
    };
    let verifier = Arc::new(Verifier::new(Arc::clone(&core.clock), policy));
    let feed = Arc::new(Feed::new(Arc::clone(&verifier)));
    let follower = Follower::new(Arc::new(core), feed, Duration::ZERO);
    follower.load().await?;
    let found = explain::response(&verifier.explain(token, audience.as_deref())?);
    Ok(Explained {
        is_good: found.finding() == TokenFinding::Good,
        output: match format {
            Format::Table => lines(&found),
            Format::Json => object(&found),
        },
    })
}

/// The name of the finding, as the API has it.
fn finding(found: &ExplainTokenResponse) -> &'static str {
    let name = found.finding().as_str_name();
    name.trim_start_matches("TOKEN_FINDING_")
}

fn facts(found: &ExplainTokenResponse) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(caller) = &found.caller {
        let kind = match caller.kind() {
            CallerKind::ApiKey => "API key",
            CallerKind::User | CallerKind::Workload | CallerKind::Unspecified => "access token",
        };
        facts.extend([
            ("kind", kind.to_owned()),
            ("subject", caller.subject.clone()),
            ("client", caller.client_id.clone()),
            ("session", caller.session_id.clone()),
            ("api key", caller.api_key_id.clone()),
            ("roles", caller.roles.join(" ")),
            ("scopes", caller.scopes.join(" ")),
            ("audience", caller.audience.join(" ")),
            ("issued at", time(caller.issued_at)),
            ("expires at", time(caller.expires_at)),
        ]);
    }
    if let Some(claims) = &found.claims {
        facts.extend([
            ("issuer", claims.issuer.clone()),
            ("not before", time(claims.not_before)),
            ("token id", claims.token_id.clone()),
            ("key id", claims.key_id.clone()),
            ("epoch", claims.epoch.to_string()),
        ]);
    }
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

fn time(at: Option<prost_types::Timestamp>) -> String {
    at.map(|at| at.to_string()).unwrap_or_default()
}

fn lines(found: &ExplainTokenResponse) -> String {
    let mut text = format!("{}: {}\n", finding(found), found.explanation);
    for (name, value) in facts(found) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {name:10}  {value}");
    }
    text
}

fn object(found: &ExplainTokenResponse) -> String {
    let facts = facts(found).into_iter();
    let facts: serde_json::Map<_, _> = facts
        .map(|(name, value)| (name.replace(' ', "_"), value.into()))
        .collect();
    let object = json!({
        "finding": finding(found),
        "explanation": found.explanation,
        "malformed_part": found.malformed_part,
        "off_by_seconds": found.off_by.map(|off_by| off_by.seconds),
        "claims": facts,
    });
    format!("{object:#}\n")
}
