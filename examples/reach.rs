//! How soon a revocation is heard everywhere: sessions are ended on one node,
//! and each validator is watched until it refuses. `scripts/reach` starts the
//! processes and runs this; alone it is
//!
//! ```text
//! reach KEY_FILE VALIDATORS REVOCATIONS NODE_A NODE_B [SIDECAR…]
//! ```
//!
//! Half of the in-process validators follow node A, half node B; node A ends the
//! sessions. A time counts from when the logout was sent, so the call itself is
//! in it, and ends when the validator first refuses, looked at each millisecond.
//! Exits with 1 if a validator did not hear within 5 seconds.

#![expect(clippy::print_stdout, reason = "a table for people is what it makes")]

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use countersign_proto::v1::{
    LoginRequest, LogoutRequest, RegisterRequest, TokenPair, ValidateTokenRequest,
    auth_service_client::AuthServiceClient, login_response,
    token_service_client::TokenServiceClient,
};
use countersign_verifier::{
    Policy, SystemClock, Verifier,
    client::{Bearer, Config, Feed},
};
use tokio::{
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

/// Later than this a revocation was not heard.
const MOST: Duration = Duration::from_secs(5);

/// Sessions of one account.
const PER_USER: usize = 50;

/// Accounts that were made so far.
static ACCOUNTS: AtomicUsize = AtomicUsize::new(0);

const PASSWORD: &str = "correct horse battery staple";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [key, validators, revocations, nodes @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: reach KEY_FILE VALIDATORS REVOCATIONS NODE_A NODE_B [SIDECAR…]");
    };
    let [a, b, sidecars @ ..] = nodes else {
        anyhow::bail!("name two nodes");
    };
    let (count, revocations): (usize, usize) = (validators.parse()?, revocations.parse()?);
    let validators = follow(count, key, a, b).await?;
    let connect = |url: &String| Ok(Endpoint::from_shared(url.clone())?.connect_lazy());
    let sidecars: Vec<Channel> = sidecars
        .iter()
        .map(connect)
        .collect::<anyhow::Result<_>>()?;
    let node = connect(a)?;

    let mut heard = Vec::new();
    let mut heard_by_sidecars = Vec::new();
    let mut missed = 0;
    let mut done = 0;
    while done < revocations {
        let sessions = log_in(&node, PER_USER.min(revocations - done)).await?;
        for session in sessions {
            let id: Uuid = session.session_id.parse()?;
            let sent = Instant::now();
            let asking: JoinSet<_> = sidecars
                .iter()
                .map(|sidecar| until_refused(sidecar.clone(), session.access_token.clone(), sent))
                .collect();
            let logout = tokio::spawn(log_out(node.clone(), session));
            missed += watch(&validators, id, sent, &mut heard).await;
            for took in asking.join_all().await {
                match took? {
                    Some(took) => heard_by_sidecars.push(took),
                    None => missed += 1,
                }
            }
            logout.await??;
            done += 1;
        }
        println!("{done} of {revocations} sessions ended");
    }
    println!(
        "\n{revocations} revocations on one of two nodes, {} validators in process, {} sidecars:\n",
        validators.len(),
        sidecars.len()
    );
    println!("heard                     samples    median       p99   slowest");
    row("by validators in process", &mut heard);
    row("by sidecars (an RPC each)", &mut heard_by_sidecars);
    println!("\nNot heard within {} s: {missed}.", MOST.as_secs());
    Ok(match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Validators that have heard a first state.
async fn follow(count: usize, key: &str, a: &str, b: &str) -> anyhow::Result<Vec<Arc<Verifier>>> {
    let mut validators = Vec::new();
    for i in 0..count {
        let policy = Policy {
            cached_tokens: 16,
            ..Policy::default()
        };
        let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), policy));
        let node = if i % 2 == 0 { a } else { b };
        let config = Config {
            endpoints: vec![Endpoint::from_shared(node.to_owned())?],
            bearer: Bearer::File(key.into()),
            instance: format!("reach-{i}"),
            issuer: None,
        };
        tokio::spawn(Feed::new(Arc::clone(&verifier), config).run());
        validators.push(verifier);
    }
    let ready = async {
        while validators.iter().any(|verifier| verifier.state().is_none()) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_mins(1), ready)
        .await
        .context("the validators do not get ready")?;
    Ok(validators)
}

/// Watches until all validators refuse the session. Returns how many never did.
async fn watch(
    validators: &[Arc<Verifier>],
    session: Uuid,
    sent: Instant,
    heard: &mut Vec<Duration>,
) -> usize {
    let refuses = |verifier: &Arc<Verifier>| {
        let state = verifier.state();
        state.is_some_and(|state| state.revocations.is_session_revoked(session))
    };
    let mut left: Vec<&Arc<Verifier>> = validators.iter().collect();
    let mut ticks = interval(Duration::from_millis(1));
    while !left.is_empty() && sent.elapsed() < MOST {
        ticks.tick().await;
        left.retain(|verifier| {
            let refuses = refuses(verifier);
            if refuses {
                heard.push(sent.elapsed());
            }
            !refuses
        });
    }
    left.len()
}

/// Asks a sidecar until it refuses the token; none if it never does.
async fn until_refused(
    sidecar: Channel,
    token: String,
    sent: Instant,
) -> anyhow::Result<Option<Duration>> {
    let mut client = TokenServiceClient::new(sidecar);
    while sent.elapsed() < MOST {
        let request = ValidateTokenRequest {
            token: token.clone(),
            audience: String::new(),
        };
        match client.validate_token(request).await {
            Ok(_) => sleep(Duration::from_millis(1)).await,
            Err(status) if status.code() == tonic::Code::Unauthenticated => {
                return Ok(Some(sent.elapsed()));
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(None)
}

/// A new account, and this many sessions of it.
async fn log_in(node: &Channel, count: usize) -> anyhow::Result<Vec<TokenPair>> {
    let mut client = AuthServiceClient::new(node.clone());
    let number = ACCOUNTS.fetch_add(1, Relaxed);
    let email = format!("reach-{number}@example.com");
    let request = RegisterRequest {
        email: email.clone(),
        password: PASSWORD.to_owned(),
        ..RegisterRequest::default()
    };
    client.register(request).await?;
    let mut sessions = Vec::new();
    for _ in 0..count {
        let request = LoginRequest {
            identifier: email.clone(),
            password: PASSWORD.to_owned(),
            ..LoginRequest::default()
        };
        let reply = client.login(request).await?.into_inner();
        let Some(login_response::Result::Tokens(tokens)) = reply.result else {
            anyhow::bail!("login gave no tokens");
        };
        sessions.push(tokens);
    }
    Ok(sessions)
}

async fn log_out(node: Channel, session: TokenPair) -> anyhow::Result<()> {
    let mut client = AuthServiceClient::new(node);
    let mut request = Request::new(LogoutRequest::default());
    let bearer = format!("Bearer {}", session.access_token).parse()?;
    request.metadata_mut().insert("authorization", bearer);
    client.logout(request).await?;
    Ok(())
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a short list"
        )]
        let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        let time = times.get(index).copied().unwrap_or_default();
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    };
    println!(
        "{name:<25} {:>7} {:>9} {:>9} {:>9}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
