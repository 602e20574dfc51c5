//! What a sidecar knew last, on its disk: so that it starts and answers when no
//! node can be reached.
//!
//! The file is sealed (AES-256-GCM) under a key that follows from the sidecar's
//! credential, or under one of its own, and bound to the issuer: a file of
//! another sidecar, another issuer, or one that was tampered with is not opened.
//! It says as of when its knowledge is, by the wall clock; staleness goes on
//! from there. A clock that stands before that time is wrong, and then the file
//! is not used: it would seem younger than it is.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use countersign_proto::v1;
use countersign_verifier::{
    TrustState, Verifier,
    wire::{self, Assembler},
};
use jiff::Timestamp;
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, data_dir},
    crypto::{MasterKey, Sealer, seal::Context},
    domain::Entropy,
};

/// How soon a change is on the disk.
const AFTER_CHANGE: Duration = Duration::from_secs(1);

/// How often it is written when nothing changes, so that its age stays small.
const EVERY: Duration = Duration::from_secs(15);

/// The largest file that is read.
const MOST_BYTES: u64 = 1024 * 1024 * 1024;

/// The file, and what it is about.
#[derive(Debug)]
pub struct Snapshot {
    file: Option<Arc<Sealed>>,
    verifier: Arc<Verifier>,
}

#[derive(Debug)]
struct Sealed {
    path: PathBuf,
    sealer: Sealer,
    issuer: String,
    entropy: Arc<dyn Entropy>,
}

impl Snapshot {
    /// The snapshot as it is configured; none without a file.
    pub fn new(
        config: &Config,
        verifier: Arc<Verifier>,
        entropy: Arc<dyn Entropy>,
    ) -> anyhow::Result<Self> {
        let sidecar = &config.sidecar;
        let Some(path) = sidecar.snapshot_file.clone() else {
            return Ok(Self {
                file: None,
                verifier,
            });
        };
        let key = match (&sidecar.snapshot_key_file, &sidecar.credential_file) {
            (Some(path), _) => data_dir::read_secret(path)?.parse::<MasterKey>()?,
            (None, Some(path)) => MasterKey::derived(&data_dir::read_secret(path)?)?,
            (None, None) => {
                let credential = sidecar.credential.as_ref();
                let credential = credential.context("there is no key for the snapshot")?;
                MasterKey::derived(credential.expose())?
            }
        };
        if let Some(directory) = path.parent() {
            data_dir::make_private(directory)?;
        }
        Ok(Self {
            file: Some(Arc::new(Sealed {
                path,
                sealer: Sealer::new(&key.into())?,
                issuer: config.issuer.clone(),
                entropy,
            })),
            verifier,
        })
    }

    /// Takes what the file holds as what is known, if there is one that can be
    /// used; says in the log if not.
    pub fn restore(&self) {
        let Some(file) = &self.file else { return };
        let clock = self.verifier.clock();
        match file.read(clock.now(), self.verifier.uptime()) {
            Ok(Some((state, age))) => {
                tracing::info!(
                    seq = state.seq,
                    age = age.as_secs(),
                    "deciding by the snapshot"
                );
                self.verifier.replace_aged(state, age);
            }
            Ok(None) => {}
            Err(error) => {
                let cause = format!("{error:#}");
                tracing::warn!(cause, path = %file.path.display(), "the snapshot is not used");
            }
        }
    }

    /// Keeps the file up to date until shutdown, and once more then.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(file) = &self.file else { return };
        let mut written = None;
        let mut next = Instant::now();
        let mut quiet = false;
        loop {
            let stop = tokio::select! {
                () = shutdown.cancelled() => true,
                () = sleep(AFTER_CHANGE) => false,
            };
            let seq = self.verifier.applied_seq();
            if seq == written && !stop && Instant::now() < next {
                continue;
            }
            // The age first: what comes between is not in it.
            if let (Some(age), Some(state)) = (self.verifier.staleness(), self.verifier.state()) {
                let (now, uptime) = (self.verifier.clock().now(), self.verifier.uptime());
                let sealed = Arc::clone(file);
                // A disk that is slow must keep no decision waiting.
                let writing =
                    tokio::task::spawn_blocking(move || sealed.write(&state, age, now, uptime));
                let outcome = writing.await.map_err(anyhow::Error::from).flatten();
                match &outcome {
                    Ok(()) => written = seq,
                    Err(error) if !quiet => {
                        let cause = format!("{error:#}");
                        tracing::error!(cause, path = %file.path.display(), "no snapshot is kept");
                    }
                    Err(_) => {}
                }
                quiet = outcome.is_err();
                next = Instant::now() + EVERY;
            }
            if stop {
                return;
            }
        }
    }
}

impl Sealed {
    fn context(&self) -> Context<'_> {
        Context {
            purpose: "sidecar snapshot",
            id: &self.issuer,
            public_key: &[],
            facts: "",
        }
    }

    /// Written beside the old one and put in its place whole.
    fn write(
        &self,
        state: &TrustState,
        age: Duration,
        now: Timestamp,
        uptime: Timestamp,
    ) -> anyhow::Result<()> {
        let as_of = now.checked_sub(age)?;
        let mut plain = as_of.as_millisecond().to_be_bytes().to_vec();
        for part in wire::snapshot(state, uptime) {
            part.encode_length_delimited(&mut plain)?;
        }
        let seal = self.sealer.first();
        let sealed = seal.seal(&self.context(), &plain, &*self.entropy)?;
        let draft = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .with_context(|| format!("{} cannot be written", draft.display()))?;
        file.write_all(&sealed)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        Ok(())
    }

    /// What the file holds, and how old that is; none if there is no file.
    fn read(
        &self,
        now: Timestamp,
        uptime: Timestamp,
    ) -> anyhow::Result<Option<(TrustState, Duration)>> {
        let size = match File::open(&self.path).and_then(|file| file.metadata()) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if size > MOST_BYTES {
            bail!("it is larger than {MOST_BYTES} bytes");
        }
        let sealed = fs::read(&self.path)?;
        let opened = self.sealer.open(&self.context(), &sealed);
        let opened = opened.map_err(|_| {
            anyhow::anyhow!("it does not open: made under another credential or for another issuer")
        })?;
        let (as_of, mut parts) = opened
            .plain
            .split_first_chunk()
            .context("it is cut short")?;
        let as_of = Timestamp::from_millisecond(i64::from_be_bytes(*as_of))?;
        let age = now.duration_since(as_of);
        let Ok(age) = Duration::try_from(age) else {
            bail!("this machine's clock stands before the time of the snapshot, {as_of}");
        };
        let mut assembler = Assembler::default();
        while !parts.is_empty() {
            let part = v1::TrustSnapshot::decode_length_delimited(&mut parts)?;
            if let Some(state) = assembler.add(part, uptime)? {
                if state.issuer != self.issuer {
                    bail!("it is of the issuer {}", state.issuer);
                }
                return Ok(Some((state, age)));
            }
        }
        bail!("it is cut short")
    }
}
