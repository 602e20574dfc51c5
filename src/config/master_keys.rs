//! Where the ring of master keys is read from: a setting, a file, or what a
//! command prints, such as the client of a key store.

use std::{
    io::{self, ErrorKind},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::{
    Config, Profile,
    data_dir::{self, Error, MASTER_KEY},
};
use crate::crypto::{MasterKey, MasterKeys};

/// How long the command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether the command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why the command gave no keys. Says nothing of what it printed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be started.
    #[error("cannot be started: {0}")]
    NotStarted(io::Error),
    /// Its output could not be read.
    #[error("cannot be read: {0}")]
    Unread(io::Error),
    /// It ended as one that failed.
    #[error("failed ({0})")]
    Failed(ExitStatus),
    /// It did not end in time.
    #[error("did not end within {} seconds", PATIENCE.as_secs())]
    Late,
}

/// The ring that is set. Blocks on files, and on the command.
pub(super) fn read(config: &Config) -> Result<MasterKeys, Error> {
    let (name, text) = match (&config.master_key, &config.master_key_file) {
        (Some(key), _) => (
            "the master key".to_owned(),
            Zeroizing::new(key.expose().to_owned()),
        ),
        (None, Some(path)) => (path.display().to_string(), data_dir::read_secret(path)?),
        (None, None) => {
            let (program, arguments) = config
                .master_key_command
                .split_first()
                .ok_or(Error::Unset)?;
            let text = run(program, arguments, PATIENCE).map_err(|why| Error::Command {
                program: program.clone(),
                why,
            })?;
            (format!("what `{program}` printed"), text)
        }
    };
    let ring: MasterKeys = text
        .parse()
        .map_err(|why| Error::Malformed(name.clone(), why))?;
    if config.profile == Profile::Production && ring.iter().any(is_weak) {
        return Err(Error::Weak(name));
    }
    Ok(ring)
}

/// Of the 43 characters of a random key about 31 differ; those of keys from
/// samples and keyboards hardly do.
fn is_weak(key: &MasterKey) -> bool {
    let mut distinct: Vec<char> = key.to_text().chars().collect();
    distinct.sort_unstable();
    distinct.dedup();
    distinct.len() < 12
}

/// What is wrong with the ring, as far as can be said without running the
/// command. A key that is yet to be made is no problem.
pub(super) fn check(config: &Config) -> Option<String> {
    let key = match (&config.master_key, &config.master_key_file) {
        (Some(_), _) => "master_key",
        (None, Some(_)) => "master_key_file",
        (None, None) => return None,
    };
    match read(config) {
        Ok(_) | Err(Error::Unset) => None,
        Err(Error::Io { path, source, .. })
            if source.kind() == ErrorKind::NotFound
                && config.profile != Profile::Production
                && path == config.data_dir.join(MASTER_KEY) =>
        {
            None
        }
        Err(Error::Io { path, source, .. }) => Some(format!(
            "`{key}`: {} cannot be read: {source}",
            path.display()
        )),
        Err(error) => Some(format!("`{key}`: {error}")),
    }
}

/// What the command prints. It sees the environment of this process, nothing on
/// its standard input, and says on our standard error what went wrong.
fn run(
    program: &str,
    arguments: &[String],
    patience: Duration,
) -> Result<Zeroizing<String>, Failure> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Failure::NotStarted)?;
    let began = Instant::now();
    let stdout = child.stdout.take();
    let (sender, read) = mpsc::channel();
    // On a thread of its own, as one that the command has started may keep the
    // pipe open when the command has long ended.
    thread::spawn(move || {
        let text = stdout.map_or_else(|| Ok(Zeroizing::default()), data_dir::read_bounded);
        sender.send(text).ok();
    });
    let late = |mut child: Child| {
        child.kill().and_then(|()| child.wait()).ok();
        Failure::Late
    };
    let Ok(text) = read.recv_timeout(patience) else {
        return Err(late(child));
    };
    let status = loop {
        if let Some(status) = child.try_wait().map_err(Failure::Unread)? {
            break status;
        }
        if began.elapsed() >= patience {
            return Err(late(child));
        }
        thread::sleep(LOOK_EVERY);
    };
    if !status.success() {
        return Err(Failure::Failed(status));
    }
    text.map_err(Failure::Unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<String, String> {
        let arguments = ["-c".to_owned(), script.to_owned()];
        let text = run("sh", &arguments, Duration::from_millis(500));
        text.map(|text| (*text).clone())
            .map_err(|failure| format!("{failure}: {failure:?}"))
    }

    #[test]
    fn what_a_command_prints_is_the_ring() {
        assert_eq!(shell("printf ' one\ntwo\n\n'"), Ok("one\ntwo".to_owned()));
        assert_eq!(shell("cat"), Ok(String::new()), "nothing to read");
    }

    #[test]
    fn a_command_that_fails_or_hangs_is_named_and_not_quoted() {
        for (script, says) in [
            ("echo canary; exit 3", "failed (exit status: 3)"),
            ("echo canary; kill -9 $$", "failed (signal: 9"),
            ("echo canary; exec sleep 60", "did not end"),
            ("echo canary; exec >&-; exec sleep 60", "did not end"),
            ("printf 'canary\\377'", "cannot be read"),
        ] {
            let failure = shell(script).unwrap_err();
            assert!(failure.starts_with(says), "{failure}");
            assert!(!failure.contains("canary"), "{failure}");
        }
        let missing = run("/nowhere/at-all", &[], PATIENCE).unwrap_err();
        assert!(missing.to_string().starts_with("cannot be started: "));
    }
}
