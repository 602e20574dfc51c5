//! The edges between rooms: which part of the house may use which. A room that
//! needs another one that is not in its row is in the wrong place.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each room and the rooms of this crate that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("error", &["domain"]),
    ("breaker", &["error"]),
    ("roots", &[]),
    ("breach_list", &["breaker", "domain", "error", "roots"]),
    ("crypto", &["domain", "error"]),
    ("store", &["breaker", "domain", "error", "roots"]),
    (
        "service",
        &["breach_list", "crypto", "domain", "error", "store"],
    ),
    ("middleware", &["breaker", "domain", "error"]),
    ("grpc", &["domain", "error", "service"]),
    ("health", &["breaker", "middleware"]),
    ("http", &["error", "health", "telemetry"]),
    ("listen", &["domain", "error", "middleware"]),
    ("telemetry", &["error"]),
    (
        "sidecar",
        &[
            "app",
            "config",
            "crypto",
            "domain",
            "grpc",
            "health",
            "middleware",
            "process",
            "telemetry",
        ],
    ),
    ("process", &["*"]),
    ("config", &["*"]),
    ("app", &["*"]),
    ("cli", &["*"]),
    ("main", &["*"]),
    ("lib", &["*"]),
];

/// Crates that only some rooms may name.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("diesel", &["store"]),
    ("diesel_async", &["store"]),
    ("tonic::Status", &["error", "grpc", "middleware"]),
    (
        "countersign_proto",
        &[
            "error",
            "grpc",
            "health",
            "middleware",
            "sidecar",
            "app",
            "cli",
        ],
    ),
    ("countersign_argon2id", &["crypto"]),
    ("aws_lc_rs", &["breach_list", "crypto", "http", "listen"]),
    ("failsafe", &["breaker"]),
    ("hyper::client", &["breach_list"]),
    ("x509_cert", &["listen"]),
];

#[test]
fn no_room_uses_what_it_may_not() {
    let mut wrong = Vec::new();
    for (room, file, text) in sources() {
        let row = EDGES.iter().find(|(name, _)| *name == room);
        let (_, allowed) = row.unwrap_or_else(|| panic!("the room {room} has no row in EDGES"));
        for used in crate_edges(&text) {
            if used != room && !allowed.contains(&"*") && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {room} uses {used}", file.display()));
            }
        }
        for (name, rooms) in OUTSIDE {
            if code(&text).any(|line| mentions(line, name)) && !rooms.contains(&room.as_str()) {
                wrong.push(format!("{}: {room} names {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden edges:\n{}", wrong.join("\n"));
}

#[test]
fn no_room_is_called_utils() {
    for (_, file, _) in sources() {
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "common", "helpers", "models", "misc"].contains(&stem.as_str()),
            "{}",
            file.display()
        );
    }
}

#[test]
fn the_edge_finder_finds_edges() {
    let text = "use crate::{\n    crypto::Lanes,\n    domain::{Call, Cost},\n};\nuse crate::store::Conn;\nlet x = crate::grpc::y();";
    let found = crate_edges(text);
    let expected = ["crypto", "domain", "grpc", "store"].map(String::from);
    assert_eq!(found, BTreeSet::from(expected));
}

/// Every source file with its room: the folder or file right below `src/`.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("tests")).then_some(path));
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let below = path.strip_prefix(&root).unwrap();
                let first = below
                    .components()
                    .next()
                    .unwrap()
                    .as_os_str()
                    .to_string_lossy();
                let room = first.trim_end_matches(".rs").to_owned();
                found.push((room, below.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// Lines of code: no comments, nothing from the tests at a file's end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn mentions(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].chars().next();
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        edge(before) && (after == Some(':') || edge(after))
    })
}

/// The first path segments after `crate::`, through one level of braces.
fn crate_edges(text: &str) -> BTreeSet<String> {
    let text: String = code(text).flat_map(|line| [line, "\n"]).collect();
    let mut edges = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let Some(inner) = rest.strip_prefix('{') else {
            edges.extend(segment(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in inner.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => {
                    edges.extend(segment(item.trim()));
                    item.clear();
                    continue;
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            item.push(c);
        }
        edges.extend(segment(item.trim()));
    }
    edges
}

fn segment(path: &str) -> Option<String> {
    let name: String = path
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}
