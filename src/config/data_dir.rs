//! The data directory and the master key: the only files that the
//! configuration reads secrets from, and the only ones it makes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Config, Profile, master_keys};
use crate::{
    crypto::{MasterKey, MasterKeys},
    domain::{Entropy, Invalid},
};

/// File name of the master key that is made at the first start.
pub const MASTER_KEY: &str = "master.key";
/// File name of the SQLite database without a `database.url`.
pub const DATABASE: &str = "countersign.db";
/// What a sidecar knew last, in its data directory.
pub const SNAPSHOT: &str = "sidecar.snapshot";

/// No secret is longer; a wrong path may lead to something huge.
const MOST_BYTES: u64 = 4_096;

/// What [`prepare`] found or made.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The ring of master keys.
    pub master_keys: MasterKeys,
    /// What was made, with the mode it has; empty from the second start on.
    pub made: Vec<(PathBuf, u32)>,
    /// What is allowed but deserves a line in the log.
    pub warnings: Vec<String>,
}

/// Why the data directory or a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read or made.
    #[error("{} cannot be {action}", path.display())]
    Io {
        /// What was tried: "read" or "made".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others could read a secret.
    #[error(
        "{} is open to other users (mode {mode:04o}); run `chmod 600 {}`",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The text is no key.
    #[error("{0} {1}")]
    Malformed(String, Invalid),
    /// The key was made by hand and not at random.
    #[error("{0} is not random; make one by `head -c 32 /dev/urandom | base64`")]
    Weak(String),
    /// A database without the key that it was sealed with.
    #[error(
        "{} is missing, but {} is there and sealed with it; \
         restore the key, or move the database away to begin anew",
        key.display(), database.display()
    )]
    Lost {
        /// The key file.
        key: PathBuf,
        /// The database file.
        database: PathBuf,
    },
    /// The command that was to give the ring did not.
    #[error("the command `{program}` of `master_key_command` {why}")]
    Command {
        /// What was run; its arguments may hold what is nobody's business.
        program: String,
        /// How it ended.
        why: master_keys::Failure,
    },
    /// No key is set.
    #[error("no master key is set")]
    Unset,
}

/// Makes what is missing of the data directory and, outside production, the
/// master key in it; then reads the ring of master keys. Several processes may do
/// this at once: they end up with the same key. Blocks on files, and on the
/// command that gives the ring, if one is set.
pub fn prepare(config: &Config, entropy: &dyn Entropy) -> Result<Prepared, Error> {
    let (mut made, mut warnings) = (Vec::new(), Vec::new());
    if make_directory(&config.data_dir, &mut warnings)? {
        made.push((config.data_dir.clone(), 0o700));
    }
    let own_key = config.data_dir.join(MASTER_KEY);
    let may_make =
        config.profile != Profile::Production && config.master_key_file.as_ref() == Some(&own_key);
    if may_make && !own_key.exists() {
        let database = config.data_dir.join(DATABASE);
        // Looked at again: another process may just have made both, in order.
        if database.exists() && !own_key.exists() {
            let key = own_key;
            return Err(Error::Lost { key, database });
        }
        if make_key(&own_key, entropy).map_err(Error::io("made", &own_key))? {
            made.push((own_key, 0o600));
        }
    }
    Ok(Prepared {
        master_keys: master_keys::read(config)?,
        made,
        warnings,
    })
}

/// The text of a file that holds one secret, without white space around it.
/// A file that others could read is refused: mode 0600 at most, or 0640 if it
/// is root's, as secrets mounted into containers are.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = Error::io("read", path);
    let file = File::open(path).map_err(&failed)?;
    let metadata = file.metadata().map_err(&failed)?;
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    if metadata.is_file() && metadata.mode() & 0o777 & !allowed != 0 {
        return Err(Error::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o777,
        });
    }
    read_bounded(file).map_err(&failed)
}

/// The text of a secret, without white space around it.
pub(super) fn read_bounded(from: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(
        usize::try_from(MOST_BYTES).unwrap_or(0),
    ));
    from.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// Makes a key file whole or not at all, and never over another: written beside
/// it, then linked. False: another process was first.
fn make_key(path: &Path, entropy: &dyn Entropy) -> io::Result<bool> {
    let text = MasterKey::generate(entropy).to_text();
    let draft = path.with_extension(format!("{:016x}", u64::from_ne_bytes(entropy.array())));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.sync_all());
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => {
            if let Some(directory) = path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a directory for its owner only, if it is missing.
///
/// # Errors
/// If it cannot be made.
pub fn make_private(path: &Path) -> Result<(), Error> {
    make_directory(path, &mut Vec::new()).map(drop)
}

/// Makes a directory for its owner only; says whether it was missing.
fn make_directory(path: &Path, warnings: &mut Vec<String>) -> Result<bool, Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut builder = DirBuilder::new();
            let made = builder.mode(0o700).recursive(true).create(path);
            made.map(|()| true).map_err(Error::io("made", path))
        }
        Err(error) => Err(Error::io("read", path)(error)),
        Ok(metadata) => {
            if metadata.mode() & 0o077 != 0 {
                let path = path.display();
                warnings.push(format!(
                    "{path} is open to other users; run `chmod 700 {path}`"
                ));
            }
            Ok(false)
        }
    }
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
