//! The feed of validators, as one of them reads it.

use std::time::Duration;

use countersign_proto::v1::{self, watch_trust_response::Event};
use countersign_verifier::{TrustState, wire};
use jiff::Timestamp;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::{
    harness::{
        Client, Failure, Fault, Kind, Person, Proxy, World, calls, database, eventually, refused,
    },
    on_both,
};

const WATCH: &str = "countersign.trust.watch";

/// Long enough for any machine; what is waited for comes at once.
const SOON: Duration = Duration::from_secs(10);

/// A validator as simple as can be.
struct Validator {
    stream: Streaming<v1::WatchTrustResponse>,
    stream_id: String,
    resumed: bool,
    assembler: wire::Assembler,
    state: Option<TrustState>,
    age: Duration,
}

impl Validator {
    async fn follow(client: &Client, resume_from: Option<v1::TrustPosition>) -> Self {
        let request = v1::WatchTrustRequest {
            resume_from,
            instance: "test".to_owned(),
        };
        let stream = client.clone().trust.watch_trust(request).await.unwrap();
        let mut validator = Self {
            stream: stream.into_inner(),
            stream_id: String::new(),
            resumed: false,
            assembler: wire::Assembler::default(),
            state: None,
            age: Duration::MAX,
        };
        let Event::Welcome(welcome) = validator.next().await.unwrap() else {
            panic!("the first message is a welcome")
        };
        validator.stream_id = welcome.stream_id;
        validator.resumed = welcome.resumed;
        validator
    }

    /// The next message, applied.
    async fn next(&mut self) -> Result<Event, Status> {
        let message = timeout(SOON, self.stream.message())
            .await
            .expect("a message");
        let message = message?.expect("the stream goes on");
        self.age = message.age.unwrap().try_into().unwrap();
        let event = message.event.unwrap();
        match &event {
            Event::Snapshot(part) => {
                let state = self.assembler.add(part.clone(), now()).unwrap();
                self.state = state.or(self.state.take());
            }
            Event::Delta(delta) => {
                let delta = wire::read_delta(delta.clone(), now()).unwrap();
                if let Some(state) = &mut self.state {
                    state.apply(&delta);
                }
            }
            Event::Welcome(_) | Event::Heartbeat(_) => {}
        }
        Ok(event)
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let reading = async {
            while !is(self) {
                self.next().await.unwrap();
            }
        };
        timeout(SOON, reading).await.expect(what);
    }

    async fn whole(&mut self) {
        self.until("a snapshot", |v| v.state.is_some()).await;
    }

    /// How the stream ends.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    fn state(&self) -> &TrustState {
        self.state.as_ref().unwrap()
    }

    fn position(&self) -> v1::TrustPosition {
        wire::position(self.state().seq, self.state().nonce)
    }

    fn refuses(&self, person: &Person) -> bool {
        let session = person.tokens.session_id.parse().unwrap();
        self.state().revocations.is_session_revoked(session)
    }
}

/// Entries need not be pruned here.
fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

async fn watcher(world: &World) -> Person {
    world.person_who_may(&[WATCH]).await
}

async fn log_out(person: &Person) {
    let request = v1::LogoutRequest::default();
    person.client.clone().auth.logout(request).await.unwrap();
}

