//! How many instructions a validation takes, counted by valgrind and compared with
//! `benches/instructions.txt`. `scripts/instructions` builds what is needed and
//! runs this.
//!
//! Time on a machine that others use says little about a change of a few percent;
//! a count says the same on every run. It knows nothing of caches, of the kernel,
//! or of AVX-512, which valgrind has not: it guards against a loss, and
//! `scripts/bench` says what things cost.

use std::{
    fmt, fs,
    hint::black_box,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use countersign_proto::v1::Jwk;
use countersign_verifier::{
    Algorithm, ApiKeys, KeySet, KeyState, Policy, PublicKey, Revocations, SystemClock, TrustState,
    Verifier,
};
use uuid::Uuid;

use crate::{
    Bench,
    load::{Calls, Shape, Until, closed},
    node::{AUDIENCE, ISSUER, Node, checks, validations},
    root,
};

/// How much more than the committed count is too much.
const TOLERANCE: f64 = 0.05;
/// One call after the other, so that each finds the server in the same state.
const SHAPE: Shape = Shape {
    connections: 1,
    each: 1,
};
const CALLS: usize = 2_000;
/// Calls of each kind before anything is counted.
const WARM_UP: usize = 200;
/// First-seen tokens, of which the node counts as many as are not for warming up.
const FRESH: usize = 700;
const SESSIONS: usize = 8;

/// Where the counts are kept.
const PAGE: &str = "benches/instructions.txt";
const HEAD: &str = "\
# Instructions of one call, written by `scripts/instructions --write` after a change
# that is meant to cost more or less. What costs 5 % more than here fails.
";

/// Verifications and nothing else, to be counted.
#[derive(Debug, Args)]
pub struct Verifications {
    /// The id of the key that signed the tokens.
    #[arg(long)]
    kid: String,
    /// Its public part.
    #[arg(long)]
    key: String,
    /// A file with a token on each line.
    #[arg(long)]
    tokens: PathBuf,
    /// How many of the tokens.
    #[arg(long)]
    count: usize,
    /// How often each.
    #[arg(long)]
    times: usize,
}

#[derive(Debug, Args)]
pub struct Options {
    /// An empty folder.
    #[arg(long)]
    folder: PathBuf,
    /// Writes the counts down, instead of comparing them.
    #[arg(long)]
    write: bool,
}

/// Instructions of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count {
    what: String,
    instructions: u64,
}

