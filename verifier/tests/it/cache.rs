//! The token cache: it saves signature checks, and changes no answer.

use std::sync::Arc;

use countersign_verifier::{
    CacheCounts, Caller, KeyState, Policy, Rejection, TrustState, Verifier,
};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::minting::{
    ISSUER, MockClock, NOW, SESSION, Signer, USER, good_claims, good_header, good_token, merged,
    trust_state, verifier, with,
};

/// A verifier that has verified the good token once.
fn warm() -> (Verifier, Arc<MockClock>, Arc<Caller>) {
    let (verifier, clock) = verifier();
    let caller = verifier.verify(&good_token(), None).unwrap();
    assert_eq!(counts(&verifier), (0, 1, 1));
    (verifier, clock, caller)
}

fn counts(verifier: &Verifier) -> (u64, u64, usize) {
    let CacheCounts {
        hits,
        misses,
        entries,
    } = verifier.cache_counts();
    (hits, misses, entries)
}

fn with_cache_of(cached_tokens: usize) -> Verifier {
    let clock = Arc::new(MockClock::default());
    clock.set_wall(NOW * 1000);
    let policy = Policy {
        cached_tokens,
        ..Policy::default()
    };
    let verifier = Verifier::new(clock, policy);
    verifier.replace(trust_state());
    verifier
}

#[test]
fn a_token_is_verified_once_and_its_caller_shared() {
    let (verifier, _, first) = warm();
    let again = verifier.verify(&good_token(), None).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(counts(&verifier), (1, 1, 1));
    // A token with the same claims is another token.
    let other = with(json!({"x": 1}), json!({}));
    assert_eq!(verifier.verify(&other, None).unwrap(), first);
    assert_eq!(counts(&verifier), (1, 2, 2));
}

#[test]
fn each_revocation_reaches_a_token_that_is_cached() {
    for (change, expected) in [
        (
            (|state| state.revocations.revoke_session(SESSION, Timestamp::MAX))
                as fn(&mut TrustState),
            Rejection::SessionRevoked,
        ),
        (
            |state| state.revocations.revoke_user(USER, 4, Timestamp::MAX),
            Rejection::UserRevoked,
        ),
        (
            |state| state.revocations.revoke_key("ed"),
            Rejection::KeyRevoked,
        ),
        (|state| state.keys.remove("ed"), Rejection::UnknownKey),
        (
            |state| {
                let other = Signer::foreign().public("ed", KeyState::Active);
                state.keys.insert(other);
            },
            Rejection::Signature,
        ),
        (
            |state| {
                let other = Signer::es256().public("ed", KeyState::Active);
                state.keys.insert(other);
            },
            Rejection::Algorithm,
        ),
        (
            |state| state.issuer = "https://elsewhere.example".into(),
            Rejection::Issuer,
        ),
        (
            |state| state.audiences = vec!["billing".into()],
            Rejection::Audience,
        ),
    ] {
        // However the change comes.
        let (updated, _, _) = warm();
        updated.update(change);
        let (replaced, _, _) = warm();
        let mut state = trust_state();
        change(&mut state);
        replaced.replace(state);
        for verifier in [updated, replaced] {
            for _ in 0..2 {
                assert_eq!(verifier.verify(&good_token(), None), Err(expected));
            }
        }
    }
}

#[test]
fn a_retired_key_and_the_same_key_heard_again_keep_what_they_proved() {
    let (verifier, _, first) = warm();
    for state in [KeyState::Retired, KeyState::Active] {
        verifier.update(|trust| trust.keys.insert(Signer::ed25519().public("ed", state)));
        let again = verifier.verify(&good_token(), None).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
    }
    verifier.replace(trust_state());
    assert!(verifier.verify(&good_token(), None).is_ok());
    assert_eq!(counts(&verifier), (3, 1, 1));
}

#[test]
fn a_cached_token_does_not_outlive_its_expiry_and_is_forgotten_then() {
    let (verifier, clock, _) = warm();
    let dead = (NOW + 900 + 5) * 1000;
    clock.set_wall(dead - 1);
    assert!(verifier.verify(&good_token(), None).is_ok());
    assert_eq!(counts(&verifier), (1, 1, 1));
    clock.set_wall(dead);
    assert_eq!(
        verifier.verify(&good_token(), None),
        Err(Rejection::Expired)
    );
    assert_eq!(counts(&verifier), (2, 1, 0));
}

#[test]
fn a_clock_that_is_set_back_makes_a_cached_token_one_of_the_future() {
    for (claim, expected) in [
        ("nbf", Rejection::NotYetValid),
        ("iat", Rejection::IssuedInFuture),
    ] {
        let (verifier, clock) = verifier();
        let token = with(json!({}), json!({"iat": 0, "nbf": 0, claim: NOW}));
        assert!(verifier.verify(&token, None).is_ok());
        clock.set_wall((NOW - 60) * 1000);
        assert_eq!(verifier.verify(&token, None), Err(expected), "{claim}");
    }
}

#[test]
fn the_audience_is_asked_at_every_hit() {
    let (verifier, _, _) = warm();
    let verdict = |audience| verifier.verify(&good_token(), audience).map(|_| ());
    assert_eq!(verdict(Some("billing")), Err(Rejection::Audience));
    assert_eq!(verdict(Some("")), Err(Rejection::Audience));
    assert_eq!(verdict(Some("orders")), Ok(()));
    assert_eq!(verdict(None), Ok(()));
    // Asking for the wrong one made nobody forget.
    assert_eq!(counts(&verifier), (4, 1, 1));
}

