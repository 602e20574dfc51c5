//! The client of the feed, beside nodes that say what a test wants them to say.

mod node;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use countersign_verifier::client::{Bearer, Config, Counts, Feed};
use countersign_verifier::{Delta, KeySet, KeyState, Rejection, TrustState, Verifier};
use tokio::sync::Notify;
use tokio::time::sleep;
use tonic::transport::Endpoint;
use uuid::Uuid;

use crate::minting::{ISSUER, MockClock, Signer, api_key, good_token, secret, trust_state};
use node::Node;

/// A verifier that follows nodes.
struct Validator {
    verifier: Arc<Verifier>,
    clock: Arc<MockClock>,
    counts: Arc<Counts>,
}

impl Validator {
    fn follow(nodes: &[&Node]) -> Self {
        Self::with(nodes, |_| {})
    }

    fn with(nodes: &[&Node], set: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(MockClock::default());
        clock.set_wall(crate::minting::NOW * 1000);
        clock.advance_monotonic(1_000_000);
        let policy = countersign_verifier::Policy::default();
        let verifier = Arc::new(Verifier::new(clock.clone(), policy));
        let endpoint = |node: &&Node| Endpoint::from_shared(format!("http://{}", node.address));
        let mut config = Config {
            endpoints: nodes
                .iter()
                .map(endpoint)
                .collect::<Result<_, _>>()
                .unwrap(),
            bearer: Bearer::None,
            instance: "test".to_owned(),
            issuer: Some(ISSUER.to_owned()),
        };
        set(&mut config);
        let feed = Feed::new(Arc::clone(&verifier), config);
        let counts = Arc::clone(feed.counts());
        tokio::spawn(feed.run());
        Self {
            verifier,
            clock,
            counts,
        }
    }

    async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is(self) {
            assert!(
                Instant::now() < deadline,
                "it never holds that {what}: {self:?}"
            );
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn at(&self, seq: i64) {
        self.until(&format!("it is at {seq}"), |it| {
            it.verifier.applied_seq() == Some(seq)
        })
        .await;
    }

    /// Waits until it has asked for the keys so often.
    async fn polls(&self, times: u64) {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        self.until("it asks for keys", |it| {
            it.counts.keys_polled.load(Relaxed) >= times
        })
        .await;
        // And has read the answer.
        sleep(Duration::from_millis(200)).await;
    }

    /// Time goes by, in which it hears something now and then.
    async fn pass(&self, seconds: u32) {
        for _ in 0..seconds {
            self.clock.advance_monotonic(1_000);
            sleep(Duration::from_millis(30)).await;
        }
    }

    fn refuses(&self) -> bool {
        self.verifier.verify(&good_token(), None) == Err(Rejection::SessionRevoked)
    }

    fn knows_key(&self, kid: &str) -> bool {
        self.verifier.state().unwrap().keys.get(kid).is_some()
    }

    fn refused(&self) -> u64 {
        self.counts.refused.load(Relaxed)
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", self.counts, self.verifier.applied_seq())
    }
}

#[tokio::test]
async fn everything_is_heard_at_first_and_then_each_change() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    assert!(!validator.refuses());
    node.revoke_session();
    validator.at(42).await;
    assert!(validator.refuses());
    let key = secret(1);
    node.append(Delta {
        api_keys: vec![api_key(&[(&key, None)])],
        ..Delta::default()
    });
    validator.at(43).await;
    validator.verifier.verify(&key, None).unwrap();
    validator
        .until("it has acknowledged", |_| node.known().acknowledged == 43)
        .await;
    assert_eq!(node.known().streams, 1);
}

#[tokio::test]
async fn a_stream_goes_on_where_the_last_one_ended() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    node.known().is_up = false;
    validator
        .until("it notices", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    node.revoke_session();
    node.known().is_up = true;
    validator.at(42).await;
    assert!(validator.refuses());
    assert_eq!(validator.counts.snapshots.load(Relaxed), 1);
}

#[tokio::test]
async fn a_node_that_lags_revives_nothing() {
    let (fresh, lagging) = (Node::start(trust_state()), Node::start(trust_state()));
    let validator = Validator::follow(&[&fresh, &lagging]);
    validator.at(41).await;
    fresh.revoke_session();
    validator.at(42).await;
    fresh.known().is_up = false;
    validator
        .until("it has asked the other", |it| it.refused() > 0)
        .await;
    assert!(validator.refuses());
    assert_eq!(validator.verifier.applied_seq(), Some(42));
    fresh.revoke_session();
    fresh.known().is_up = true;
    validator.at(43).await;
}

