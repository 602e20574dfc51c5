//! Whether a caller that was good is so still.

use std::sync::Arc;

use countersign_verifier::{
    ApiKey, Caller, Credential, KeyState, Policy, Rejection, Subject, TrustState, Verifier,
};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::minting::{
    KEY, MockClock, NOW, SESSION, Signer, USER, api_key, good_token, secret, verifier, with,
};

/// What a recheck of a good token's caller says after this change.
fn after(change: impl FnOnce(&mut TrustState)) -> Result<(), Rejection> {
    let (verifier, _) = verifier();
    let caller = verifier.verify(&good_token(), None).unwrap();
    assert_eq!(verifier.recheck(&caller), Ok(()));
    verifier.update(change);
    verifier.recheck(&caller)
}

#[test]
fn a_token_is_revoked_by_session_user_and_key() {
    for (change, expected) in [
        (
            (|state| state.revocations.revoke_session(SESSION, Timestamp::MAX))
                as fn(&mut TrustState),
            Err(Rejection::SessionRevoked),
        ),
        (
            |state| {
                let other = Uuid::nil();
                state.revocations.revoke_session(other, Timestamp::MAX);
            },
            Ok(()),
        ),
        (
            |state| state.revocations.revoke_user(USER, 4, Timestamp::MAX),
            Err(Rejection::UserRevoked),
        ),
        (
            |state| state.revocations.revoke_user(USER, 3, Timestamp::MAX),
            Ok(()),
        ),
        (
            |state| state.revocations.revoke_key("ed"),
            Err(Rejection::KeyRevoked),
        ),
        (|state| state.revocations.revoke_key("p256"), Ok(())),
        (|state| state.keys.remove("ed"), Err(Rejection::UnknownKey)),
        (
            |state| {
                let retired = Signer::ed25519().public("ed", KeyState::Retired);
                state.keys.insert(retired);
            },
            Ok(()),
        ),
    ] {
        assert_eq!(after(change), expected);
    }
}

#[test]
fn a_token_expires_with_the_leeway_that_it_was_verified_with() {
    let (verifier, clock) = verifier();
    let caller = verifier.verify(&good_token(), None).unwrap();
    let dead = (NOW + 900 + 5) * 1000;
    clock.set_wall(dead - 1);
    assert_eq!(verifier.recheck(&caller), Ok(()));
    clock.set_wall(dead);
    assert_eq!(verifier.recheck(&caller), Err(Rejection::Expired));
}

#[test]
fn an_api_key_is_rechecked_by_what_it_may_do_now() {
    let (verifier, clock) = verifier();
    let (old, new) = (secret(1), secret(2));
    let put = |key| verifier.update(|state| state.api_keys.insert(key));
    let only_old = || api_key(&[(&old, None)]);
    put(only_old());
    let caller = verifier.verify(&old, None).unwrap();
    assert_eq!(verifier.recheck(&caller), Ok(()));

    // Its name says nothing about what it may do.
    let name = "another".into();
    put(ApiKey { name, ..only_old() });
    assert_eq!(verifier.recheck(&caller), Ok(()));

    for scopes in [vec![], vec!["orders.read".into(), "orders.write".into()]] {
        put(ApiKey {
            scopes,
            ..only_old()
        });
        assert_eq!(verifier.recheck(&caller), Err(Rejection::ScopesChanged));
    }
    let audience = vec!["billing".into()];
    put(ApiKey {
        audience,
        ..only_old()
    });
    assert_eq!(verifier.recheck(&caller), Err(Rejection::ScopesChanged));

    // Rotated: the old secret lives on for a while, and then is gone.
    put(api_key(&[(&old, Some(NOW + 10)), (&new, None)]));
    assert_eq!(verifier.recheck(&caller), Ok(()));
    clock.set_wall((NOW + 10) * 1000);
    assert_eq!(verifier.recheck(&caller), Err(Rejection::Expired));
    put(api_key(&[(&new, None)]));
    assert_eq!(verifier.recheck(&caller), Err(Rejection::UnknownApiKey));

    put(only_old());
    assert_eq!(verifier.recheck(&caller), Ok(()));
    verifier.update(|state| state.api_keys.remove(KEY));
    assert_eq!(verifier.recheck(&caller), Err(Rejection::UnknownApiKey));
}

#[test]
fn a_certificate_ends_without_leeway() {
    let (verifier, clock) = verifier();
    let caller = Caller {
        subject: Subject::Workload("spiffe://example.org/orders".into()),
        credential: Credential::Certificate,
        client_id: "orders".into(),
        roles: vec![],
        scopes: vec![],
        audience: vec![],
        issued_at: Timestamp::from_second(NOW - 60).unwrap(),
        expires_at: Some(Timestamp::from_second(NOW + 60).unwrap()),
    };
    clock.set_wall((NOW + 60) * 1000 - 1);
    assert_eq!(verifier.recheck(&caller), Ok(()));
    clock.set_wall((NOW + 60) * 1000);
    assert_eq!(verifier.recheck(&caller), Err(Rejection::Expired));
}

#[test]
fn a_verifier_that_knows_nothing_finds_nobody_good() {
    let (ready, _) = verifier();
    let text = secret(1);
    ready.update(|state| state.api_keys.insert(api_key(&[(&text, None)])));
    let unready = Verifier::new(Arc::new(MockClock::default()), Policy::default());
    for credential in [text, with(json!({}), json!({}))] {
        let caller = ready.verify(&credential, None).unwrap();
        assert_eq!(unready.recheck(&caller), Err(Rejection::NotReady));
    }
}
