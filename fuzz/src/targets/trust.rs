//! What nodes, disks and operators hand over: the trust state as it travels and as it
//! is kept, and anchors of the audit log.

use std::{
    fs,
    sync::{Arc, LazyLock},
    time::Duration,
};

use countersign::{
    config::{Config, Secret},
    crypto::{MasterKey, Sealer, seal},
    domain::audit::Checkpoint,
    sidecar::snapshot::Snapshot,
};
use countersign_proto::v1;
use countersign_verifier::{
    Clock as _, Delta, Policy, TrustState, Verifier,
    wire::{self, Assembler},
};
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    seed,
    tokens::{Counting, ISSUER, Still, trust_state},
};

/// The longest that a validator keeps an entry.
const DAY: SignedDuration = SignedDuration::from_hours(24);

const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// What the sidecar's snapshot is sealed under.
const CREDENTIAL: &str = "csk_the_credential_of_this_sidecar";

static SIDECAR: LazyLock<Sidecar> = LazyLock::new(Sidecar::new);

/// Where a snapshot is kept, and how.
struct Sidecar {
    config: Config,
    sealer: Sealer,
    _directory: TempDir,
}

impl Sidecar {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        let mut config = Config {
            issuer: ISSUER.to_owned(),
            ..Config::default()
        };
        config.sidecar.snapshot_file = Some(directory.path().join("kept").join("snapshot"));
        config.sidecar.credential = Some(Secret::new(CREDENTIAL.to_owned()));
        let key = MasterKey::derived(CREDENTIAL).expect("a key");
        Self {
            config,
            sealer: Sealer::new(&key.into()).expect("a sealer"),
            _directory: directory,
        }
    }

    fn context() -> seal::Context<'static> {
        seal::Context {
            purpose: "sidecar snapshot",
            id: ISSUER,
            public_key: &[],
            facts: "",
        }
    }
}

/// What a sidecar finds on its disk, once opened: eight bytes that say as of when, and
/// messages. As it stands it does not open at all.
pub fn trust_snapshot(data: &[u8]) {
    let Sidecar { config, sealer, .. } = &*SIDECAR;
    let context = Sidecar::context();
    assert!(sealer.open(&context, data).is_err());
    let entropy = Arc::new(Counting::default());
    let sealed = sealer
        .first()
        .seal(&context, data, &*entropy)
        .expect("sealed");
    let verifier = Arc::new(Verifier::new(Arc::new(Still), Policy::default()));
    let snapshot = Snapshot::new(config, Arc::clone(&verifier), entropy).expect("a snapshot");
    let path = config.sidecar.snapshot_file.as_ref().expect("a path");
    fs::write(path, sealed).expect("written");
    snapshot.restore();
    let Some(state) = verifier.state() else {
        return;
    };
    assert_eq!(state.issuer, ISSUER);
    let as_of = data.first_chunk().copied().map(i64::from_be_bytes);
    let as_of = Timestamp::from_millisecond(as_of.expect("it was read")).expect("a time");
    let age = Duration::try_from(Still.now().duration_since(as_of)).expect("not of the future");
    // It is counted in nanoseconds, for as many years as those last.
    let staleness = verifier.staleness().expect("there is a state");
    assert!(staleness == age || staleness.min(age) > CENTURY);
    // It is written as it was read.
    let mut assembler = Assembler::default();
    let mut again = None;
    for part in wire::snapshot(&state, verifier.uptime()) {
        again = assembler
            .add(part, verifier.uptime())
            .expect("what we write is read");
    }
    let again = again.expect("it is whole");
    assert_eq!(known(&again), known(&state));
}

/// What of a state must survive being written and read.
fn known(state: &TrustState) -> (String, Vec<String>, i64, Uuid, usize, usize, usize) {
    (
        state.issuer.clone(),
        state.audiences.clone(),
        state.seq,
        state.nonce,
        state.keys.iter().count(),
        state.revocations.sessions().count() + state.revocations.users().count(),
        state.api_keys.iter().count(),
    )
}

/// One message of the feed: it is taken whole or refused.
pub fn trust_delta(data: &[u8]) {
    let Ok(message) = v1::TrustDelta::decode(data) else {
        return;
    };
    let now = Still.now();
    let Ok(delta) = wire::read_delta(message, now) else {
        return;
    };
    let mut state = trust_state();
    state.apply(&delta);
    assert_eq!((state.seq, state.nonce), (delta.seq, delta.nonce));
    let kept = |until: &Timestamp| (now..=now + DAY).contains(until);
    assert!(delta.sessions.iter().all(|(_, until)| kept(until)));
    assert!(delta.users.iter().all(|(_, _, until)| kept(until)));
    for (session, _) in &delta.sessions {
        assert!(state.revocations.is_session_revoked(*session));
    }
    for (user, epoch, _) in &delta.users {
        assert!(state.revocations.min_epoch(*user) >= Some(*epoch));
    }
    for part in wire::deltas(&delta, (0, Uuid::nil()), now) {
        wire::read_delta(part, now).expect("what we write is read");
    }
}

/// An anchor that somebody kept: it has one spelling.
pub fn audit_anchor(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(checkpoint) = text.parse::<Checkpoint>() {
        assert_eq!(checkpoint.anchor(), text.trim());
        assert_eq!(checkpoint.fields().len(), Checkpoint::FIELDS);
    }
}

pub(super) fn trust_snapshot_seeds() -> Vec<(String, Vec<u8>)> {
    let now = Still.now();
    let mut state = trust_state();
    state.apply(&delta(now));
    let minute = SignedDuration::from_mins(1);
    let good = file(now - minute, &state);
    let cut = good.len() - 10;
    let foreign = TrustState {
        issuer: "https://elsewhere.example.com".into(),
        ..state.clone()
    };
    vec![
        seed("cut", &good[..cut]),
        seed("good", good),
        seed("foreign", file(now, &foreign)),
        seed("of_the_future", file(now + minute, &state)),
    ]
}

fn file(as_of: Timestamp, state: &TrustState) -> Vec<u8> {
    let mut bytes = as_of.as_millisecond().to_be_bytes().to_vec();
    for part in wire::snapshot(state, Timestamp::UNIX_EPOCH) {
        part.encode_length_delimited(&mut bytes).expect("room");
    }
    bytes
}

pub(super) fn trust_delta_seeds() -> Vec<(String, Vec<u8>)> {
    let now = Still.now();
    let parts = wire::deltas(&delta(now), (0, Uuid::nil()), now);
    let only = parts.first().expect("one part");
    vec![seed("good", only.encode_to_vec())]
}

fn delta(now: Timestamp) -> Delta {
    let id = Uuid::from_u128;
    let state = trust_state();
    Delta {
        seq: 42,
        nonce: id(1),
        sessions: vec![(id(2), now + SignedDuration::from_mins(5))],
        users: vec![(id(3), 4, now + DAY)],
        api_keys: state.api_keys.iter().map(|key| (**key).clone()).collect(),
        keys: Some(state.keys),
        removed_api_keys: vec![id(5)],
    }
}

pub(super) fn audit_anchor_seeds() -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint {
        batch: 7,
        position: 1_000,
        created_at: Still.now(),
        key_id: 3,
        root: [5; 32],
        signature: [9; 64],
    };
    let good = checkpoint.anchor();
    let (start, _) = good.split_at(good.len() - 1);
    vec![
        // Bits that stand for nothing.
        seed("another_spelling", format!("{start}R")),
        seed("good", good),
    ]
}
