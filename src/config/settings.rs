//! Settings as a flat list: every key, its value, and where that came from.
//! The keys and the types of their values are those of the defaults file, so
//! that a typo in any layer is found when the layer is laid on.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{
    Profile,
    secret::{REDACTED, redact_url},
};

/// The commented defaults.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// Keys whose values are never shown.
const SECRET: &[&str] = &["master_key", "sidecar.credential"];

/// Keys that name a file for the value of another key.
pub(super) const TWINS: &[(&str, &str)] = &[("database.url", "database.url_file")];

/// Every setting by its dotted key, such as `hashing.lanes`.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<String, Setting>);

/// The value of one key.
#[derive(Clone, PartialEq)]
pub struct Setting {
    key: String,
    value: Value,
    default: Value,
    origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The defaults file.
    Default,
    /// What the profile changes in the defaults.
    Profile(Profile),
    /// Made from the value of another key.
    Derived(&'static str),
    /// A configuration file.
    File(PathBuf),
    /// A variable in `.env`.
    DotEnv(String),
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
    /// A file that holds this value alone.
    SecretFile(PathBuf),
}

/// One value of a layer, before it is known whether it is legal.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// A value as a layer has it.
#[derive(Clone)]
pub(super) enum Raw {
    /// With a type of its own.
    Typed(Value),
    /// A text that has to be read as what the key is.
    Text(String),
}

impl Settings {
    /// The defaults.
    pub fn defaults() -> Result<Self, toml::de::Error> {
        let settings = flatten(DEFAULTS.parse()?).map(|(key, value)| {
            let setting = Setting {
                key: key.clone(),
                default: value.clone(),
                value,
                origin: Origin::Default,
            };
            (key, setting)
        });
        Ok(Self(settings.collect()))
    }

    /// All settings: those without a section first, then by section.
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        let nested = |setting: &&Setting| setting.key.contains('.');
        let top = self.0.values().filter(move |s| !nested(s));
        top.chain(self.0.values().filter(nested))
    }

    /// One setting.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.0.get(key)
    }

    /// The text of one setting; empty if it is not set or no text.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).and_then(|s| s.value.as_str()).unwrap_or("")
    }

    /// What is not as it is by default, in one line for the log.
    pub fn changes(&self) -> String {
        let changed = self
            .iter()
            .filter(|s| {
                !matches!(
                    s.origin,
                    Origin::Default | Origin::Profile(_) | Origin::Derived(_)
                )
            })
            .map(|s| format!("{}={} ({})", s.key, s.shown(), s.origin));
        changed.collect::<Vec<_>>().join(", ")
    }

    /// Lays one value on top, or says what is wrong with it.
    pub(super) fn put(&mut self, entry: Entry) -> Result<(), String> {
        let Entry { key, raw, origin } = entry;
        if matches!(&raw, Raw::Typed(Value::Table(_))) && self.has_section(&key) {
            return Ok(());
        }
        let Some(setting) = self.0.get_mut(&key) else {
            let hint = match nearest(&key, self.0.keys().map(String::as_str)) {
                Some(known) => format!("; did you mean `{known}`?"),
                None => "; `countersign.example.toml` lists all keys".to_owned(),
            };
            return Err(format!("`{key}` ({origin}): there is no such key{hint}"));
        };
        let wanted = kind(&setting.default);
        let value = match raw {
            Raw::Typed(value) if kind(&value) == wanted => Some(value),
            Raw::Typed(_) => None,
            Raw::Text(text) => read(&text, &setting.default),
        };
        let value = value.ok_or_else(|| format!("`{key}` ({origin}): must be {wanted}"))?;
        setting.value = value;
        setting.origin = origin;
        Ok(())
    }

    fn has_section(&self, name: &str) -> bool {
        let inside = |key: &String| key.strip_prefix(name).is_some_and(|k| k.starts_with('.'));
        self.0.keys().any(inside)
    }

    /// Changes a default as a profile has it.
    pub(super) fn default_in(&mut self, profile: Profile, key: &str, value: bool) {
        if let Some(setting) = self.0.get_mut(key) {
            setting.value = value.into();
            setting.origin = Origin::Profile(profile);
        }
    }

    /// Sets a text that was made here rather than given.
    pub(super) fn derive(&mut self, key: &str, text: String, origin: Origin) {
        if let Some(setting) = self.0.get_mut(key) {
            setting.value = Value::String(text);
            setting.origin = origin;
        }
    }

    /// Builds what the settings describe. A value that does not fit is noted
    /// and its default taken, so that all of them are found at once.
    pub(super) fn extract<T: DeserializeOwned + Default>(
        &mut self,
        problems: &mut Vec<String>,
    ) -> T {
        let defaults = || self.0.values().map(|s| (s.key.as_str(), &s.default));
        let mut reset = Vec::new();
        for setting in self.0.values().filter(|s| s.value != s.default) {
            let alone = defaults().chain([(setting.key.as_str(), &setting.value)]);
            if let Err(error) = nest(alone).try_into::<T>() {
                problems.push(setting.misfit(&error));
                reset.push(setting.key.clone());
            }
        }
        for key in reset {
            if let Some(setting) = self.0.get_mut(&key) {
                setting.value = setting.default.clone();
            }
        }
        nest(self.0.values().map(|s| (s.key.as_str(), &s.value)))
            .try_into()
            .unwrap_or_else(|error| {
                problems.push(format!("the defaults do not fit: {}", error.message()));
                T::default()
            })
    }
}

