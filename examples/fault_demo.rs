//! Validations and logins at a steady pace while PostgreSQL is stopped for a
//! while: what callers of a node see. `scripts/fault-demo` starts the processes
//! and runs this; alone it is
//!
//! ```text
//! fault_demo GRPC_ADDRESS CLUSTER_FOLDER
//! ```
//!
//! The load is open: calls leave when they are due, however long others take,
//! and a call's time counts from when it was due. Exits with 1 if a validation
//! failed or no login came through in the end.

#![expect(clippy::print_stdout, reason = "a table for people is what it makes")]

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::Context;
use countersign_proto::v1::{
    LoginRequest, RegisterRequest, ValidateTokenRequest, auth_service_client::AuthServiceClient,
    login_response, token_service_client::TokenServiceClient,
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{interval_at, sleep_until},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const VALIDATION_EVERY: Duration = Duration::from_millis(5);
const LOGIN_EVERY: Duration = Duration::from_millis(200);
const HEALTH_EVERY: Duration = Duration::from_millis(20);

/// When the database is stopped, goes on, and all is over.
const STOP: Duration = Duration::from_secs(10);
const CONT: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(30);

/// Logs in again and again. An account has so many sessions at most, and its
/// oldest make room.
const LOGS_IN: &str = "logins@example.com";
/// Logs in once, and its token is validated.
const IS_VALIDATED: &str = "validations@example.com";
const PASSWORD: &str = "correct horse battery staple";

/// A call that has ended: when it was due, how long it took from then, and how
/// it failed if it did. Times count from the beginning.
#[derive(Debug)]
struct Done {
    due: Duration,
    took: Duration,
    failure: Option<String>,
}

/// When AuthService said that it does not serve, and that it serves again.
#[derive(Debug, Default)]
struct Flips {
    down: Option<Duration>,
    up: Option<Duration>,
}

/// When the database began to be stopped, and to go on.
#[derive(Debug)]
struct Outage {
    from: Duration,
    to: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(cluster)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: fault_demo GRPC_ADDRESS CLUSTER_FOLDER");
    };
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let token = enter(channel.clone()).await?;

    let start = Instant::now();
    let (validations, logins, flips, outage) = tokio::join!(
        pace(start, VALIDATION_EVERY, || {
            let (channel, token) = (channel.clone(), token.clone());
            async move {
                let audience = String::new();
                let request = ValidateTokenRequest { token, audience };
                let mut client = TokenServiceClient::new(channel);
                client.validate_token(request).await.map(drop)
            }
        }),
        pace(start, LOGIN_EVERY, || {
            let mut client = AuthServiceClient::new(channel.clone());
            async move { client.login(credentials(LOGS_IN)).await.map(drop) }
        }),
        watch(start, channel.clone()),
        outage(start, &cluster),
    );
    Ok(report(&validations, &logins, &flips, &outage?))
}

fn credentials(email: &str) -> LoginRequest {
    LoginRequest {
        identifier: email.to_owned(),
        password: PASSWORD.to_owned(),
        ..LoginRequest::default()
    }
}

/// Registers and logs in; returns the access token.
async fn enter(channel: Channel) -> anyhow::Result<String> {
    let mut client = AuthServiceClient::new(channel);
    for email in [LOGS_IN, IS_VALIDATED] {
        let request = RegisterRequest {
            email: email.to_owned(),
            password: PASSWORD.to_owned(),
            ..RegisterRequest::default()
        };
        client.register(request).await?;
    }
    let reply = client.login(credentials(IS_VALIDATED)).await?.into_inner();
    let Some(login_response::Result::Tokens(tokens)) = reply.result else {
        anyhow::bail!("login gave no tokens");
    };
    Ok(tokens.access_token)
}

/// Makes a call whenever one is due, and waits for all of them.
async fn pace<F>(start: Instant, every: Duration, call: impl Fn() -> F) -> Vec<Done>
where
    F: Future<Output = Result<(), tonic::Status>> + Send + 'static,
{
    let mut ticks = interval_at(start.into(), every);
    let mut calls = JoinSet::new();
    loop {
        let due = ticks.tick().await.into_std();
        if due - start >= END {
            break;
        }
        let call = call();
        calls.spawn(async move {
            let failure = call.await.err().map(|status| {
                let text = status.message();
                format!("{:?}: {text}", status.code())
            });
            Done {
                due: due - start,
                took: due.elapsed(),
                failure,
            }
        });
    }
    calls.join_all().await
}

