//! The first start, the second, and key files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{KEY, Start};
use crate::{
    config::data_dir::{self, Prepared},
    crypto::MasterKey,
    domain::Entropy,
};

#[derive(Debug)]
struct Counter(std::sync::atomic::AtomicU8);

impl Entropy for Counter {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill_with(|| self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    }
}

fn entropy() -> Counter {
    Counter(1.into())
}

#[test]
fn a_first_start_makes_directory_and_key_and_a_second_is_quiet() {
    let start = Start::new(&[]);
    let config = start.load().unwrap().config;
    let first = data_dir::prepare(&config, &entropy()).unwrap();
    let key = config.data_dir.join("master.key");
    assert_eq!(
        first.made,
        [(config.data_dir.clone(), 0o700), (key.clone(), 0o600)]
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&config.data_dir), mode(&key)), (0o700, 0o600));
    assert_eq!(fs::read_dir(&config.data_dir).unwrap().count(), 1);

    let config = start.load().unwrap().config;
    let second = data_dir::prepare(&config, &Counter(99.into())).unwrap();
    assert_eq!(second.made, []);
    let id = |prepared: &Prepared| prepared.master_keys.first.id();
    assert_eq!(id(&second), id(&first));
}

#[test]
fn racing_first_starts_end_up_with_one_key() {
    let start = Start::new(&[]);
    let config = start.load().unwrap().config;
    let keys = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let config = &config;
                scope.spawn(move || data_dir::prepare(config, &Counter((n * 31).into())).unwrap())
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap().master_keys.first.id())
            .collect::<Vec<_>>()
    });
    assert!(keys.iter().all(|key| *key == keys[0]));
}

#[test]
fn a_database_without_its_key_is_not_given_another() {
    let start = Start::new(&[]);
    let config = start.load().unwrap().config;
    data_dir::prepare(&config, &entropy()).unwrap();
    fs::write(config.data_dir.join("countersign.db"), "").unwrap();
    fs::remove_file(config.data_dir.join("master.key")).unwrap();
    let error = data_dir::prepare(&config, &entropy()).unwrap_err();
    assert!(error.to_string().contains("restore the key"), "{error}");
}

#[test]
fn a_malformed_key_is_refused() {
    for form in ["short", &"g".repeat(64), &"é".repeat(32)] {
        let start = Start::new(&[("COUNTERSIGN_MASTER_KEY", form)]);
        assert!(start.problem().contains("32 bytes"), "{form}");
    }
}

#[test]
fn production_makes_no_key() {
    let mut start = Start::production(&[("COUNTERSIGN_MASTER_KEY", "")]);
    let path = start.directory.path().join("data/master.key");
    start.set("COUNTERSIGN_MASTER_KEY_FILE", path.to_str().unwrap());
    assert!(start.problem().contains("cannot be read"));
}

#[test]
fn key_files_that_others_can_read_are_refused() {
    let mut start = Start::new(&[]);
    for (mode, allowed) in [
        (0o600, true),
        (0o400, true),
        (0o644, false),
        (0o604, false),
        (0o620, false),
    ] {
        let path = start.write("key", KEY, mode);
        start.set("COUNTERSIGN_MASTER_KEY_FILE", path.to_str().unwrap());
        match start.load() {
            Ok(loaded) => {
                assert!(allowed, "{mode:o}");
                data_dir::prepare(&loaded.config, &entropy()).unwrap();
            }
            Err(problems) => {
                assert!(!allowed, "{mode:o} {problems}");
                assert!(problems.to_string().contains("chmod 600"), "{problems}");
            }
        }
    }
}

#[test]
fn a_ring_comes_from_a_setting_a_file_or_a_command() {
    let other = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
    let ids: Vec<_> = [KEY, other]
        .map(|key| key.parse::<MasterKey>().unwrap().id())
        .into();
    let start = Start::new(&[]);
    let path = start.write("ring", &format!("{KEY}\n{other}\n"), 0o600);
    let path = path.to_str().unwrap();
    let both = format!("{KEY},{other}");
    for (name, value) in [
        ("COUNTERSIGN_MASTER_KEY", &*both),
        ("COUNTERSIGN_MASTER_KEY_FILE", path),
        ("COUNTERSIGN_MASTER_KEY_COMMAND", &format!("cat,{path}")),
    ] {
        let loaded = Start::new(&[(name, value)]).load().unwrap();
        let ring = data_dir::prepare(&loaded.config, &entropy()).unwrap();
        let ring = ring.master_keys;
        assert_eq!(
            ring.iter().map(MasterKey::id).collect::<Vec<_>>(),
            ids,
            "{name}"
        );
        assert!(!loaded.config.data_dir.join("master.key").exists());

        // In production each key of it must be random, and there is one ring.
        let mut start = Start::production(&[("COUNTERSIGN_MASTER_KEY", ""), (name, value)]);
        let weak = match start.load() {
            Ok(loaded) => data_dir::prepare(&loaded.config, &entropy())
                .unwrap_err()
                .to_string(),
            Err(problems) => problems.to_string(),
        };
        assert!(weak.contains("is not random"), "{weak}");
        for second in ["COUNTERSIGN_MASTER_KEY", "COUNTERSIGN_MASTER_KEY_FILE"] {
            if second != name {
                start.set(second, "x");
                let problems = start.load().unwrap_err().to_string();
                assert!(problems.contains("are both set; keep one"), "{problems}");
                start.set(second, "");
            }
        }
    }
}

/// A command may be slow and may count how often it is asked.
#[test]
fn a_command_runs_at_the_start_only() {
    let start = Start::new(&[("COUNTERSIGN_MASTER_KEY_COMMAND", "false,canary")]);
    let config = start.load().unwrap().config;
    let error = data_dir::prepare(&config, &entropy()).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("the command `false` of `master_key_command` failed"),
        "{said}"
    );
    assert!(!said.contains("canary"), "{said}");
}