/// Counts, and says whether nothing costs much more than is written down.
#[expect(clippy::print_stdout, reason = "a table for people is what it makes")]
pub fn measure(options: Options) -> anyhow::Result<ExitCode> {
    let page = root().join(PAGE);
    let counted = count(Bench::new(None, Some(options.folder))?)?;
    if options.write {
        let lines: Vec<String> = counted.iter().map(Count::to_string).collect();
        let lines = lines.join("\n");
        fs::write(&page, format!("{HEAD}{lines}\n"))?;
        println!("{lines}\nwrote {PAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let committed = parse(&fs::read_to_string(&page).context(PAGE)?)?;
    let names = |counts: &[Count]| -> Vec<String> {
        counts.iter().map(|count| count.what.clone()).collect()
    };
    ensure!(
        names(&committed) == names(&counted),
        "{PAGE} names other calls: write it anew"
    );
    let mut good = true;
    for (then, now) in committed.iter().zip(&counted) {
        let change = now.instructions as f64 / then.instructions as f64 - 1.0;
        let verdict = match change {
            more if more > TOLERANCE => "too much",
            less if less < -TOLERANCE => "less; write it down, so that it stays so",
            _ => "",
        };
        good &= change <= TOLERANCE;
        println!("{now}  {:+6.2} %  {verdict}", change * 100.0);
    }
    if good {
        return Ok(ExitCode::SUCCESS);
    }
    println!("what is meant to cost more is written down by: scripts/instructions --write");
    Ok(ExitCode::FAILURE)
}

fn count(bench: Bench) -> anyhow::Result<Vec<Count>> {
    bench.say("preparing accounts, sessions and tokens");
    let mut node = Node::start(&bench, "instructions", None)?;
    let (key, sessions, fresh) = bench.runtime.block_on(async {
        node.register(SESSIONS).await?;
        let sessions = node.log_in(0..SESSIONS).await?;
        let mut refreshing = sessions.clone();
        let fresh = node.refresh(&mut refreshing, |done| done >= FRESH).await?;
        anyhow::Ok((node.signing_key().await?, sessions, fresh.tokens))
    })?;
    node.process.stop()?;
    let known: Vec<String> = sessions.into_iter().map(|s| s.access_token).collect();

    let mut counted = of_the_verifier(&bench, &key, &fresh)?;
    counted.extend(of_the_node(bench, &known, fresh)?);
    Ok(counted)
}

/// Of the verifier alone: the same program with more and with less to do.
fn of_the_verifier(bench: &Bench, key: &Jwk, tokens: &[String]) -> anyhow::Result<Vec<Count>> {
    bench.say("counting verifications");
    let file = bench.folder.join("tokens");
    fs::write(&file, tokens.join("\n"))?;
    let all = |count: usize, times: usize| {
        let out = bench.folder.join(format!("verify-{count}-{times}"));
        let status = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(std::env::current_exe()?)
            // The key may begin with a dash.
            .args(["verify", &format!("--kid={}", key.kid)])
            .arg(format!("--key={}", key.x))
            .arg(format!("--tokens={}", file.display()))
            .args([format!("--count={count}"), format!("--times={times}")])
            .status()
            .context("valgrind cannot be started")?;
        ensure!(status.success(), "the verifications failed: {status}");
        total(&out)
    };
    let (few, many, again) = (100, 300, 10);
    let once = all(few, 1)?;
    let first = (all(many, 1)? - once) / (many - few) as u64;
    let cached = (all(few, 1 + again)? - once) / (few * again) as u64;
    let count = |what: &str, instructions| Count {
        what: what.to_owned(),
        instructions,
    };
    Ok(vec![
        count("verify, token first seen", first),
        count("verify, token cached", cached),
    ])
}

impl Verifications {
    /// Verifies the tokens as a service does that holds a verifier.
    pub fn run(self) -> anyhow::Result<()> {
        let public = URL_SAFE_NO_PAD.decode(&self.key)?;
        let mut keys = KeySet::default();
        let (ed25519, active) = (Algorithm::Ed25519, KeyState::Active);
        keys.insert(PublicKey::new(self.kid, ed25519, active, &public)?);
        let verifier = Verifier::new(Arc::new(SystemClock), Policy::default());
        verifier.replace(TrustState {
            issuer: ISSUER.to_owned(),
            audiences: vec![AUDIENCE.to_owned()],
            keys,
            revocations: Revocations::default(),
            api_keys: ApiKeys::default(),
            seq: 1,
            nonce: Uuid::nil(),
        });
        let text = fs::read_to_string(&self.tokens)?;
        let tokens: Vec<&str> = text.lines().take(self.count).collect();
        ensure!(tokens.len() == self.count, "there are too few tokens");
        for _ in 0..self.times {
            for token in &tokens {
                black_box(verifier.verify(token, None))?;
            }
        }
        Ok(())
    }
}

/// Of the whole server: all its threads, between two dumps.
fn of_the_node(bench: Bench, known: &[String], fresh: Vec<String>) -> anyhow::Result<Vec<Count>> {
    let bench = Bench {
        binary: under_valgrind(&bench)?,
        ..bench
    };
    bench.say("starting the node under valgrind");
    let mut node = Node::start(&bench, "instructions", None)?;
    let (warm, fresh) = fresh.split_at_checked(WARM_UP).context("too few tokens")?;
    let subjects = [
        ("ValidateToken, cached", validations(known), None),
        (
            "ValidateToken, first seen",
            validations(fresh),
            Some(validations(warm)),
        ),
        ("ext_authz Check, cached", checks(known), None),
    ];
    let (mut counted, mut dumps) = (Vec::new(), 0);
    for (what, calls, warm) in subjects {
        bench.say(&format!("counting {what}"));
        // Tokens are seen once for the first time.
        let number = if warm.is_some() { fresh.len() } else { CALLS };
        call(&node, warm.as_ref().unwrap_or(&calls), WARM_UP)?;
        dump(&node, &mut dumps)?;
        call(&node, &calls, number)?;
        counted.push(Count {
            what: what.to_owned(),
            instructions: dump(&node, &mut dumps)? / number as u64,
        });
    }
    node.process.stop()?;
    Ok(counted)
}

/// A program that runs ours and counts its instructions.
fn under_valgrind(bench: &Bench) -> anyhow::Result<PathBuf> {
    let path = bench.folder.join("countersign");
    let text = format!(
        "#!/bin/sh\nexec valgrind --tool=callgrind --quiet --fair-sched=yes \
         --callgrind-out-file=counts '{}' \"$@\"\n",
        bench.binary.display()
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn call(node: &Node, calls: &Calls, number: usize) -> anyhow::Result<()> {
    let counts = closed(&node.address, calls, SHAPE, Until::Calls(number))?;
    ensure!(
        counts.answered == number && counts.refused == 0,
        "{} of {number} calls of {} failed",
        counts.refused,
        calls.path
    );
    Ok(())
}

/// The instructions since the last dump; `dumps` is how many there were.
fn dump(node: &Node, dumps: &mut u32) -> anyhow::Result<u64> {
    let pid = node.process.id().to_string();
    let out = Command::new("callgrind_control")
        .args(["--dump", &pid])
        .output()
        .context("callgrind_control cannot be started")?;
    ensure!(
        out.status.success(),
        "callgrind_control failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    *dumps += 1;
    total(&node.home.join(format!("counts.{dumps}")))
}

/// What one of callgrind's files says of all functions together.
fn total(file: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("callgrind wrote no totals")?.trim().parse()?)
}

fn parse(text: &str) -> anyhow::Result<Vec<Count>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let count = |line: &str| {
        let (what, number) = line.rsplit_once(' ')?;
        Some(Count {
            what: what.trim_end().to_owned(),
            instructions: number.parse().ok()?,
        })
    };
    lines
        .map(|line| count(line).with_context(|| format!("not a count: {line}")))
        .collect()
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<26} {:>9}", self.what, self.instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let count = Count {
            what: "ValidateToken, cached".to_owned(),
            instructions: 61_234,
        };
        let text = format!("{HEAD}{count}\n");
        assert_eq!(parse(&text).unwrap(), [count]);
        parse("no number here").unwrap_err();
    }
}