/// Asks AuthService all the time whether it serves.
async fn watch(start: Instant, channel: Channel) -> Flips {
    let mut client = HealthClient::new(channel);
    let mut flips = Flips::default();
    let mut ticks = interval_at(start.into(), HEALTH_EVERY);
    while start.elapsed() < END {
        ticks.tick().await;
        let service = "countersign.v1.AuthService".to_owned();
        let reply = client.check(HealthCheckRequest { service }).await;
        // 1 is SERVING.
        let serves = reply.is_ok_and(|reply| reply.into_inner().status == 1);
        if !serves && flips.down.is_none() {
            flips.down = Some(start.elapsed());
        }
        if serves && flips.down.is_some() && flips.up.is_none() {
            flips.up = Some(start.elapsed());
        }
    }
    flips
}

/// Stops every process of the cluster, and lets them go on.
async fn outage(start: Instant, cluster: &str) -> anyhow::Result<Outage> {
    sleep_until((start + STOP).into()).await;
    let from = start.elapsed();
    signal("STOP", cluster).await?;
    sleep_until((start + CONT).into()).await;
    let to = start.elapsed();
    signal("CONT", cluster).await?;
    Ok(Outage { from, to })
}

async fn signal(name: &'static str, cluster: &str) -> anyhow::Result<()> {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres"));
    command.args(["signal", name, cluster]);
    let status = spawn_blocking(move || command.status()).await?;
    let status = status.context("scripts/postgres cannot be run")?;
    anyhow::ensure!(status.success(), "scripts/postgres signal {name} failed");
    Ok(())
}

fn report(validations: &[Done], logins: &[Done], flips: &Flips, outage: &Outage) -> ExitCode {
    let opened = flips.down.unwrap_or(outage.to);
    let closed = flips.up.unwrap_or(END).max(outage.to);
    println!(
        "PostgreSQL was stopped from {} on, and went on at {}.\n",
        seconds(outage.from),
        seconds(outage.to)
    );
    header("validations (200/s)");
    row("before", validations, Duration::ZERO, outage.from);
    row("while it was stopped", validations, outage.from, outage.to);
    row("after", validations, outage.to, END);
    println!();
    header("logins (5/s)");
    row("before", logins, Duration::ZERO, outage.from);
    row("until the breaker opened", logins, outage.from, opened);
    row("while it was open", logins, opened, closed);
    row("after", logins, closed, END);
    println!();
    match (flips.down, flips.up) {
        (Some(down), Some(up)) => {
            println!(
                "AuthService said NOT_SERVING {} after the stop,",
                seconds(down.saturating_sub(outage.from))
            );
            println!(
                "and SERVING again {} after the database went on.",
                seconds(up.saturating_sub(outage.to))
            );
        }
        _ => println!("AuthService never changed what it says of its health."),
    }
    let recovered = logins
        .iter()
        .filter(|done| done.failure.is_none() && done.due + done.took > outage.to)
        .map(|done| done.due + done.took)
        .min();
    match recovered {
        Some(at) => println!(
            "The first login came through {} after the database went on.",
            seconds(at.saturating_sub(outage.to))
        ),
        None => println!("No login came through after the database went on."),
    }
    let failed: Vec<&Done> = validations
        .iter()
        .filter(|done| done.failure.is_some())
        .collect();
    println!(
        "Failed validations: {} of {}.",
        failed.len(),
        validations.len()
    );
    for done in failed.iter().take(5) {
        let why = done.failure.as_deref().unwrap_or_default();
        println!("  at {}: {why}", seconds(done.due));
    }
    let wrong = logins.iter().filter_map(|done| done.failure.as_deref());
    let wrong = wrong.filter(|why| !why.starts_with("Unavailable")).count();
    if wrong > 0 {
        println!("Logins that failed otherwise than by UNAVAILABLE: {wrong}.");
    }
    if failed.is_empty() && recovered.is_some() && wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn header(what: &str) {
    println!(
        "{what:<26} {:>6} {:>6} {:>10} {:>10} {:>10}",
        "sent", "failed", "p50", "p99", "slowest"
    );
}

/// The calls that were due in a time.
fn row(name: &str, all: &[Done], from: Duration, to: Duration) {
    let calls: Vec<&Done> = all
        .iter()
        .filter(|done| (from..to).contains(&done.due))
        .collect();
    let failed = calls.iter().filter(|done| done.failure.is_some()).count();
    let mut times: Vec<Duration> = calls.iter().map(|done| done.took).collect();
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times
            .get(place)
            .map_or_else(|| "-".to_owned(), |took| milliseconds(*took))
    };
    println!(
        "{name:<26} {:>6} {failed:>6} {:>10} {:>10} {:>10}",
        calls.len(),
        at(50),
        at(99),
        at(100)
    );
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