on_both! {
    async fn a_validator_hears_everything_and_then_each_change(world: World) {
        let (before, after) = (world.person().await, world.person().await);
        log_out(&before).await;
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        assert!(!validator.resumed);
        validator.whole().await;
        assert!(validator.refuses(&before) && !validator.refuses(&after));
        let node = world.node.running.feed().verifier().state().unwrap();
        assert_eq!(validator.state().issuer, node.issuer);
        assert_eq!(validator.state().audiences, node.audiences);
        assert_eq!(validator.state().keys.jwks(), node.keys.jwks());
        assert_eq!(validator.position(), wire::position(node.seq, node.nonce));

        log_out(&after).await;
        validator.until("the revocation", |v| v.refuses(&after)).await;
        let changed = world.person().await;
        let admin = world.admin().await;
        calls::disable(&admin.client, &changed.user_id).await.unwrap();
        let user_id = changed.user_id.parse().unwrap();
        validator
            .until("the user's epoch", |v| v.state().revocations.min_epoch(user_id).is_some())
            .await;
    }

    async fn a_quiet_feed_says_each_second_that_it_is_up_to_date(world: World) {
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        validator.whole().await;
        for _ in 0..2 {
            let Event::Heartbeat(heartbeat) = validator.next().await.unwrap() else {
                panic!("nothing changed")
            };
            assert_eq!(heartbeat.position.unwrap(), validator.position());
        }
    }

    async fn a_validator_that_comes_back_hears_what_it_missed(world: World) {
        let (missed, later) = (world.person().await, world.person().await);
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        validator.whole().await;
        let Validator { state, .. } = validator;
        log_out(&missed).await;

        let position = state.as_ref().map(|s| wire::position(s.seq, s.nonce));
        let mut again = Validator::follow(&watcher.client, position.clone()).await;
        again.state = state;
        assert!(again.resumed);
        let Event::Delta(_) = again.next().await.unwrap() else { panic!("what it missed") };
        assert!(again.refuses(&missed));
        log_out(&later).await;
        again.until("the next one", |v| v.refuses(&later)).await;

        // The same number in another history is not where we are.
        let mut elsewhere = position.unwrap();
        elsewhere.nonce = vec![7; 16];
        let mut stranger = Validator::follow(&watcher.client, Some(elsewhere)).await;
        assert!(!stranger.resumed);
        stranger.whole().await;
        stranger.until("all of it", |v| v.refuses(&missed) && v.refuses(&later)).await;
    }

    async fn a_stream_ends_with_the_credential_that_opened_it(world: World) {
        let [logged_out, demoted, expired] =
            [watcher(&world).await, watcher(&world).await, watcher(&world).await];
        let mut streams = Vec::new();
        for person in [&logged_out, &demoted, &expired] {
            streams.push(Validator::follow(&person.client, None).await);
        }
        let ends = async |validator: &mut Validator| {
            let failure = Failure::from(&validator.end().await);
            assert_eq!((failure.code, failure.reason.as_str()), (Code::Unauthenticated, "TOKEN_INVALID"));
        };
        log_out(&logged_out).await;
        ends(&mut streams[0]).await;
        let admin = world.admin().await;
        let user = calls::get_user(&admin.client, &demoted.user_id).await.unwrap();
        calls::revoke_role(&admin.client, &demoted.user_id, &user.roles[0]).await.unwrap();
        ends(&mut streams[1]).await;
        streams[2].whole().await;
        world.clock.advance(Duration::from_secs(3_600));
        ends(&mut streams[2]).await;
    }

    async fn another_history_is_told_whole(world: World) {
        let person = world.person().await;
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        validator.whole().await;
        let before = validator.position();
        // As if a backup had been restored.
        let other = match world.database.kind {
            Kind::Sqlite => "X'00000000000040008000000000000007'",
            Kind::Postgres => "'00000000-0000-4000-8000-000000000007'",
        };
        world.execute(&format!("UPDATE trust_head SET nonce = {other}")).await;
        validator.until("another history", |v| v.position().nonce != before.nonce).await;
        assert_eq!(validator.position().seq, before.seq);
        log_out(&person).await;
        validator.until("what comes then", |v| v.refuses(&person)).await;
    }

    async fn acknowledgements_count_for_those_who_read_now(world: World) {
        let watcher = watcher(&world).await;
        let feed = world.node.running.feed();
        assert_eq!(feed.validators(), (0, None));
        let mut quick = Validator::follow(&watcher.client, None).await;
        let slow = Validator::follow(&watcher.client, None).await;
        quick.whole().await;
        let ack = async |stream_id: &str, seq| {
            let request = v1::AckTrustRequest { stream_id: stream_id.to_owned(), seq };
            watcher.client.clone().trust.ack_trust(request).await
        };
        let seq = quick.state().seq;
        ack(&quick.stream_id, seq).await.unwrap();
        assert_eq!(feed.validators(), (2, Some(0)));
        ack(&slow.stream_id, seq - 1).await.unwrap();
        assert_eq!(feed.validators(), (2, Some(seq - 1)));
        // An older one comes late.
        ack(&quick.stream_id, 1).await.unwrap();
        assert_eq!(feed.validators(), (2, Some(seq - 1)));
        let gone = slow.stream_id.clone();
        drop(slow);
        eventually("the seat is free", async || feed.validators() == (1, Some(seq))).await;
        refused(ack(&gone, seq).await, Code::NotFound, "STREAM_NOT_FOUND");
    }

    async fn a_stopping_node_sends_its_validators_away(world: World) {
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        validator.whole().await;
        world.node.running.process().abort();
        let failure = Failure::from(&validator.end().await);
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "NOT_READY"));
    }
}

/// SQLite is served by one node, and nothing comes between it and its file.
mod postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_one_node_does_the_validators_of_another_hear() {
        let world = World::new(Kind::Postgres).await;
        let other = world.another_node().await.unwrap();
        let (person, watcher) = (world.person().await, watcher(&world).await);
        let client = other.client().with_token(&watcher.tokens.access_token);
        let mut validator = Validator::follow(&client, None).await;
        validator.whole().await;
        log_out(&person).await;
        validator
            .until("the revocation", |v| v.refuses(&person))
            .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_is_cut_off_says_how_old_its_knowledge_is() {
        let proxy = Proxy::before(&database::cluster_url()).await;
        let world = World::with(Kind::Postgres, |config| {
            config.database.url = proxy.url(&config.database.url);
        })
        .await;
        let watcher = watcher(&world).await;
        let mut validator = Validator::follow(&watcher.client, None).await;
        validator.whole().await;
        proxy.make(Fault::Silent);
        world.clock.advance(Duration::from_secs(30));
        validator
            .until("an honest age", |v| v.age >= Duration::from_secs(30))
            .await;
        proxy.make(Fault::None);
        validator
            .until("catching up", |v| v.age < Duration::from_secs(30))
            .await;
    }
}
