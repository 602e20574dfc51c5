//! Where settings come from: a file, `.env`, the environment, flags. Reading
//! them says nothing yet about whether they make sense together.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use toml::Table;

use super::{
    Role,
    settings::{Entry, Origin, Raw, Settings, flatten, nearest},
};

/// What all names in the environment start with.
const PREFIX: &str = "COUNTERSIGN_";

/// Names the configuration file; no key of its own.
const CONFIG: &str = "COUNTERSIGN_CONFIG";

/// The short names of some keys.
const SHORT: &[(&str, &str)] = &[
    ("COUNTERSIGN_LISTEN", "listen.address"),
    ("COUNTERSIGN_HTTP_LISTEN", "http.address"),
    ("COUNTERSIGN_DATABASE_URL", "database.url"),
    ("COUNTERSIGN_DATABASE_URL_FILE", "database.url_file"),
    (
        "COUNTERSIGN_PLAINTEXT_BEHIND_MESH",
        "listen.plaintext_behind_mesh",
    ),
    ("COUNTERSIGN_LOG", "telemetry.level"),
];

/// Names that are for tests and builds.
const IGNORED: &[&str] = &[
    "COUNTERSIGN_BIN",
    "COUNTERSIGN_TEST_",
    "COUNTERSIGN_VERSION",
];

/// All that settings are read from. The process's own environment is handed in,
/// so that a test needs none.
#[derive(Clone, Default)]
pub struct Sources {
    /// Where `countersign.toml` and `.env` are looked for.
    pub directory: PathBuf,
    /// Environment variables; those of others are passed over.
    pub environment: Vec<(String, String)>,
    /// The flag `--config`.
    pub file: Option<PathBuf>,
    /// Other flags: the name without dashes, the key, the value.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// What the process is to be.
    pub role: Role,
}

/// The name of a key in the environment: the short one if it has one.
pub fn environment_name(key: &str) -> String {
    match SHORT.iter().find(|(_, short_for)| *short_for == key) {
        Some((name, _)) => (*name).to_owned(),
        None => long_name(key),
    }
}

fn long_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// What the process was started with, without flags.
    pub fn of_process() -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            directory: PathBuf::new(),
            environment: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            file: None,
            flags: Vec::new(),
            role: Role::Node,
        }
    }

    /// The configuration file. One that was named must be there.
    pub(super) fn read_file(&self, problems: &mut Vec<String>) -> Vec<Entry> {
        let named = self.file.clone().or_else(|| {
            let variable = self.environment.iter().find(|(name, _)| name == CONFIG);
            let path = variable.map(|(_, path)| path).filter(|p| !p.is_empty())?;
            Some(PathBuf::from(path))
        });
        let shown = named.clone().unwrap_or("countersign.toml".into());
        let text = match std::fs::read_to_string(self.directory.join(&shown)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => return vec![],
            Err(error) => {
                problems.push(format!("file {} cannot be read: {error}", shown.display()));
                return vec![];
            }
        };
        match text.parse::<Table>() {
            Ok(table) => flatten(table)
                .map(|(key, value)| Entry {
                    key,
                    raw: Raw::Typed(value),
                    origin: Origin::File(shown.clone()),
                })
                .collect(),
            Err(error) => {
                problems.push(malformed(&shown, &text, &error));
                vec![]
            }
        }
    }

    /// The environment.
    pub(super) fn read_environment(
        &self,
        known: &Settings,
        problems: &mut Vec<String>,
    ) -> Vec<Entry> {
        read_variables(&self.environment, Origin::Environment, known, problems)
    }

    /// The file `.env`, which may be missing.
    pub(super) fn read_dot_env(&self, known: &Settings, problems: &mut Vec<String>) -> Vec<Entry> {
        let lines = match dotenvy::from_path_iter(self.directory.join(".env")) {
            Ok(lines) => lines,
            Err(error) if error.not_found() => return vec![],
            Err(error) => {
                problems.push(format!(".env cannot be read: {error}"));
                return vec![];
            }
        };
        let mut variables = Vec::new();
        for (number, line) in (1..).zip(lines) {
            match line {
                Ok((name, _)) if name == "COUNTERSIGN_PROFILE" || name == CONFIG => {
                    problems.push(format!(
                        ".env: {name} decides what is read and is not read from here; \
                         set it in the environment"
                    ));
                }
                Ok(variable) => variables.push(variable),
                // The error's own text quotes the line, which may hold a secret.
                Err(dotenvy::Error::LineParse(..)) => problems.push(format!(
                    ".env: variable {number} from the top is malformed; quote values with spaces"
                )),
                Err(error) => problems.push(format!(".env cannot be read: {error}")),
            }
        }
        read_variables(&variables, Origin::DotEnv, known, problems)
    }

    /// The flags.
    pub(super) fn read_flags(&self) -> Vec<Entry> {
        let entry = |(name, key, value): &(&'static str, &'static str, String)| Entry {
            key: (*key).to_owned(),
            raw: Raw::Text(value.clone()),
            origin: Origin::Flag(name),
        };
        self.flags.iter().map(entry).collect()
    }
}

fn read_variables(
    variables: &[(String, String)],
    origin: fn(String) -> Origin,
    known: &Settings,
    problems: &mut Vec<String>,
) -> Vec<Entry> {
    let mut names: Vec<(String, &str)> = known
        .iter()
        .map(|setting| (long_name(setting.key()), setting.key()))
        .collect();
    names.extend(SHORT.iter().map(|(name, key)| ((*name).to_owned(), *key)));

    let mut entries: Vec<Entry> = Vec::new();
    for (name, value) in variables {
        let ours = name.starts_with(PREFIX) && name != CONFIG && !is_foreign(name, value);
        // `NAME=` is how compose files pass on what is not set.
        if !ours || value.is_empty() {
            continue;
        }
        let Some((_, key)) = names.iter().find(|(known, _)| known == name) else {
            let origin = origin(name.clone());
            let hint = nearest(name, names.iter().map(|(known, _)| known.as_str()))
                .map(|known| format!("; did you mean {known}?"))
                .unwrap_or_default();
            problems.push(format!("{origin}: there is no such setting{hint}"));
            continue;
        };
        let origin = origin(name.clone());
        if let Some(other) = entries.iter().find(|entry| entry.key == *key) {
            problems.push(format!(
                "{origin} and {} set the same key `{key}`; keep one",
                other.origin
            ));
        }
        entries.push(Entry {
            key: (*key).to_owned(),
            raw: Raw::Text(value.clone()),
            origin,
        });
    }
    entries
}

/// Whether a variable with our prefix is not ours: what tests and builds use,
/// and what Kubernetes sets in every pod beside a Service called `countersign`
/// or `countersign-…`: `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT`,
/// `…_PORT_50051_TCP[_ADDR|_PORT|_PROTO]`.
fn is_foreign(name: &str, value: &str) -> bool {
    let port_of_link = || {
        name.split_once("_PORT_").is_some_and(|(_, rest)| {
            let (digits, protocol) = rest.split_once('_').unwrap_or((rest, ""));
            digits.bytes().all(|b| b.is_ascii_digit())
                && ["TCP", "UDP", "SCTP"]
                    .iter()
                    .any(|known| protocol.starts_with(known))
        })
    };
    IGNORED.iter().any(|ignored| name.starts_with(ignored))
        || name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || port_of_link()
}

/// Says where a file is malformed without quoting it, for the line may hold a
/// secret.
fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    let path = path.display();
    let what = error.message().lines().next().unwrap_or_default();
    format!("file {path}, line {line}: {what}")
}