#[tokio::test]
async fn a_restored_backup_is_taken_and_revives_nothing() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    node.revoke_session();
    validator.at(42).await;
    {
        let mut known = node.known();
        known.state = TrustState {
            seq: 40,
            nonce: Uuid::from_u128(7),
            ..trust_state()
        };
        known.log.clear();
    }
    validator
        .until("it is refused at first", |it| it.refused() > 0)
        .await;
    assert_eq!(validator.verifier.applied_seq(), Some(42));
    validator.clock.advance_monotonic(5_001);
    validator.at(40).await;
    assert!(validator.refuses());
}

#[tokio::test]
async fn another_issuer_is_never_believed() {
    let other = || TrustState {
        issuer: "https://elsewhere.example.com".to_owned(),
        seq: 100,
        ..trust_state()
    };
    let (other, good) = (Node::start(other()), Node::start(trust_state()));
    let validator = Validator::follow(&[&other, &good]);
    validator.at(41).await;
    assert_eq!(validator.counts.snapshots.load(Relaxed), 1);

    // Whoever expects none keeps to the first.
    let validator = Validator::with(&[&good, &other], |config| config.issuer = None);
    validator.at(41).await;
    good.known().is_up = false;
    let streams = other.known().streams;
    validator
        .until("it has asked the other", |_| {
            other.known().streams > streams + 1
        })
        .await;
    assert_eq!(validator.verifier.state().unwrap().issuer, ISSUER);
}

#[tokio::test]
async fn a_node_whose_knowledge_is_old_is_left_for_a_fresher_one() {
    let (one, two) = (Node::start(trust_state()), Node::start(trust_state()));
    let validator = Validator::follow(&[&one, &two]);
    validator.at(41).await;
    let (from, to) = match one.known().streams {
        1 => (&one, &two),
        _ => (&two, &one),
    };
    // Cut off from the database, both of them: there is nobody better.
    let age = Duration::from_mins(1);
    from.known().age = age;
    to.known().age = age;
    // What was said before that has come by then.
    sleep(Duration::from_millis(200)).await;
    validator.pass(60).await;
    validator
        .until("it has asked the other", |_| to.known().streams > 0)
        .await;
    sleep(Duration::from_millis(100)).await;
    from.revoke_session();
    validator.at(42).await;
    assert!(validator.verifier.staleness() >= Some(age));
    assert_eq!(to.known().acknowledged, 0, "it was asked and not followed");
    // The same history.
    to.revoke_session();
    to.known().age = Duration::ZERO;
    let is_fresh = |it: &Validator| it.verifier.staleness() < Some(Duration::from_secs(1));
    validator.until("it is up to date", is_fresh).await;
    to.revoke_session();
    validator.at(43).await;
}

