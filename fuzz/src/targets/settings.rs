//! The configuration, as its operator writes it.

use std::{fs, sync::LazyLock};

use countersign::config::{Config, Role, Sources};
use tempfile::TempDir;

/// A secret that no message may repeat.
const SECRET: &str = "kept-from-every-message-0123456789";

/// Where the files are read.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

/// A file in TOML, and after a line of three dashes environment variables by line,
/// which also stand in `.env`. It is read or refused, and no secret is repeated.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    // Whoever names a device as the file of a secret waits for it.
    if text.contains("/dev") || text.contains("/proc") || text.contains(SECRET) {
        return;
    }
    let (file, variables) = text.split_once("\n---\n").unwrap_or((text, ""));
    let directory = DIRECTORY.path().to_owned();
    fs::write(directory.join("countersign.toml"), file).expect("written");
    fs::write(directory.join(".env"), variables).expect("written");
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let secrets = [
        ("COUNTERSIGN_MASTER_KEY", SECRET),
        ("COUNTERSIGN_SIDECAR__CREDENTIAL", SECRET),
    ];
    let environment = variables.chain(secrets);
    let environment: Vec<_> = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for role in [Role::Node, Role::Sidecar] {
        let sources = Sources {
            directory: directory.clone(),
            environment: environment.clone(),
            role,
            ..Sources::default()
        };
        let said = match Config::load(&sources) {
            Ok(loaded) => format!("{loaded:?} {}", loaded.settings.changes()),
            Err(problems) => {
                assert!(!problems.list.is_empty(), "refused, and nothing is wrong");
                format!("{problems} {problems:?}")
            }
        };
        assert!(!said.contains(SECRET), "{said}");
    }
}