impl Setting {
    /// The dotted key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value in the defaults file.
    pub fn default(&self) -> &Value {
        &self.default
    }

    /// Where the value came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether no layer has changed it.
    pub fn is_default(&self) -> bool {
        self.origin == Origin::Default
    }

    /// Whether it has a value other than the empty text or list.
    pub fn is_set(&self) -> bool {
        match &self.value {
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        }
    }

    /// The value as TOML and as it may be shown: without secrets.
    pub fn shown(&self) -> String {
        self.redacted().to_string()
    }

    /// The value as it may be shown.
    pub fn redacted(&self) -> Value {
        match &self.value {
            Value::String(_) if self.is_secret() && self.is_set() => REDACTED.into(),
            // Without a scheme nobody knows where its password would be.
            Value::String(text) if self.is_set() && self.has_twin() && !text.contains("://") => {
                REDACTED.into()
            }
            Value::String(text) => redact_url(text).into(),
            other => other.clone(),
        }
    }

    fn is_secret(&self) -> bool {
        SECRET.contains(&self.key.as_str())
    }

    fn has_twin(&self) -> bool {
        TWINS.iter().any(|(secret, _)| *secret == self.key)
    }

    /// What is wrong with a value of the right type that does not fit.
    fn misfit(&self, error: &toml::de::Error) -> String {
        let (key, origin) = (&self.key, &self.origin);
        if self.is_secret() || self.has_twin() {
            return format!("`{key}` ({origin}): is malformed");
        }
        format!("`{key}` ({origin}): {}", error.message())
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.shown(), self.origin)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(profile) => write!(f, "default in {profile}"),
            Self::Derived(key) => write!(f, "default made from {key}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::DotEnv(name) => write!(f, ".env {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::SecretFile(path) => write!(f, "secret file {}", path.display()),
        }
    }
}

/// The dotted keys of a TOML table. An empty section stays, to be refused if it
/// is unknown.
pub(super) fn flatten(table: Table) -> impl Iterator<Item = (String, Value)> {
    let mut flat = Vec::new();
    let mut open: Vec<(String, Table)> = vec![(String::new(), table)];
    while let Some((prefix, table)) = open.pop() {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(inner) if !inner.is_empty() => open.push((format!("{key}."), inner)),
                value => flat.push((key, value)),
            }
        }
    }
    flat.into_iter()
}

/// A TOML table of dotted keys; a later value of a key replaces an earlier one.
/// Empty texts count as not set, and the keys of files are left out: their
/// content stands in the key beside them.
fn nest<'a>(settings: impl Iterator<Item = (&'a str, &'a Value)>) -> Table {
    let mut root = Table::new();
    for (key, value) in settings {
        let unset = value.as_str() == Some("") || TWINS.iter().any(|(_, file)| *file == key);
        insert(&mut root, key, (!unset).then_some(value));
    }
    root
}

fn insert(table: &mut Table, key: &str, value: Option<&Value>) {
    match (key.split_once('.'), value) {
        (Some((section, rest)), _) => {
            let inner = table.entry(section).or_insert_with(|| Table::new().into());
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
        (None, Some(value)) => {
            table.insert(key.to_owned(), value.clone());
        }
        (None, None) => {
            table.remove(key);
        }
    }
}

/// What a value is, worded to follow "must be".
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(items) if items.iter().all(Value::is_str) => "a list of texts",
        _ => "something else",
    }
}

/// Reads the text of a variable or flag as what the default is.
fn read(text: &str, default: &Value) -> Option<Value> {
    Some(match default {
        Value::Integer(_) => Value::Integer(text.trim().replace('_', "").parse().ok()?),
        Value::Boolean(_) => Value::Boolean(text.trim().parse().ok()?),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim);
            let items = items.filter(|item| !item.is_empty());
            Value::Array(items.map(Value::from).collect())
        }
        _ => Value::String(text.to_owned()),
    })
}

/// The known name that is most like an unknown one, if any is like it.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    known
        .map(|candidate| {
            let whole = strsim::normalized_damerau_levenshtein(name, candidate);
            // The right key in the wrong section.
            let moved = strsim::normalized_damerau_levenshtein(last(name), last(candidate)) * 0.95;
            (whole.max(moved), candidate)
        })
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