#[tokio::test]
async fn keys_alone_come_from_elsewhere_until_the_feed_is_back() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    let mut left = KeySet::default();
    left.insert(Signer::es256().public("p256", KeyState::Active));
    node.append(Delta {
        keys: Some(left),
        ..Delta::default()
    });
    validator.at(42).await;
    assert!(!validator.knows_key("ed"));
    // The feed is cut. A list that is older, which has the key that is gone; that of another issuer;
    // and a newer one.
    {
        let mut known = node.known();
        known.is_up = false;
        known.publishes_as = (ISSUER.to_owned(), 41);
    }
    validator
        .until("it notices", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    assert_eq!(validator.counts.keys_polled.load(Relaxed), 0);
    validator.clock.advance_monotonic(31_000);
    validator.polls(1).await;
    assert!(!validator.knows_key("ed"));
    {
        let mut known = node.known();
        let new = Signer::foreign().public("new", KeyState::Active);
        known.keys.insert(new);
        known.publishes_as = ("https://elsewhere.example.com".to_owned(), 43);
    }
    validator.polls(2).await;
    assert!(!validator.knows_key("new"));
    node.known().publishes_as = (ISSUER.to_owned(), 46);
    validator.polls(3).await;
    validator
        .until("it has the new key", |it| it.knows_key("new"))
        .await;
    // Keys say nothing about revocations.
    assert!(validator.verifier.staleness() >= Some(Duration::from_secs(31)));
    // Nothing of a node that lags takes it away: no heartbeat, no change, no snapshot.
    {
        let mut known = node.known();
        known.is_up = true;
        known.age = Duration::from_mins(2);
    }
    validator
        .until("the feed is back", |it| {
            it.counts.streams.load(Relaxed) == 2
        })
        .await;
    validator.pass(3).await;
    assert!(validator.knows_key("new"));
    let mut both = KeySet::default();
    both.insert(Signer::es256().public("p256", KeyState::Active));
    both.insert(Signer::foreign().public("later", KeyState::Next));
    node.append(Delta {
        keys: Some(both),
        ..Delta::default()
    });
    validator.at(43).await;
    assert!(validator.knows_key("new") && !validator.knows_key("later"));
    {
        let mut known = node.known();
        known.state.seq = 45;
        known.log.clear();
    }
    validator.at(45).await;
    assert!(validator.knows_key("new") && !validator.knows_key("later"));
    // What is known since counts, also if it is that nothing has changed.
    node.known().age = Duration::ZERO;
    validator.clock.advance_monotonic(1);
    validator
        .until("the feed is up to date", |it| !it.knows_key("new"))
        .await;
    assert!(validator.knows_key("p256") && validator.knows_key("later"));
    assert!(!validator.knows_key("ed"));
}

#[tokio::test]
async fn an_acknowledgement_that_fails_is_made_again() {
    let node = Node::start(trust_state());
    node.known().refuses_acks = 3;
    let validator = Validator::follow(&[&node]);
    validator
        .until("it has acknowledged", |_| node.known().acknowledged == 41)
        .await;
    assert_eq!(node.known().refuses_acks, 0);
}

#[tokio::test]
async fn what_lay_there_while_the_machine_slept_is_not_believed_to_be_fresh() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    validator.pass(3).await;
    validator.clock.advance_monotonic(600_000);
    validator
        .until("it comes anew", |it| it.counts.streams.load(Relaxed) == 2)
        .await;
}

#[tokio::test]
async fn what_lay_there_while_it_was_busy_is_as_old_as_that() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    let held = Arc::new(Notify::new());
    node.known().holds_acks = Some(Arc::clone(&held));
    node.revoke_session();
    validator.at(42).await;
    // It waits for its acknowledgement, and heartbeats for it.
    sleep(Duration::from_millis(300)).await;
    validator.clock.advance_monotonic(3_000);
    node.known().holds_acks = None;
    held.notify_one();
    validator
        .until("it has acknowledged", |_| node.known().acknowledged == 42)
        .await;
    sleep(Duration::from_millis(300)).await;
    assert!(validator.verifier.staleness() >= Some(Duration::from_secs(3)));
    validator.pass(5).await;
    validator
        .until("it is up to date", |it| {
            it.verifier.staleness() == Some(Duration::ZERO)
        })
        .await;
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_stream_and_changes_nothing() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    validator.pass(10).await;
    validator
        .until("it is up to date", |it| {
            it.verifier.staleness() == Some(Duration::ZERO)
        })
        .await;
    node.known().lies = true;
    validator
        .until("it leaves", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    validator.clock.advance_monotonic(10_000);
    validator
        .until("it tries again", |it| it.counts.failures.load(Relaxed) > 1)
        .await;
    assert!(validator.verifier.staleness() >= Some(Duration::from_secs(10)));
    node.known().lies = false;
    validator
        .until("it is up to date", |it| {
            it.verifier.staleness() == Some(Duration::ZERO)
        })
        .await;
}

#[tokio::test]
async fn a_credential_in_a_file_is_read_again_for_each_stream() {
    let folder = std::env::temp_dir().join(format!("countersign-feed-{}", std::process::id()));
    std::fs::write(&folder, "first\n").unwrap();
    let node = Node::start(trust_state());
    let validator = Validator::with(&[&node], |config| {
        config.bearer = Bearer::File(folder.clone());
    });
    validator.at(41).await;
    std::fs::write(&folder, "second\n").unwrap();
    node.known().is_up = false;
    validator
        .until("it comes again", |_| node.known().bearers.len() > 1)
        .await;
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(
        &node.known().bearers[..2],
        ["Bearer first", "Bearer second"]
    );
}
