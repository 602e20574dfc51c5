//! `check-config`: the effective settings, where each came from, and what is
//! wrong with them.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::config::{Config, Settings, Sources};

/// Arguments of `check-config`.
#[derive(Debug, Clone, Default, Args)]
pub struct Arguments {
    /// How to print the settings
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How settings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// A line for each key, as in TOML.
    #[default]
    Toml,
    /// One object with settings, warnings and problems.
    Json,
}

/// What there is to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// For standard output.
    pub settings: String,
    /// For standard error.
    pub remarks: String,
    /// Whether `serve` would start.
    pub is_good: bool,
}

/// Loads the configuration and reports on it.
pub fn report(sources: &Sources, format: Format) -> Report {
    let (settings, warnings, problems, problem_text) = match Config::load(sources) {
        Ok(loaded) => (loaded.settings, loaded.warnings, vec![], None),
        Err(bad) => {
            let text = bad.to_string();
            (bad.settings, vec![], bad.list, Some(text))
        }
    };
    let is_good = problem_text.is_none();
    let mut remarks = String::new();
    let settings = match format {
        Format::Toml => {
            for warning in &warnings {
                // Writing to a string does not fail.
                writeln!(remarks, "warning: {warning}").ok();
            }
            if let Some(text) = problem_text {
                writeln!(remarks, "{text}").ok();
            }
            lines(&settings)
        }
        Format::Json => {
            let report = json!({
                "settings": object(&settings),
                "warnings": warnings,
                "problems": problems,
            });
            format!("{report:#}\n")
        }
    };
    Report {
        settings,
        remarks,
        is_good,
    }
}

fn lines(settings: &Settings) -> String {
    let pairs: Vec<_> = settings
        .iter()
        .map(|setting| (format!("{} = {}", setting.key(), setting.shown()), setting))
        .collect();
    let width = pairs.iter().map(|(pair, _)| pair.chars().count()).max();
    // One long URL shall not push all origins off the screen.
    let width = width.unwrap_or(0).min(56);
    pairs
        .into_iter()
        .fold(String::new(), |mut text, (pair, setting)| {
            writeln!(text, "{pair:width$}   # from: {}", setting.origin()).ok();
            text
        })
}

fn object(settings: &Settings) -> Value {
    let entry = |setting: &crate::config::Setting| {
        let value = json!({
            "value": setting.redacted(),
            "from": setting.origin().to_string(),
        });
        (setting.key().to_owned(), value)
    };
    settings.iter().map(entry).collect::<Map<_, _>>().into()
}
