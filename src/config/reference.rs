//! Writes, from the comments of the defaults file, the reference for people and
//! the example file, and checks that the committed ones agree.

use std::{fmt::Write, fs, path::Path};

use super::{DEFAULTS, Settings, environment_name};

/// One key as the defaults file has it.
struct Entry {
    section: String,
    key: String,
    default: String,
    meaning: String,
}

const INTRODUCTION: &str = "\
# Configuration

Countersign starts without any. Later layers win:

1. the defaults below, embedded in the binary;
2. `countersign.toml` in the working directory, or the file named by `--config` or
   `COUNTERSIGN_CONFIG`, which must then be there; `countersign.example.toml` is one to start from;
3. environment variables; in the profile development also those in the file `.env`, which never
   override real ones;
4. flags.

`countersign check-config` prints the effective configuration without its secrets, where each value
came from, and all that is wrong with it.

- A key or a `COUNTERSIGN_` variable that does not exist is refused, with the nearest one that does.
  (Variables that Kubernetes sets beside a Service called `countersign` are passed over.)
- An empty text or variable means \"not set\".
- Lists in the environment are separated by commas: `COUNTERSIGN_AUDIENCES=countersign,billing`.
- Every key also has its long name in the environment: upper case, sections joined by two
  underscores (`COUNTERSIGN_LISTEN__ADDRESS`).
- A file that holds a secret must be readable by its owner only (mode 0600), or, if it is root's, by
  its group too (0640).

## Profiles

| | development | testing | production |
| --- | --- | --- | --- |
| `.env` is read | yes | no | no |
| data directory and master key are made | yes | yes | directory only |
| issuer that is not set | the side port's URL | the side port's URL | refused |
| hashing below the OWASP minimum | refused | allowed | refused |
| reflection | on | on | off unless set |

Production also refuses: plaintext beyond this host (of gRPC, of the side port, to PostgreSQL) unless
a setting says that something else encrypts, an issuer or a list of breached passwords that is not
https, a missing or non-random master key, and rate limits switched off. All problems are reported
at once, each with how to mend it.
";

fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in DEFAULTS.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim());
        } else if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((name, default)) = line.split_once(" = ") {
            let prefix = if section.is_empty() { "" } else { "." };
            entries.push(Entry {
                key: format!("{section}{prefix}{name}"),
                section: section.clone(),
                default: default.to_owned(),
                meaning: comment.join(" "),
            });
        } else {
            comment.clear();
        }
        if line.contains(" = ") && !line.starts_with('#') {
            comment.clear();
        }
    }
    entries
}

fn unit(key: &str) -> &'static str {
    let units = [
        ("_seconds", "s"),
        ("_days", "days"),
        ("_ms", "ms"),
        ("_kib", "KiB"),
        ("failures_per_minute", "failures"),
        ("_per_minute", "calls per minute"),
        ("connections", "connections"),
        ("_per_address", "connections"),
        ("_streams", "calls"),
        ("failures", "calls"),
        ("_calls", "calls"),
        ("lanes", "threads"),
        ("queue", "calls"),
        ("iterations", "passes"),
        ("parallelism", "lanes of Argon2"),
        ("concurrency.validate", "calls"),
        ("concurrency.read", "calls"),
        ("concurrency.write", "calls"),
        ("concurrency.hash", "calls"),
        ("concurrency.stream", "streams"),
        ("_sample", "calls"),
    ];
    let found = units.iter().find(|(suffix, _)| key.ends_with(suffix));
    found.map_or("", |(_, unit)| unit)
}

fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut section = None;
    for entry in entries() {
        if section.as_ref() != Some(&entry.section) {
            let title = match entry.section.as_str() {
                "" => "## Keys without a section".to_owned(),
                name => format!("## [{name}]"),
            };
            write!(page, "\n{title}\n\n| key | environment | default | unit | meaning |\n| --- | --- | --- | --- | --- |\n").unwrap();
            section = Some(entry.section);
        }
        let default = match entry.default.as_str() {
            "\"\"" => "not set".to_owned(),
            default => format!("`{default}`"),
        };
        writeln!(
            page,
            "| `{}` | `{}` | {default} | {} | {} |",
            entry.key,
            environment_name(&entry.key),
            unit(&entry.key),
            entry.meaning.replace('|', "\\|")
        )
        .unwrap();
    }
    page
}

/// The defaults with every key commented out, so that a copy changes nothing:
/// a key that is set counts as a wish, which matters for `reflection`.
fn example() -> String {
    let header = "\
# Copy to `countersign.toml` and uncomment what shall differ from the defaults.
# Each value below is the default.

";
    let keys = DEFAULTS.split_once("\n\n").unwrap().1;
    let lines = keys.lines().map(|line| {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        let mark = if is_key { "#" } else { "" };
        format!(
            "{mark}{line}
"
        )
    });
    header.to_owned() + &lines.collect::<String>()
}

/// Compares a committed file with what it should be; with
/// `COUNTERSIGN_TEST_WRITE=1` writes it instead.
fn agrees(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("COUNTERSIGN_TEST_WRITE").is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == wanted,
        "{} differs from src/config/defaults.toml; \
         run `COUNTERSIGN_TEST_WRITE=1 cargo test --lib config::reference`",
        path.display()
    );
}

#[test]
fn the_reference_agrees_with_the_defaults() {
    agrees("docs/configuration.md", &reference());
}

#[test]
fn the_example_agrees_with_the_defaults() {
    agrees("countersign.example.toml", &example());
    let example: toml::Table = example().parse().unwrap();
    assert!(
        example.values().all(toml::Value::is_table),
        "a key is not commented out"
    );
}

#[test]
fn every_key_is_explained() {
    let settings = Settings::defaults().unwrap();
    let entries = entries();
    assert_eq!(entries.len(), settings.iter().count());
    for entry in entries {
        assert!(settings.get(&entry.key).is_some(), "{}", entry.key);
        assert!(entry.meaning.len() > 10, "`{}` has no comment", entry.key);
    }
}

#[test]
fn env_example_names_only_what_there_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".env.example");
    let text = fs::read_to_string(path).unwrap();
    let settings = Settings::defaults().unwrap();
    let known: Vec<_> = settings.iter().map(|s| environment_name(s.key())).collect();
    let mut found = 0;
    for line in text.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some((name, _)) = line
            .split_once('=')
            .filter(|_| line.starts_with("COUNTERSIGN_"))
        {
            assert!(known.iter().any(|k| k == name), "{name} is no setting");
            found += 1;
        }
    }
    assert!(found > 5);
}
