//! The command line: what can be asked for, and the one function that does it.
//! Arguments, prompts and output of a command are in its own file; what it does
//! is done by the rooms. Results go to standard output, everything else to
//! standard error.

pub mod api_key;
pub mod audit;
pub mod backup;
pub mod banner;
pub mod calibrate;
pub mod check_config;
pub mod completions;
pub mod key;
pub mod migrate;
pub mod secret_key;
pub mod table;
#[cfg(test)]
mod tests;
pub mod token;
pub mod user;

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::runtime::Handle;

use crate::{
    app::{self, Seams},
    config::{Config, Profile, Role, Sources, data_dir},
    service::{Core, Trust},
    sidecar,
};

/// Version and commit.
pub const VERSION: &str = match option_env!("COUNTERSIGN_VERSION") {
    Some(version) => version,
    None => concat!(env!("CARGO_PKG_VERSION"), " (unknown commit)"),
};

/// The authentication service that internal microservices call over gRPC.
#[derive(Debug, Parser)]
#[command(
    name = "countersign",
    version = VERSION,
    arg_required_else_help = true,
    after_help = "\
Examples:
  countersign serve                          SQLite in ./data, nothing to set up
  countersign user create --email ana@example.com --role admin
  countersign --profile production check-config

Flags win over the environment, that over countersign.toml, that over the
defaults; docs/configuration.md lists all settings."
)]
pub struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Settings that every command takes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct Global {
    /// Configuration file; must exist [env: COUNTERSIGN_CONFIG] [default: countersign.toml if there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Profile [env: COUNTERSIGN_PROFILE] [default: development]
    #[arg(long, global = true, value_enum, hide_possible_values = false)]
    pub profile: Option<Profile>,
    /// Directory of the database and the master key [env: COUNTERSIGN_DATA_DIR] [default: ./data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// sqlite://PATH or postgres://… [env: COUNTERSIGN_DATABASE_URL]; a password is better kept in
    /// the environment or in a file, as other users see arguments
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Least severe log lines: error, warn, info, debug, trace [env: COUNTERSIGN_LOG] [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve gRPC and the side port until SIGTERM or Ctrl-C
    Serve(Serve),
    /// Follow nodes and decide beside a workload: TokenService, Envoy's ext_authz, health
    Sidecar(Sidecar),
    /// Change the database schema, or show where it stands
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Print the effective settings and what is wrong with them
    ///
    /// Each line says where the value came from. Secrets are not shown. Exits with 1 if `serve`
    /// would refuse to start.
    CheckConfig(check_config::Arguments),
    /// Create, list and change accounts
    #[command(subcommand)]
    User(user::Command),
    /// Create, list, rotate and revoke API keys
    #[command(subcommand)]
    ApiKey(api_key::Command),
    /// Show and rotate keys, and change the master key
    #[command(subcommand)]
    Key(key::Command),
    /// Say why a token is refused
    #[command(subcommand)]
    Token(token::Command),
    /// Check that the audit log is whole
    #[command(subcommand)]
    Audit(audit::Command),
    /// Copy the SQLite database, also while it is being served
    Backup(backup::Arguments),
    /// Measure what hashing passwords costs here, and propose settings
    Calibrate(calibrate::Arguments),
    /// Print a shell's completions for this command line
    Completions(completions::Arguments),
}

/// Arguments of `serve`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  countersign serve
  countersign serve --listen unix:/run/countersign.sock
  COUNTERSIGN_DATABASE_URL=postgres://… countersign --profile production serve")]
pub struct Serve {
    /// gRPC: address:port, or unix:/path [env: COUNTERSIGN_LISTEN] [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// HTTP side port: JWKS, health, metrics [env: COUNTERSIGN_HTTP_LISTEN] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<String>,
}

/// Arguments of `sidecar`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
It needs no database: it follows the trust feed of the nodes, and goes on by what it knows when none
can be reached. The issuer must be that of the nodes.

Examples:
  countersign sidecar --node http://127.0.0.1:50051 --credential-file sidecar.key
  countersign sidecar --listen unix:/run/countersign.sock   (nodes from countersign.toml)")]
pub struct Sidecar {
    /// gRPC: address:port, or unix:/path [env: COUNTERSIGN_LISTEN] [default: 127.0.0.1:50052]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// HTTP side port: JWKS, health, metrics [env: COUNTERSIGN_HTTP_LISTEN] [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<String>,
    /// A node to follow; may be given again [env: COUNTERSIGN_SIDECAR__NODES]
    #[arg(long = "node", value_name = "URL")]
    pub nodes: Vec<String>,
    /// File with an API key that has the permission countersign.trust.watch
    /// [env: COUNTERSIGN_SIDECAR__CREDENTIAL_FILE]
    #[arg(long, value_name = "FILE")]
    pub credential_file: Option<PathBuf>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Does what was asked for. `work` is the runtime for everything that touches
/// the database, or would hold up the serving threads.
pub async fn run(cli: Cli, work: Handle) -> anyhow::Result<ExitCode> {
    let sources = cli.sources();
    if let Command::CheckConfig(arguments) = &cli.command {
        let report = check_config::report(&sources, arguments.format);
        remark(&report.remarks);
        print(&report.settings)?;
        return Ok(if report.is_good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    if let Command::Completions(arguments) = &cli.command {
        print(&completions::script(arguments)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = Config::load(&sources)?;
    let config = loaded.config.clone();
    let output = match cli.command {
        Command::CheckConfig(_) | Command::Completions(_) => return Ok(ExitCode::SUCCESS),
        Command::Serve(_) | Command::Sidecar(_) => {
            let is_sidecar = sources.role == Role::Sidecar;
            let level = move || match Config::load(&sources) {
                Ok(loaded) => Some(loaded.config.telemetry.level),
                Err(problems) => {
                    tracing::error!(%problems, "the configuration is not read again");
                    None
                }
            };
            return if is_sidecar {
                sidecar::serve(loaded, level, work).await
            } else {
                app::serve(loaded, level, work).await
            };
        }
        Command::Migrate(command) => {
            on(work, async move {
                migrate::run(command, &open(&config).await?).await
            })
            .await?
        }
        Command::User(command) => {
            on(work, async move {
                user::run(command, &open(&config).await?).await
            })
            .await?
        }
        Command::ApiKey(command) => {
            on(work, async move {
                api_key::run(command, &open(&config).await?).await
            })
            .await?
        }
        Command::Key(command) => {
            on(work, async move {
                key::run(command, &open(&config).await?).await
            })
            .await?
        }
        Command::Token(command) => {
            let explained = on(work, async move {
                token::run(command, open(&config).await?, &config).await
            })
            .await?;
            print(&explained.output)?;
            return Ok(if explained.is_good {
                ExitCode::SUCCESS
            } else {
                token::REFUSED.into()
            });
        }
        Command::Audit(command) => {
            let checked = on(work, async move {
                audit::run(command, &open(&config).await?).await
            })
            .await?;
            print(&checked.output)?;
            return Ok(if checked.is_whole {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Calibrate(arguments) => calibrate::run(&arguments, &config.hashing)?,
        Command::Backup(arguments) => {
            let done = async move { backup::run(arguments, &open(&config).await?).await };
            on(work, done).await?
        }
    };
    print(&output)?;
    Ok(ExitCode::SUCCESS)
}

/// The rules over the store, without servers. Nodes hear of what is changed
/// here through the trust log.
async fn open(config: &Config) -> anyhow::Result<Core> {
    let seams = Seams::default();
    let prepared = data_dir::prepare(config, &*seams.entropy)?;
    // One hash at a time is all that a command needs.
    let mut config = config.clone();
    config.hashing.lanes = 1;
    app::core(&config, &prepared.master_keys, &seams, Trust::unattended()).await
}

/// Runs a command on the work runtime.
async fn on<T: Send + 'static>(
    work: Handle,
    command: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    work.spawn(command).await?
}

impl Cli {
    /// Where settings come from: the process, under these flags.
    pub fn sources(&self) -> Sources {
        let mut sources = Sources::of_process();
        sources.file.clone_from(&self.global.config);
        sources.flags = self.flags();
        if matches!(self.command, Command::Sidecar(_)) {
            sources.role = Role::Sidecar;
        }
        sources
    }

    fn flags(&self) -> Vec<(&'static str, &'static str, String)> {
        let global = &self.global;
        let path = |path: &PathBuf| path.display().to_string();
        let serve = match &self.command {
            Command::Serve(serve) => (serve.listen.clone(), serve.http_listen.clone()),
            Command::Sidecar(sidecar) => (sidecar.listen.clone(), sidecar.http_listen.clone()),
            _ => (None, None),
        };
        let (nodes, credential_file) = match &self.command {
            Command::Sidecar(sidecar) => (
                (!sidecar.nodes.is_empty()).then(|| sidecar.nodes.join(",")),
                sidecar.credential_file.as_ref().map(path),
            ),
            _ => (None, None),
        };
        [
            ("profile", "profile", global.profile.map(|p| p.to_string())),
            ("data-dir", "data_dir", global.data_dir.as_ref().map(path)),
            ("database-url", "database.url", global.database_url.clone()),
            ("log-level", "telemetry.level", global.log_level.clone()),
            ("listen", "listen.address", serve.0),
            ("http-listen", "http.address", serve.1),
            ("node", "sidecar.nodes", nodes),
            (
                "credential-file",
                "sidecar.credential_file",
                credential_file,
            ),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value?)))
        .collect()
    }
}

/// Writes a result to standard output. A reader that has gone, such as `head`,
/// is no error.
pub fn print(text: &str) -> io::Result<()> {
    quiet_if_gone(io::stdout().lock().write_all(text.as_bytes()))
}

/// Writes a remark to standard error.
pub fn remark(text: &str) {
    // There is nowhere else to say that it failed.
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

fn quiet_if_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
