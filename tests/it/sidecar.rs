//! The sidecar: it decides as the nodes do, hears what they hear, and goes on
//! without them.

use std::{fs, sync::Arc, time::Duration};

use countersign::config::Secret;
use countersign_proto::v1;
use countersign_verifier::client::Counts;
use std::sync::atomic::Ordering::Relaxed;
use tonic::Code;

use crate::{
    harness::{
        Fault, Kind, Person, Proxy, World,
        calls::{self, validates},
        clock::MockClock,
        database, eventually, refused, rpc,
        sidecar::Sidecar,
    },
    on_both,
};

const WATCH: &str = "countersign.trust.watch";

async fn sidecar(world: &World) -> (Sidecar, Person) {
    let watcher = world.person_who_may(&[WATCH]).await;
    let token = &watcher.tokens.access_token;
    let sidecar = Sidecar::start(world, &[&world.node], token).await;
    (sidecar, watcher)
}

async fn hears(sidecar: &Sidecar, person: &Person) {
    let client = sidecar.client();
    eventually("the sidecar knows", async || {
        validates(&client, &person.tokens.access_token).await
    })
    .await;
}

async fn refuses(sidecar: &Sidecar, person: &Person) {
    let client = sidecar.client();
    eventually("the sidecar refuses", async || {
        !validates(&client, &person.tokens.access_token).await
    })
    .await;
}

async fn log_out(person: &Person) {
    let request = v1::LogoutRequest::default();
    person.client.clone().auth.logout(request).await.unwrap();
}

/// Waits until the file holds what is known now.
async fn is_kept(sidecar: &Sidecar) {
    let written = || {
        fs::metadata(sidecar.snapshot())
            .and_then(|m| m.modified())
            .ok()
    };
    let before = written();
    eventually("the snapshot is written", async || written() > before).await;
}

