//! What a verifier knows, how it is told, and how old that is.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use countersign_verifier::{Clock, KeyState, Policy, PublicKey, Rejection, SystemClock, Verifier};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::minting::{
    MockClock, Signer, good_claims, good_header, good_token, merged, trust_state, verifier,
};

#[test]
fn without_a_state_nothing_is_good_and_nothing_is_known() {
    let verifier = Verifier::new(Arc::new(MockClock::default()), Policy::default());
    verifier.heard();
    verifier.update(|_| panic!("there is nothing to change"));
    for token in [good_token(), String::new(), "x".repeat(10_000)] {
        assert_eq!(verifier.verify(&token, None), Err(Rejection::NotReady));
    }
    assert!(verifier.state().is_none());
    assert_eq!(verifier.applied_seq(), None);
    assert_eq!(verifier.staleness(), None);
}

#[test]
fn staleness_is_the_time_since_the_head_was_read() {
    let clock = Arc::new(MockClock::default());
    clock.advance_monotonic(1_000_000);
    let verifier = Verifier::new(clock.clone(), Policy::default());
    let staleness = || verifier.staleness().map(|age| age.as_millis());
    verifier.replace(trust_state());
    assert_eq!(staleness(), Some(0));
    clock.advance_monotonic(700);
    assert_eq!(staleness(), Some(700));

    // A batch of entries is not yet the head of the log.
    verifier.update(|state| state.seq += 1);
    verifier.replace(trust_state());
    assert_eq!(staleness(), Some(700));
    verifier.heard();
    assert_eq!(staleness(), Some(0));

    // A read that took 300 ms knows what was there when it began; a slower one that ends later, too.
    let began = clock.monotonic();
    clock.advance_monotonic(300);
    verifier.heard_as_of(began);
    assert_eq!(staleness(), Some(300));
    verifier.heard();
    verifier.heard_as_of(began);
    assert_eq!(staleness(), Some(0));

    // The wall clock has no part in it.
    clock.set_wall(0);
    assert_eq!(staleness(), Some(0));
}

#[test]
fn an_update_makes_a_new_state_and_leaves_the_old_one_as_it_was() {
    let (verifier, _) = verifier();
    let before = verifier.state().unwrap();
    verifier.update(|state| {
        state.seq = 42;
        state.revocations.revoke_key("ed");
        state.keys.remove("p256");
    });
    assert_eq!(
        (
            before.seq,
            before.revocations.len(),
            before.keys.iter().count()
        ),
        (41, 0, 2)
    );
    let after = verifier.state().unwrap();
    assert_eq!(
        (
            after.seq,
            after.revocations.len(),
            after.keys.iter().count()
        ),
        (42, 1, 1)
    );
    assert_eq!(verifier.applied_seq(), Some(42));
}

#[test]
fn no_update_is_lost_when_writers_race() {
    let (verifier, _) = verifier();
    thread::scope(|scope| {
        for writer in 0..4 {
            let verifier = &verifier;
            scope.spawn(move || {
                for n in 0..250 {
                    let session = Uuid::from_u64_pair(writer, n);
                    verifier
                        .update(|state| state.revocations.revoke_session(session, Timestamp::MAX));
                }
            });
        }
    });
    assert_eq!(verifier.state().unwrap().revocations.len(), 1000);
}

#[test]
fn a_key_verifies_in_each_state_until_it_is_removed_or_revoked() {
    let (verifier, _) = verifier();
    let header = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
    let token = Signer::es256().token(&header, &good_claims().to_string());
    for state in [KeyState::Next, KeyState::Active, KeyState::Retired] {
        verifier.update(|trust| trust.keys.insert(Signer::es256().public("p256", state)));
        assert!(verifier.verify(&token, None).is_ok(), "{state:?}");
    }
    verifier.update(|trust| trust.keys.remove("p256"));
    assert_eq!(verifier.verify(&token, None), Err(Rejection::UnknownKey));

    verifier.update(|trust| {
        trust
            .keys
            .insert(Signer::es256().public("p256", KeyState::Active));
    });
    assert!(verifier.verify(&token, None).is_ok());
    verifier.update(|trust| trust.revocations.revoke_key("p256"));
    assert_eq!(verifier.verify(&token, None), Err(Rejection::KeyRevoked));
    assert!(verifier.verify(&good_token(), None).is_ok());
    // Neither the passing of time nor hearing of the key again brings it back.
    verifier.update(|trust| trust.revocations.prune(Timestamp::MAX));
    verifier.update(|trust| {
        trust
            .keys
            .insert(Signer::es256().public("p256", KeyState::Next));
    });
    assert_eq!(verifier.verify(&token, None), Err(Rejection::KeyRevoked));
}

#[test]
fn the_system_clock_goes_forward() {
    let first = SystemClock.monotonic();
    thread::sleep(Duration::from_millis(2));
    assert!(SystemClock.monotonic() >= first + Duration::from_millis(2));
    assert!(SystemClock.now() > Timestamp::from_second(1_700_000_000).unwrap());
}

#[test]
fn debug_shows_no_key_material() {
    let key: PublicKey = Signer::ed25519().public("ed", KeyState::Active);
    assert_eq!(
        format!("{key:?}"),
        r#"PublicKey { kid: "ed", algorithm: Ed25519, state: Active, .. }"#
    );
}

#[test]
fn labels_are_distinct() {
    let all = [
        Rejection::NotReady,
        Rejection::TooLong,
        Rejection::Malformed("parts"),
        Rejection::Critical,
        Rejection::OwnKey,
        Rejection::Type,
        Rejection::KeyRevoked,
        Rejection::UnknownKey,
        Rejection::Algorithm,
        Rejection::Signature,
        Rejection::Issuer,
        Rejection::Audience,
        Rejection::Expired,
        Rejection::NotYetValid,
        Rejection::IssuedInFuture,
        Rejection::SessionRevoked,
        Rejection::UserRevoked,
    ];
    let labels: std::collections::BTreeSet<&str> = all.iter().map(Rejection::label).collect();
    assert_eq!(labels.len(), all.len());
    assert!(
        labels
            .iter()
            .all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    );
}
