//! What a validation costs the server, in CPU, beside an empty RPC on the same
//! stack.

use anyhow::ensure;

use crate::{
    Bench,
    findings::{Bar, Findings},
    load::{Calls, Shape, Until, closed},
    node::{Node, checks, nothing, validations},
    process::Running,
    series::Series,
    yardstick::Kind,
};

/// The runtime that the service serves on; its yardstick is of the same kind.
const SERVING: Kind = Kind::CurrentThread;

/// Enough for the server to have something to do all the time.
const SHAPE: Shape = Shape {
    connections: 8,
    each: 8,
};

const SESSIONS: usize = 32;
/// Calls before anything is measured.
const WARM_UP: usize = 2_000;

/// CPU per call in microseconds, round by round.
#[derive(Debug, Default)]
struct Costs {
    current: Series,
    multi: Series,
    decode: Series,
    cached: Series,
    first: Series,
    check: Series,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let calls = bench.pick(20_000, 4_000);
    let fresh = bench.pick(2_000, 500);
    let node = Node::start(bench, "validate", None)?;
    bench.say("preparing accounts, sessions and tokens");
    let (key, mut sessions) = bench.runtime.block_on(async {
        node.register(SESSIONS).await?;
        let sessions = node.log_in(0..SESSIONS).await?;
        anyhow::Ok((node.signing_key().await?.x, sessions))
    })?;
    let known: Vec<String> = sessions.iter().map(|s| s.access_token.clone()).collect();
    // One batch for each round, and one to warm up.
    let needed = fresh * (bench.rounds + 1);
    let mut tokens = bench
        .runtime
        .block_on(node.refresh(&mut sessions, move |done| done >= needed))?
        .tokens;
    ensure!(tokens.len() >= needed, "there are too few tokens");

    let [current, multi] =
        [Kind::CurrentThread, Kind::MultiThread].map(|kind| server(bench, kind, &key));
    let (current, multi) = (current?, multi?);
    let same = match SERVING {
        Kind::CurrentThread => &current,
        Kind::MultiThread => &multi,
    };
    let ours = (&node.process, node.address.as_str());
    let yardstick =
        |(process, address): &'_ (Running, String)| cost_of(process, address, &nothing(), calls);

    let (validate, check) = (validations(&known), checks(&known));
    for (process, address, calls) in [
        (&current.0, &*current.1, &nothing()),
        (&multi.0, &*multi.1, &nothing()),
        (&same.0, &*same.1, &validate),
        (ours.0, ours.1, &validate),
        (ours.0, ours.1, &check),
    ] {
        cost_of(process, address, calls, WARM_UP)?;
    }
    let mut batch = || validations(&tokens.split_off(tokens.len().saturating_sub(fresh)));
    let first = batch();
    cost_of(ours.0, ours.1, &first, fresh)?;

    let mut costs = Costs::default();
    for round in 0..bench.rounds {
        bench.round("validate", round);
        let first = batch();
        costs.current.extend([yardstick(&current)?]);
        costs.multi.extend([yardstick(&multi)?]);
        costs
            .decode
            .extend([cost_of(&same.0, &same.1, &first, fresh)?]);
        costs
            .cached
            .extend([cost_of(ours.0, ours.1, &validate, calls)?]);
        costs
            .first
            .extend([cost_of(ours.0, ours.1, &first, fresh)?]);
        costs
            .check
            .extend([cost_of(ours.0, ours.1, &check, calls)?]);
    }
    Ok(costs.findings(calls, fresh))
}

fn server(bench: &Bench, kind: Kind, key: &str) -> anyhow::Result<(Running, String)> {
    let kind = match kind {
        Kind::CurrentThread => "current-thread",
        Kind::MultiThread => "multi-thread",
    };
    let mut command = bench.yardstick()?;
    // The key may begin with a dash.
    let key = format!("--key={key}");
    command.args(["server", "--runtime", kind, &key]);
    Running::serving(command)
}

/// Microseconds of the server's CPU for each call.
fn cost_of(server: &Running, address: &str, calls: &Calls, count: usize) -> anyhow::Result<f64> {
    let before = server.used()?;
    let counts = closed(address, calls, SHAPE, Until::Calls(count))?;
    let spent = server.used()?.since(&before);
    let refused = counts.refused;
    ensure!(
        refused == 0,
        "{refused} of {count} calls of {} failed",
        calls.path
    );
    Ok(spent.total() * 1e6 / count as f64)
}

impl Costs {
    fn findings(&self, calls: usize, fresh: usize) -> Findings {
        let same = match SERVING {
            Kind::CurrentThread => &self.current,
            Kind::MultiThread => &self.multi,
        };
        let mut found = Findings::default();
        found.row(
            "ValidateToken, cached: CPU ÷ empty RPC on the same kind of runtime",
            Bar::AtMost(1.5),
            Some(1.2),
            "×",
            self.cached.per(same),
        );
        found.row(
            "the same ÷ empty RPC on tokio's default multi-thread runtime",
            Bar::AtMost(0.8),
            Some(0.6),
            "×",
            self.cached.per(&self.multi),
        );
        found.row(
            "first-seen token: CPU ÷ (empty RPC + jsonwebtoken's decode)",
            Bar::AtMost(1.1),
            Some(0.75),
            "×",
            self.first.per(&self.decode),
        );
        found.row(
            "ext_authz Check: CPU ÷ ValidateToken",
            Bar::AtMost(1.5),
            Some(1.2),
            "×",
            self.check.per(&self.cached),
        );
        for (what, costs) in [
            ("empty RPC, current-thread runtime", &self.current),
            ("empty RPC, multi-thread runtime", &self.multi),
            ("RPC with jsonwebtoken's decode", &self.decode),
            ("ValidateToken, cached", &self.cached),
            ("ValidateToken, first seen", &self.first),
            ("ext_authz Check", &self.check),
        ] {
            found.figure(format!("{what}: server CPU per call"), "µs", costs);
        }
        found.note(format!(
            "CPU per call is that of all threads of the server's process, under {} connections with \
             {} calls each under way: {calls} calls a round, {fresh} of first-seen tokens, which \
             came from refreshes. The service serves on a {} runtime.",
            SHAPE.connections,
            SHAPE.each,
            match SERVING {
                Kind::CurrentThread => "current-thread",
                Kind::MultiThread => "multi-thread",
            }
        ));
        found
    }
}