on_both! {
    async fn it_decides_as_the_node_does(world: World) {
        let (person, other) = (world.person().await, world.person().await);
        let (sidecar, _) = sidecar(&world).await;
        hears(&sidecar, &person).await;
        let token = &person.tokens.access_token;
        assert_eq!(
            calls::caller(&sidecar.client(), token).await.unwrap(),
            calls::caller(&world.anonymous(), token).await.unwrap(),
        );
        let jwks = async |client: &crate::harness::Client| {
            let reply = client.clone().tokens.get_jwks(v1::GetJwksRequest {}).await;
            reply.unwrap().into_inner().keys
        };
        assert_eq!(jwks(&sidecar.client()).await, jwks(&world.anonymous()).await);

        log_out(&person).await;
        refuses(&sidecar, &person).await;
        let admin = world.admin().await;
        calls::disable(&admin.client, &other.user_id).await.unwrap();
        refuses(&sidecar, &other).await;
    }

    async fn it_serves_nothing_that_needs_a_node(world: World) {
        let (sidecar, watcher) = sidecar(&world).await;
        let client = sidecar.client();
        for rpc in rpc::all() {
            let name = rpc::name(&rpc);
            if name.starts_with("TokenService/") {
                continue;
            }
            let token = Some(watcher.tokens.access_token.as_str());
            let path = rpc::path(&name);
            let answer = rpc::call(&client.channel, &path, token, Vec::new()).await;
            refused(answer, Code::Unimplemented, "METHOD_UNKNOWN");
        }
    }

    async fn it_goes_on_without_a_node_and_starts_without_one(world: World) {
        let (person, gone) = (world.person().await, world.person().await);
        let (mut sidecar, _) = sidecar(&world).await;
        hears(&sidecar, &person).await;
        log_out(&gone).await;
        refuses(&sidecar, &gone).await;
        world.node.running.process().abort();
        is_kept(&sidecar).await;
        assert!(validates(&sidecar.client(), &person.tokens.access_token).await);

        sidecar.stop().await;
        world.clock.advance(Duration::from_secs(60));
        sidecar.resume().await;
        let client = sidecar.client();
        assert!(validates(&client, &person.tokens.access_token).await);
        assert!(!validates(&client, &gone.tokens.access_token).await);
        let staleness = sidecar.running().verifier().staleness().unwrap();
        assert!(staleness >= Duration::from_secs(60), "{staleness:?}");
    }

    async fn a_snapshot_that_cannot_be_trusted_is_not_used(world: World) {
        let person = world.person().await;
        let (mut sidecar, watcher) = sidecar(&world).await;
        hears(&sidecar, &person).await;
        sidecar.stop().await;
        world.node.running.process().abort();
        let good = fs::read(sidecar.snapshot()).unwrap();
        let knows = async |sidecar: &mut Sidecar| {
            sidecar.resume().await;
            let knows = sidecar.running().verifier().state().is_some();
            sidecar.stop().await;
            fs::write(sidecar.snapshot(), &good).unwrap();
            knows
        };
        assert!(knows(&mut sidecar).await);

        let mut altered = good.clone();
        *altered.last_mut().unwrap() ^= 1;
        fs::write(sidecar.snapshot(), &altered).unwrap();
        assert!(!knows(&mut sidecar).await, "altered");
        fs::write(sidecar.snapshot(), &good[..good.len() / 2]).unwrap();
        assert!(!knows(&mut sidecar).await, "cut short");

        sidecar.config.sidecar.credential = Some(Secret::new("another".to_owned()));
        assert!(!knows(&mut sidecar).await, "of another sidecar");
        sidecar.config.sidecar.credential = Some(Secret::new(watcher.tokens.access_token.clone()));
        let issuer = std::mem::replace(&mut sidecar.config.issuer, "https://else.test".to_owned());
        assert!(!knows(&mut sidecar).await, "of another issuer");
        sidecar.config.issuer = issuer;

        // A clock that was set back: it would seem younger than it is.
        sidecar.clock = Arc::new(MockClock::at(jiff::Timestamp::from_second(1_893_456_000 - 3_600).unwrap()));
        assert!(!knows(&mut sidecar).await, "of the future");
        sidecar.clock = Arc::clone(&world.clock);
        assert!(knows(&mut sidecar).await);
    }

    async fn no_call_is_made_for_a_token_or_a_key(world: World) {
        let (person, other) = (world.person().await, world.person().await);
        let (sidecar, _) = sidecar(&world).await;
        hears(&sidecar, &person).await;
        let sum = |counts: &Counts| {
            counts.streams.load(Relaxed) + counts.failures.load(Relaxed) + counts.keys_polled.load(Relaxed)
        };
        let before = sum(sidecar.running().counts());
        let client = sidecar.client();
        for i in 0..200 {
            let unknown = format!("eyJhbGciOiJFZERTQSIsImtpZCI6ImsrNz{i}In0.e30.AAAA");
            assert!(!validates(&client, &unknown).await);
            assert!(validates(&client, &other.tokens.access_token).await);
        }
        assert_eq!(sum(sidecar.running().counts()), before);
        assert_eq!(before, 1, "one stream");
    }

    async fn another_issuer_is_not_followed(world: World) {
        let (mut sidecar, _) = sidecar(&world).await;
        sidecar.stop().await;
        fs::remove_file(sidecar.snapshot()).ok();
        sidecar.config.issuer = "https://elsewhere.test".to_owned();
        sidecar.resume().await;
        eventually("it gives up", async || {
            sidecar.running().counts().failures.load(Relaxed) > 1
        })
        .await;
        assert!(sidecar.running().verifier().state().is_none());
    }

    /// A restored backup: the log goes on under smaller numbers. What was
    /// revoked stays revoked.
    async fn a_restored_backup_is_taken_and_revives_nothing(world: World) {
        let (before, after) = (world.person().await, world.person().await);
        let (sidecar, _) = sidecar(&world).await;
        hears(&sidecar, &before).await;
        log_out(&before).await;
        refuses(&sidecar, &before).await;
        let seq = sidecar.running().verifier().applied_seq().unwrap();
        world.execute("DELETE FROM trust_log WHERE seq > 4").await;
        let nonce = match world.database.kind {
            Kind::Sqlite => "X'00000000000040008000000000000007'",
            Kind::Postgres => "'00000000-0000-4000-8000-000000000007'",
        };
        world.execute(&format!("UPDATE trust_head SET seq = 4, nonce = {nonce}")).await;
        let position = || sidecar.running().verifier().applied_seq().unwrap();
        // Not at once: a node that lags would look the same.
        eventually("it is refused", async || {
            sidecar.running().counts().refused.load(Relaxed) > 0
        })
        .await;
        assert_eq!(position(), seq);
        world.clock.advance(Duration::from_secs(10));
        eventually("it is taken", async || position() < seq).await;
        let client = sidecar.client();
        assert!(!validates(&client, &before.tokens.access_token).await);
        assert!(validates(&client, &after.tokens.access_token).await);
        log_out(&after).await;
        refuses(&sidecar, &after).await;
    }
}

mod postgres {
    use super::*;

    /// One node is cut off from the database: its validators hear from the
    /// other, which one node on a SQLite file does not have.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_freshest_node_is_followed() {
        let proxy = Proxy::before(&database::cluster_url()).await;
        let mut world = World::with(Kind::Postgres, |config| {
            config.database.url = proxy.url(&config.database.url);
        })
        .await;
        world.config.database.url.clone_from(&world.database.url);
        let other = world.another_node().await.unwrap();
        let watcher = world.person_who_may(&[WATCH]).await;
        let person = world.person().await;
        let token = &watcher.tokens.access_token;
        let sidecar = Sidecar::start(&world, &[&world.node, &other], token).await;
        hears(&sidecar, &person).await;
        proxy.make(Fault::Silent);
        world.clock.advance(Duration::from_secs(30));
        let client = other.client().with_token(&person.tokens.access_token);
        client
            .clone()
            .auth
            .logout(v1::LogoutRequest::default())
            .await
            .unwrap();
        refuses(&sidecar, &person).await;
        let staleness = || sidecar.running().verifier().staleness().unwrap();
        eventually("it is fresh", async || staleness() < Duration::from_secs(3)).await;
    }
}
