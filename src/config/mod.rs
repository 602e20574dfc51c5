//! The configuration: embedded defaults, under `countersign.toml`, under the
//! environment, under flags. Each room owns its own section; this room owns the
//! keys without a section, the layers, and the rules that concern several
//! sections or a profile. Every problem is found in one go, and every value
//! knows where it came from. Nothing here is written but by
//! [`data_dir::prepare`].

pub mod data_dir;
pub mod master_keys;
#[cfg(test)]
mod reference;
mod rules;
mod secret;
mod settings;
mod sources;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{breach_list, crypto, http, listen, middleware, service, sidecar, store, telemetry};

pub use secret::{REDACTED, Secret, redact_url};
pub use settings::{DEFAULTS, Origin, Setting, Settings};
pub use sources::{Sources, environment_name};

/// Everything that can be set. `defaults.toml` says what each key means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is taken for granted and what is refused.
    pub profile: Profile,
    /// Directory of the SQLite database and the generated master key.
    pub data_dir: PathBuf,
    /// The `iss` of every token. Never empty once loaded.
    pub issuer: String,
    /// The `aud` of access tokens.
    pub audiences: Vec<String>,
    /// Which of them this API is: tokens without it are for others only.
    pub own_audience: String,
    /// The `client_id` of access tokens.
    pub client_id: String,
    /// The ring of master keys as text.
    pub master_key: Option<Secret>,
    /// File with the ring.
    pub master_key_file: Option<PathBuf>,
    /// Command that prints the ring: a program and its arguments.
    pub master_key_command: Vec<String>,
    /// Whether anybody may register.
    pub self_registration: bool,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// The gRPC port.
    pub listen: listen::Config,
    /// gRPC-Web.
    pub grpc_web: middleware::web::Config,
    /// The side port.
    pub http: http::Config,
    /// The database.
    pub database: store::Config,
    /// Password hashing.
    pub hashing: crypto::lanes::Config,
    /// New passwords.
    pub passwords: service::password::Config,
    /// New passwords that are known from breaches.
    pub breached_passwords: breach_list::Config,
    /// Failed logins.
    pub login_throttle: service::throttle::Config,
    /// Failed logins under many names.
    pub credential_stuffing: service::stuffing::Config,
    /// Signing keys.
    pub keys: service::keys::Config,
    /// Access tokens.
    pub tokens: service::token::Config,
    /// Sessions.
    pub sessions: service::session::Config,
    /// API keys.
    pub api_keys: service::api_keys::Config,
    /// The audit log.
    pub audit: service::audit::Config,
    /// Limits on callers.
    pub limits: middleware::Config,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
    /// What a sidecar follows.
    pub sidecar: sidecar::Config,
}

/// What is taken for granted and what is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Starts with no set-up.
    #[default]
    Development,
    /// As development, and hashing may be cheap.
    Testing,
    /// Refuses whatever is unsafe.
    Production,
}

/// What a process is, as far as that decides what its settings must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It has a database and mints tokens.
    #[default]
    Node,
    /// It follows nodes and decides.
    Sidecar,
}

/// A configuration that may be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Each value and where it came from, for people.
    pub settings: Settings,
    /// What is allowed but deserves a line in the log.
    pub warnings: Vec<String>,
}

/// Why a configuration may not be used: all that is wrong with it.
#[derive(Debug, Clone)]
pub struct Problems {
    /// Each names the key and how to mend it.
    pub list: Vec<String>,
    /// Each value and where it came from, as far as it could be read.
    pub settings: Settings,
}

impl Config {
    /// Reads, merges and judges all settings.
    ///
    /// # Errors
    /// All problems at once.
    pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
        let mut problems = Vec::new();
        let mut settings = Settings::defaults().unwrap_or_else(|error| {
            problems.push(format!("the embedded defaults are malformed: {error}"));
            Settings::default()
        });

        let mut entries = sources.read_file(&mut problems);
        let environment = sources.read_environment(&settings, &mut problems);
        let flags = sources.read_flags();
        // The profile comes first: it decides whether `.env` is read at all.
        let mut judged = settings.clone();
        for entry in entries.iter().chain(&environment).chain(&flags) {
            if entry.key == "profile" {
                // Judged again, and reported, with all others below.
                judged.put(entry.clone()).ok();
            }
        }
        let profile = judged.text("profile").to_owned();
        if profile == "development" {
            entries.extend(sources.read_dot_env(&settings, &mut problems));
        }
        if profile == "production" {
            settings.default_in(Profile::Production, "reflection", false);
        }
        for entry in entries.into_iter().chain(environment).chain(flags) {
            problems.extend(settings.put(entry).err());
        }
        rules::resolve(&mut settings, &profile, sources.role, &mut problems);

        let config: Config = settings.extract(&mut problems);
        let mut warnings = Vec::new();
        rules::check(
            &config,
            &settings,
            sources.role,
            &mut problems,
            &mut warnings,
        );
        if problems.is_empty() {
            Ok(Loaded {
                config,
                settings,
                warnings,
            })
        } else {
            Err(Problems {
                list: problems,
                settings,
            })
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: Profile::Development,
            data_dir: "./data".into(),
            issuer: String::new(),
            audiences: vec!["countersign".to_owned()],
            own_audience: "countersign".to_owned(),
            client_id: "countersign".to_owned(),
            master_key: None,
            master_key_file: None,
            master_key_command: Vec::new(),
            self_registration: true,
            reflection: true,
            listen: listen::Config::default(),
            grpc_web: middleware::web::Config::default(),
            http: http::Config::default(),
            database: store::Config::default(),
            hashing: crypto::lanes::Config::default(),
            passwords: service::password::Config::default(),
            breached_passwords: breach_list::Config::default(),
            login_throttle: service::throttle::Config::default(),
            credential_stuffing: service::stuffing::Config::default(),
            keys: service::keys::Config::default(),
            tokens: service::token::Config::default(),
            sessions: service::session::Config::default(),
            api_keys: service::api_keys::Config::default(),
            audit: service::audit::Config::default(),
            limits: middleware::Config::default(),
            telemetry: telemetry::Config::default(),
            sidecar: sidecar::Config::default(),
        }
    }
}

impl Profile {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Testing => "testing",
            Self::Production => "production",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {count} {noun}:")?;
        for (number, problem) in (1..).zip(&self.list) {
            write!(f, "\n  {number}. {problem}")?;
        }
        Ok(())
    }
}

impl Error for Problems {}