#[test]
fn what_was_refused_is_not_kept() {
    let (verifier, _) = verifier();
    verifier.update(|state| {
        state
            .revocations
            .revoke_session(Uuid::nil(), Timestamp::MAX);
    });
    let good = good_token();
    let (signed, _) = good.rsplit_once('.').unwrap();
    for (token, expected) in [
        (String::new(), Rejection::Malformed("parts")),
        (format!("{signed}.AAAA"), Rejection::Signature),
        (with(json!({}), json!({"exp": 1})), Rejection::Expired),
        (with(json!({}), json!({"iss": "x"})), Rejection::Issuer),
        (with(json!({}), json!({"aud": "x"})), Rejection::Audience),
        (
            with(json!({}), json!({"sid": Uuid::nil()})),
            Rejection::SessionRevoked,
        ),
    ] {
        assert_eq!(verifier.verify(&token, None), Err(expected));
        assert_eq!(verifier.verify(&token, None), Err(expected));
    }
    assert_eq!(counts(&verifier), (0, 12, 0));
    // Too long to be worth a digest.
    assert_eq!(
        verifier.verify(&"x".repeat(9000), None),
        Err(Rejection::TooLong)
    );
    assert_eq!(counts(&verifier), (0, 12, 0));
}

#[test]
fn no_more_tokens_are_kept_than_the_policy_says() {
    let verifier = with_cache_of(64);
    for n in 0..300 {
        let token = with(json!({}), json!({"jti": Uuid::from_u128(n)}));
        assert!(verifier.verify(&token, None).is_ok());
    }
    let (_, misses, entries) = counts(&verifier);
    assert_eq!(misses, 300);
    assert!((1..=64).contains(&entries), "{entries}");

    let none = with_cache_of(0);
    for _ in 0..2 {
        assert!(none.verify(&good_token(), None).is_ok());
    }
    assert_eq!(counts(&none), (0, 2, 0));
    // The most is bounded, and costs nothing before it is used.
    assert!(
        with_cache_of(usize::MAX)
            .verify(&good_token(), None)
            .is_ok()
    );
}

/// Random changes, moves of the clock and questions, put to a verifier that remembers and to one that
/// does not: they never answer differently.
#[test]
fn the_cache_changes_no_answer() {
    let clock = Arc::new(MockClock::default());
    let new = |cached_tokens| {
        let policy = Policy {
            cached_tokens,
            ..Policy::default()
        };
        Verifier::new(clock.clone(), policy)
    };
    let (caching, plain) = (new(6), new(0));
    let session = |n: usize| Uuid::from_u128(n as u128);
    let tokens: Vec<String> = (0..12_usize)
        .map(|n| {
            let kid = ["a", "b"][n % 2];
            let audience = ["orders", "billing", "elsewhere"][n / 4];
            let issuer = if n == 5 {
                "https://new.example.com"
            } else {
                ISSUER
            };
            let header = merged(good_header(), json!({"kid": kid}));
            let claims = json!({
                "sid": session(n), "epoch": n % 4, "exp": NOW + [300, 600, 900][n % 3],
                "aud": [audience], "iss": issuer,
            });
            let claims = merged(good_claims(), claims);
            Signer::ed25519().token(&header.to_string(), &claims.to_string())
        })
        .collect();

    let mut seed: u64 = 0x5eed;
    // Knuth's multiplier: good enough to shuffle with.
    let mut below = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % bound
    };
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..60 {
        clock.set_wall(NOW * 1000);
        let mut fresh = trust_state();
        fresh.keys = countersign_verifier::KeySet::default();
        for kid in ["a", "b"] {
            let key = Signer::ed25519().public(kid, KeyState::Active);
            fresh.keys.insert(key);
        }
        caching.replace(fresh.clone());
        plain.replace(fresh);
        for _ in 0..150 {
            let (what, n) = (below(60), below(12));
            let kid = ["a", "b"][n % 2];
            let change = |state: &mut TrustState| match what {
                0 => state.revocations.revoke_session(session(n), Timestamp::MAX),
                1 => state
                    .revocations
                    .revoke_user(USER, [0, 1, 2][n % 3], Timestamp::MAX),
                2 if n < 2 => state.revocations.revoke_key(kid),
                3 => state.keys.remove(kid),
                4 => state
                    .keys
                    .insert(Signer::foreign().public(kid, KeyState::Active)),
                5 | 6 => state
                    .keys
                    .insert(Signer::ed25519().public(kid, KeyState::Next)),
                7 => state.issuer = "https://new.example.com".into(),
                8 | 9 => state.issuer = ISSUER.into(),
                10 => state.audiences = vec!["elsewhere".into()],
                11 => state.audiences = trust_state().audiences,
                _ => {}
            };
            caching.update(change);
            plain.update(change);
            if what == 12 {
                clock.set_wall((NOW + [-50, 0, 310, 620, 950][below(5)]) * 1000);
            }
            let token = &tokens[below(12)];
            let audience = [None, Some("orders"), Some("billing")][below(3)];
            let answer = plain.verify(token, audience);
            assert_eq!(caching.verify(token, audience), answer);
            let label = answer.map_or_else(|rejection| rejection.label(), |_| "good");
            *answers.entry(label).or_insert(0) += 1;
        }
    }
    // The run went through enough to mean something.
    assert!(answers["good"] > 500, "{answers:?}");
    assert!(answers.len() >= 9, "{answers:?}");
    assert!(caching.cache_counts().hits > 500);
    assert_eq!(plain.cache_counts().hits, 0);
}
