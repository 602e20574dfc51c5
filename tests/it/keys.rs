//! Signing keys: a key is published before it signs, verifies until its last
//! token has expired, and is gone at once when it has leaked.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use countersign::service::janitor::Janitor;
use countersign_proto::v1::{
    self,
    SigningKeyState::{Active, Next, Retired},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Client, Kind, Node, Person, World,
        binary::Program,
        calls::{
            self, activate_key as activate_as, header, retire_key as retire, signer,
            stage_key as stage, validates,
        },
        eventually, refused,
        world::{self, PASSWORD},
    },
    on_both,
};

mod rewrap;
mod secret_keys;
mod several_nodes;
mod tampering;

/// How long a key is published before it signs, as by default: the JWKS may be
/// kept for 300 seconds.
const AHEAD: Duration = Duration::from_secs(360);

/// How long a retired key verifies: the longest life, the most leeway, a minute.
const VERIFIES: Duration = Duration::from_secs(3_600 + 30 + 60);

const DAY: Duration = Duration::from_secs(24 * 3_600);

async fn list(client: &Client) -> Vec<v1::SigningKey> {
    let reply = client.keys.clone().list_keys(v1::ListKeysRequest {}).await;
    reply.unwrap().into_inner().keys
}

fn activation(kid: &str) -> v1::ActivateKeyRequest {
    v1::ActivateKeyRequest {
        kid: kid.to_owned(),
        ..Default::default()
    }
}

async fn activate(client: &Client, kid: &str) -> Result<v1::SigningKey, Status> {
    activate_as(client, activation(kid)).await
}

/// With so little time that there is none to wait.
async fn activate_now(client: &Client, kid: &str) -> Result<v1::SigningKey, Status> {
    let mut request = Request::new(activation(kid));
    request.set_timeout(Duration::from_millis(1_100));
    activate_as(client, request).await
}

async fn force(client: &Client, kid: &str) -> Result<v1::SigningKey, Status> {
    let force = true;
    activate_as(
        client,
        v1::ActivateKeyRequest {
            force,
            ..activation(kid)
        },
    )
    .await
}

/// The keys that the node publishes.
async fn published(client: &Client) -> BTreeSet<String> {
    let reply = client.tokens.clone().get_jwks(v1::GetJwksRequest {}).await;
    let keys = reply.unwrap().into_inner().keys;
    keys.into_iter().map(|key| key.kid).collect()
}

/// What the refusal says beside its reason.
fn says(status: &Status, key: &str) -> String {
    let info = status.get_error_details().error_info().cloned().unwrap();
    info.metadata.get(key).cloned().unwrap_or_default()
}

#[track_caller]
fn not_published(result: Result<v1::SigningKey, Status>) -> (u64, u64, u64) {
    let status = result.expect_err("not everybody knows it");
    let number = |key| says(&status, key).parse().unwrap();
    let missing = (
        number("wait_seconds"),
        number("nodes"),
        number("validators"),
    );
    assert!(refused::<()>(Err(status), Code::FailedPrecondition, "KEY_NOT_PUBLISHED").retry);
    missing
}

async fn login(client: &Client, person: &Person) -> v1::TokenPair {
    world::login(client, &person.email, PASSWORD).await.unwrap()
}

async fn sweep(world: &World) {
    let janitor = Janitor::new(Arc::clone(world.node.running.core()), DAY);
    janitor.sweep(&CancellationToken::new()).await.unwrap();
}

/// How often something was done to keys, and by whom.
async fn recorded(world: &World, action: &str) -> usize {
    let query =
        format!("SELECT kid FROM audit_events WHERE action = '{action}' AND kid IS NOT NULL");
    world.query(&query).await.len()
}

