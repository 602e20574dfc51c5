use countersign_verifier::{
    ApiKeys, Credential, Delta, KeySet, Policy, Revocations, Subject, SystemClock, TrustState,
    Verifier,
};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tonic::Code;

use super::*;
use crate::{crypto::SystemEntropy, domain::Call};

fn feed() -> Arc<Feed> {
    feed_that_is(Duration::ZERO)
}

fn feed_that_is(age: Duration) -> Arc<Feed> {
    let verifier = Verifier::new(Arc::new(SystemClock), Policy::default());
    let feed = Feed::new(Arc::new(verifier));
    feed.replace(
        TrustState {
            issuer: "https://auth.example.com".to_owned(),
            audiences: Vec::new(),
            keys: KeySet::default(),
            revocations: Revocations::default(),
            api_keys: ApiKeys::default(),
            seq: 0,
            nonce: Uuid::nil(),
        },
        age,
    );
    Arc::new(feed)
}

fn revoke(feed: &Feed, seq: u32) {
    let nonce = Uuid::from_u128(seq.into());
    feed.publish(Delta {
        seq: seq.into(),
        nonce,
        sessions: vec![(nonce, Timestamp::MAX)],
        ..Delta::default()
    });
}

fn api(feed: &Arc<Feed>) -> TrustApi {
    let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    TrustApi::new(Arc::clone(feed), clock, entropy, CancellationToken::new())
}

async fn watch(
    api: &TrustApi,
    at: Option<Position>,
) -> <TrustApi as TrustService>::WatchTrustStream {
    let caller = Caller {
        subject: Subject::Workload("orders".into()),
        credential: Credential::Certificate,
        client_id: String::new(),
        roles: Vec::new(),
        scopes: Vec::new(),
        audience: Vec::new(),
        issued_at: Timestamp::UNIX_EPOCH,
        expires_at: None,
    };
    let mut call = Call::internal("test");
    call.caller = Some(Arc::new(caller));
    let mut request = Request::new(v1::WatchTrustRequest {
        resume_from: at.map(|(seq, nonce)| wire::position(seq, nonce)),
        instance: String::new(),
    });
    request.extensions_mut().insert(call);
    api.watch_trust(request).await.unwrap().into_inner()
}

/// Sequence numbers of what a stream has ready, up to the first heartbeat.
async fn told(stream: &mut <TrustApi as TrustService>::WatchTrustStream) -> Vec<i64> {
    let mut seqs = Vec::new();
    loop {
        let message = stream.next().await.unwrap().unwrap();
        let position = match message.event.unwrap() {
            Message::Welcome(_) => continue,
            Message::Snapshot(part) => part.position,
            Message::Delta(delta) => delta.position,
            Message::Heartbeat(_) => return seqs,
        };
        seqs.push(position.unwrap().seq);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_falls_behind_is_detached_and_comes_back() {
    let feed = feed();
    let mut slow = watch(&api(&feed), None).await;
    assert_eq!(told(&mut slow).await, [0]);
    for seq in 1..=3 {
        revoke(&feed, seq);
    }
    assert_eq!(told(&mut slow).await, [1, 2, 3]);
    for seq in 4..=2_000 {
        revoke(&feed, seq);
    }
    let ended = slow.next().await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Aborted);
    assert!(slow.next().await.is_none());
    assert_eq!(feed.validators().0, 0, "its seat is free");

    // Far back is read whole, not long ago is not.
    let mut again = watch(&api(&feed), Some((3, Uuid::from_u128(3)))).await;
    // In three parts: keys, and a thousand sessions in each of the others.
    assert_eq!(told(&mut again).await, [2_000, 2_000, 2_000]);
    let mut again = watch(&api(&feed), Some((1_998, Uuid::from_u128(1_998)))).await;
    assert_eq!(told(&mut again).await, [1_999, 2_000]);
}

#[tokio::test]
async fn those_who_come_together_share_one_snapshot() {
    let feed = feed();
    let api = api(&feed);
    let first = api.begin(None).await.unwrap().snapshot.unwrap();
    revoke(&feed, 1);
    let second = api.begin(None).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second.snapshot.unwrap()));
    assert_eq!(second.changes.len(), 1);
    // Of another history, and further, as all are once a backup was restored.
    let further = Some((9, Uuid::from_u128(7)));
    let third = api.begin(further).await.unwrap();
    assert!(Arc::ptr_eq(&first, &third.snapshot.unwrap()));
    // One that is not new they would refuse, and come back for the same for ever.
    let old = Arc::new(Snapshot {
        position: first.position,
        known_as_of: first.known_as_of.saturating_sub(Duration::from_secs(1)),
        parts: Vec::new(),
    });
    *api.0.snapshot.lock().await = Arc::downgrade(&old);
    let behind = api.begin(None).await.unwrap().snapshot.unwrap();
    assert!(Arc::ptr_eq(&old, &behind));
    let other = api.begin(further).await.unwrap().snapshot.unwrap();
    assert_eq!(other.position.0, 1);
    for seq in 2..=2_000 {
        revoke(&feed, seq);
    }
    let third = api.begin(None).await.unwrap();
    assert_eq!(third.snapshot.unwrap().position.0, 2_000);
    assert!(third.changes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_kept_for_those_who_come_now_and_no_longer() {
    let api = api(&feed());
    let mut stream = watch(&api, None).await;
    loop {
        let message = stream.next().await.unwrap().unwrap();
        let kept = api.0.snapshot.lock().await.upgrade();
        if let Some(Message::Heartbeat(_)) = message.event {
            assert!(kept.is_none(), "nobody holds it");
            return;
        }
        assert!(kept.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_as_old_as_what_is_in_it() {
    let feed = feed_that_is(Duration::from_mins(1));
    let mut stream = watch(&api(&feed), None).await;
    revoke(&feed, 1);
    feed.verifier().heard();
    let mut ages = Vec::new();
    while ages.len() < 4 {
        let message = stream.next().await.unwrap().unwrap();
        ages.push(message.age.unwrap().seconds);
    }
    let [welcome, snapshot, change, heartbeat] = ages.try_into().unwrap();
    assert!(welcome >= 60, "as of when it was made");
    assert!(snapshot >= 60 && change >= 60);
    assert!(heartbeat < 60, "all is told");
}
