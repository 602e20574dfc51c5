//! The corpora of the fuzz targets, run through the same functions: so that no
//! target rots between the days on which somebody fuzzes, and what was found once
//! stays mended.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use countersign::grpc::fuzzing::READERS;

use crate::harness::rpc;

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

/// RPCs that read their few fields in place.
const READ_IN_PLACE: [&str; 2] = ["AckTrust", "WatchEvents"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(Result::unwrap);
    let stem = |path: PathBuf| {
        path.file_stem()
            .map(|name| name.to_string_lossy().into_owned())
    };
    entries.filter_map(|entry| stem(entry.path())).collect()
}

#[test]
fn every_file_of_every_corpus_is_borne() {
    for target in targets::ALL {
        let corpus = folder().join("corpus").join(target.name);
        let files = names(&corpus);
        assert!(!files.is_empty(), "{} begins with nothing", target.name);
        for file in files {
            let input = fs::read(corpus.join(&file)).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            assert!(outcome.is_ok(), "{} by the input {file}", target.name);
        }
    }
}

/// What is signed or encoded begins with something good, or the fuzzer would have
/// to guess a MAC.
#[test]
fn what_the_corpora_begin_with_is_good_still() {
    let write = std::env::var_os("COUNTERSIGN_TEST_WRITE").is_some();
    for target in targets::ALL {
        let corpus = folder().join("corpus").join(target.name);
        for (name, bytes) in (target.seeds)() {
            if write {
                fs::create_dir_all(&corpus).unwrap();
                fs::write(corpus.join(&name), &bytes).unwrap();
            }
            assert!(
                fs::read(corpus.join(&name)).is_ok_and(|there| there == bytes),
                "fuzz/corpus/{}/{name} is old; COUNTERSIGN_TEST_WRITE=1 writes it",
                target.name
            );
        }
    }
}

#[test]
fn every_target_has_a_binary_and_a_corpus() {
    let targets: BTreeSet<_> = targets::ALL.iter().map(|it| it.name.to_owned()).collect();
    assert_eq!(names(&folder().join("fuzz_targets")), targets);
    assert_eq!(names(&folder().join("corpus")), targets);
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let binaries = manifest["bin"].as_array().expect("binaries").iter();
    let binaries: BTreeSet<_> = binaries
        .map(|binary| binary["name"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(binaries, targets);
}

#[test]
fn every_request_with_fields_has_a_reader() {
    let readers: BTreeSet<_> = READERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let with_fields = rpc::all()
        .into_iter()
        .filter(|rpc| rpc.input().fields().len() > 0);
    let with_fields = with_fields.map(|rpc| rpc.name().to_owned());
    let expected: BTreeSet<_> = with_fields
        .filter(|name| !READ_IN_PLACE.contains(&name.as_str()))
        .collect();
    assert_eq!(readers, expected);
    assert_eq!(READERS.len(), readers.len(), "no name stands for two");
}