on_both! {
    async fn a_key_goes_through_its_life(world: World) {
        let admin = world.admin().await;
        let (client, ana) = (&admin.client, world.person().await);
        let old = ana.tokens.access_token.clone();
        let [first] = &list(client).await[..] else { panic!("one key") };
        assert_eq!((first.state(), &first.kid), (Active, &signer(&old)));

        let next = stage(client).await.unwrap();
        assert_eq!((next.state(), next.algorithm.as_str()), (Next, "EdDSA"));
        let both = BTreeSet::from([first.kid.clone(), next.kid.clone()]);
        assert_eq!(published(client).await, both);
        assert_eq!(signer(&login(client, &ana).await.access_token), first.kid, "it signs nothing yet");
        let again = stage(client).await.unwrap_err();
        assert_eq!(says(&again, "kid"), next.kid);
        refused::<()>(Err(again), Code::FailedPrecondition, "KEY_ALREADY_STAGED");

        // It is to be published for long enough, and the call waits for the rest.
        assert_eq!(not_published(activate(client, &next.kid).await), (360, 0, 0));
        world.clock.advance(AHEAD - Duration::from_secs(5));
        assert_eq!(not_published(activate_now(client, &next.kid).await), (5, 0, 0));
        let (waiting, kid) = (client.clone(), next.kid.clone());
        let waiting = tokio::spawn(async move { activate(&waiting, &kid).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
        world.clock.advance(Duration::from_secs(5));
        let active = waiting.await.unwrap().unwrap();
        assert_eq!((active.state(), &active.kid), (Active, &next.kid));

        // The old one verifies, and signs no more.
        assert!(validates(client, &old).await);
        assert_eq!(published(client).await, both);
        let pair = calls::refresh(client, &ana.tokens.refresh_token).await.unwrap();
        for token in [&pair.access_token, &login(client, &ana).await.access_token] {
            assert_eq!(signer(token), next.kid);
            assert!(validates(client, token).await);
        }
        let keys = list(client).await;
        let retired = keys.iter().find(|key| key.kid == first.kid).unwrap();
        assert_eq!(retired.state(), Retired);
        let seconds = |at: &Option<prost_types::Timestamp>| at.as_ref().unwrap().seconds;
        let verifies = seconds(&retired.verify_until) - seconds(&retired.changed_at);
        assert_eq!(u64::try_from(verifies).unwrap(), VERIFIES.as_secs());

        // It goes when its last token has expired, and not before.
        world.clock.advance(VERIFIES - Duration::from_secs(1));
        sweep(&world).await;
        assert_eq!(published(client).await, both);
        world.clock.advance(Duration::from_secs(1));
        sweep(&world).await;
        let left = async || published(client).await == BTreeSet::from([next.kid.clone()]);
        eventually("the old key is gone", left).await;
        for (action, times) in [("key.created", 1), ("key.staged", 1), ("key.activated", 1), ("key.removed", 1)] {
            assert_eq!(recorded(&world, action).await, times, "{action}");
        }
    }

    async fn a_key_that_does_not_sign_can_be_taken_away(world: World) {
        let admin = world.admin().await;
        let (client, ana) = (&admin.client, world.person().await);
        let first = signer(&ana.tokens.access_token);
        refused(retire(client, &first).await, Code::FailedPrecondition, "KEY_ACTIVE");
        refused(retire(client, "unknown").await, Code::NotFound, "KEY_NOT_FOUND");
        refused(activate(client, "unknown").await, Code::NotFound, "KEY_NOT_FOUND");
        let status = activate(client, &first).await.unwrap_err();
        assert_eq!(says(&status, "state"), "active");
        refused::<()>(Err(status), Code::FailedPrecondition, "KEY_NOT_NEXT");

        let unwanted = stage(client).await.unwrap();
        retire(client, &unwanted.kid).await.unwrap();
        assert_eq!(published(client).await, BTreeSet::from([first.clone()]));
        let next = stage(client).await.unwrap();
        force(client, &next.kid).await.unwrap();
        let (admin, fresh) = (admin.again().await, login(client, &ana).await);
        assert!(validates(client, &ana.tokens.access_token).await);
        retire(&admin.client, &first).await.unwrap();
        assert!(!validates(client, &ana.tokens.access_token).await);
        assert!(validates(client, &fresh.access_token).await);
        // Whoever has lost a token refreshes; the session lives.
        calls::refresh(client, &ana.tokens.refresh_token).await.unwrap();
    }

    async fn a_repeated_staging_has_its_effect_once(world: World) {
        let admin = world.admin().await;
        let request = |algorithm: &str| v1::StageKeyRequest {
            algorithm: algorithm.to_owned(),
            request_id: "018f6c3e-0000-7000-8000-000000000001".to_owned(),
        };
        let mut keys = admin.client.keys.clone();
        let once = keys.stage_key(request("ES256")).await.unwrap().into_inner();
        let again = keys.stage_key(request("ES256")).await.unwrap().into_inner();
        assert_eq!(once, again);
        assert_eq!(list(&admin.client).await.len(), 2);
        refused(keys.stage_key(request("EdDSA")).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
        let other = v1::StageKeyRequest { algorithm: "RS256".into(), ..Default::default() };
        let failure = refused(keys.stage_key(other).await, Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(failure.fields, ["algorithm"]);
        // Another algorithm signs, and both verify.
        force(&admin.client, &once.key.unwrap().kid).await.unwrap();
        let ana = world.person().await;
        assert_eq!(header(&ana.tokens.access_token)["alg"], "ES256");
        assert!(validates(&admin.client, &ana.tokens.access_token).await);
        assert!(validates(&admin.client, &admin.tokens.access_token).await);
    }

    async fn all_nodes_and_validators_must_know_a_key(world: World) {
        let admin = world.admin().await;
        let client = &admin.client;
        let row = async || world.query("SELECT validators FROM nodes").await == ["0"];
        eventually("the node has told of itself", row).await;
        let next = stage(client).await.unwrap();
        world.clock.advance(AHEAD);
        let since = "SELECT count(*) FROM nodes WHERE seen_at > started_at";
        eventually("it has told again", async || world.query(since).await == ["1"]).await;
        // Another node, as its row says.
        let id = match world.database.kind {
            Kind::Sqlite => "x'00000000000000000000000000000001'",
            Kind::Postgres => "'00000000-0000-0000-0000-000000000001'",
        };
        let other = format!("INSERT INTO nodes (id, started_at, seen_at, applied_seq, validators, acked_seq, clock_skew_us) \
             SELECT {id}, started_at, seen_at, 0, 3, NULL, 0 FROM nodes");
        world.execute(&other).await;
        let update = async |change: &str| world.execute(&format!("UPDATE nodes SET {change} WHERE id = {id}")).await;
        assert_eq!(not_published(activate_now(client, &next.kid).await), (0, 1, 3));
        update("applied_seq = 1000").await;
        assert_eq!(not_published(activate_now(client, &next.kid).await), (0, 0, 3));
        update("acked_seq = 1").await;
        assert_eq!(not_published(activate_now(client, &next.kid).await), (0, 0, 3));
        // The call waits for the acknowledgement.
        let (waiting, kid) = (client.clone(), next.kid.clone());
        let waiting = tokio::spawn(async move { activate(&waiting, &kid).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
        update("acked_seq = 1000").await;
        waiting.await.unwrap().unwrap();

        // One that has fallen silent does not count, and is cleared away.
        let next = stage(client).await.unwrap();
        update("acked_seq = 1").await;
        world.clock.advance(AHEAD);
        activate(client, &next.kid).await.unwrap();
        sweep(&world).await;
        assert_eq!(world.query("SELECT count(*) FROM nodes").await, ["2"], "shown for an hour");
        world.clock.advance(Duration::from_secs(3_600));
        let fresh = "SELECT count(*) FROM nodes WHERE applied_seq < 1000 AND seen_at > started_at";
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(world.query(fresh).await, ["1"]);
        sweep(&world).await;
        assert_eq!(world.query("SELECT count(*) FROM nodes").await, ["1"]);
    }

    async fn of_two_at_once_exactly_one_succeeds(world: World) {
        let admin = world.admin().await;
        let other = world.another_node().await;
        let here = admin.client.clone();
        let there = other.as_ref().map_or_else(|| here.clone(), |node| {
            node.client().with_token(&admin.tokens.access_token)
        });
        for round in 0..12 {
            let (one, two) = tokio::join!(stage(&here), stage(&there));
            let next = one_of(one, two, "KEY_ALREADY_STAGED");
            if round % 3 == 0 {
                let (one, two) = tokio::join!(force(&here, &next.kid), force(&there, &next.kid));
                one_of(one, two, "KEY_NOT_NEXT");
            } else {
                // Whoever comes second finds it gone, or active.
                let (active, retired) = if round % 3 == 1 {
                    tokio::join!(force(&here, &next.kid), retire(&there, &next.kid))
                } else {
                    let (retired, active) = tokio::join!(retire(&here, &next.kid), force(&there, &next.kid));
                    (active, retired)
                };
                match (active, retired) {
                    (Ok(_), refusal) => drop(refused(refusal, Code::FailedPrecondition, "KEY_ACTIVE")),
                    (refusal, Ok(())) => drop(refused(refusal, Code::NotFound, "KEY_NOT_FOUND")),
                    both => panic!("neither: {both:?}"),
                }
            }
            let states: Vec<_> = list(&here).await.iter().map(v1::SigningKey::state).collect();
            assert_eq!(states.iter().filter(|state| **state == Active).count(), 1, "{states:?}");
            assert!(!states.contains(&Next), "{states:?}");
        }
        let staged = recorded(&world, "key.staged").await;
        assert_eq!(staged, 12);
        let done = recorded(&world, "key.activated").await + recorded(&world, "key.removed").await;
        assert_eq!(done, 12);
    }

    async fn the_command_line_rotates_beside_a_node(program: Program) {
        let server = program.serve("server").await;
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let login = async || world::login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
        let old = login().await.access_token;
        let said = program.succeed(&["key", "stage"], "");
        let next = said.strip_prefix("staged ").unwrap().trim();
        let again = program.fail(&["key", "stage", "--algorithm", "ES256"], "");
        assert!(again.contains("there is a next signing key"), "{again}");
        let early = program.fail(&["key", "activate", next], "");
        assert!(early.contains("to be published for 3"), "{early}");
        program.succeed(&["key", "activate", next, "--force"], "");
        let heard = async || signer(&login().await.access_token) == next;
        eventually("the node signs with it", heard).await;
        assert!(validates(&server.client(), &old).await);
        let active = program.fail(&["key", "retire", next], "");
        assert!(active.contains("retire_previous"), "{active}");
        program.succeed(&["key", "retire", &signer(&old)], "");
        eventually("the old key is gone", async || !validates(&server.client(), &old).await).await;

        // The emergency.
        let leaked = login().await.access_token;
        let said = program.succeed(&["key", "stage"], "");
        let fresh = said.strip_prefix("staged ").unwrap().trim();
        program.succeed(&["key", "activate", fresh, "--force", "--retire-previous"], "");
        eventually("the leaked key is gone", async || !validates(&server.client(), &leaked).await).await;
        let listed = program.succeed(&["key", "list"], "");
        assert_eq!(listed.lines().count(), 2, "{listed}");
        assert!(listed.contains(fresh) && listed.contains("active"), "{listed}");
    }
}

#[track_caller]
fn one_of<T: std::fmt::Debug>(one: Result<T, Status>, two: Result<T, Status>, reason: &str) -> T {
    match (one, two) {
        (Ok(won), lost) | (lost, Ok(won)) => {
            refused(lost, Code::FailedPrecondition, reason);
            won
        }
        both => panic!("neither: {both:?}"),
    }
}
