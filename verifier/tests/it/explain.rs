//! Explaining a verdict: the same one, and nothing of a token but what its signature proves.

use countersign_verifier::{Explanation, Policy, Rejection, Verifier};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::minting::{
    KEY, MockClock, NOW, SESSION, Signer, USER, api_key, good_token, secret, verifier, with,
};

fn explain(verifier: &Verifier, credential: &str) -> Explanation {
    let explained = verifier.explain(credential, None).unwrap();
    let verdict = verifier.verify(credential, None);
    assert_eq!(explained.rejection, verdict.as_ref().err().copied());
    if let Ok(caller) = verdict {
        assert_eq!(explained.caller, Some(caller));
    }
    explained
}

#[test]
fn nothing_is_explained_before_anything_is_known() {
    let clock = std::sync::Arc::new(MockClock::default());
    let verifier = Verifier::new(clock, Policy::default());
    assert_eq!(verifier.explain("x", None), Err(Rejection::NotReady));
}

#[test]
fn a_token_without_a_good_signature_shows_nothing() {
    let (verifier, _) = verifier();
    let good = good_token();
    let (signed, _) = good.rsplit_once('.').unwrap();
    let (header, _) = good.split_once('.').unwrap();
    let other = with(
        json!({}),
        json!({"sub": "0190a5d0-ac96-774b-8cce-b302099a8057"}),
    );
    let (_, elsewhere) = other.split_once('.').unwrap();
    for forged in [
        format!("{signed}.{}", "A".repeat(86)),
        format!("{header}.{elsewhere}A"),
        signed.to_owned(),
        "x".to_owned(),
        "x".repeat(10_000),
        secret(1),
    ] {
        let Explanation {
            rejection,
            caller,
            issuer,
            not_before,
            off_by,
            min_epoch,
        } = explain(&verifier, &forged);
        assert!(rejection.is_some(), "{forged}");
        assert_eq!((caller, issuer, not_before), (None, None, None));
        assert_eq!((off_by, min_epoch), (None, None));
    }
    // One that was good, whose key is trusted no more.
    assert_eq!(explain(&verifier, &good).rejection, None);
    verifier.update(|state| state.revocations.revoke_key("ed"));
    let explained = explain(&verifier, &good);
    assert_eq!(
        (explained.rejection, explained.caller),
        (Some(Rejection::KeyRevoked), None)
    );
}

#[test]
fn a_refusal_says_by_how_much_and_what_is_known() {
    let (verifier, clock) = verifier();
    let good = good_token();
    verifier.update(|state| state.revocations.revoke_user(USER, 4, Timestamp::MAX));
    let explained = explain(&verifier, &good);
    assert_eq!(explained.min_epoch, Some(4));
    assert!(explained.caller.is_some());
    assert!(
        explained
            .to_string()
            .ends_with("(its epoch is 3, the least 4)")
    );
    verifier.update(|state| state.revocations.revoke_session(SESSION, Timestamp::MAX));
    let explained = explain(&verifier, &good);
    assert_eq!(explained.rejection, Some(Rejection::SessionRevoked));
    assert_eq!(explained.min_epoch, None);
    clock.set_wall((NOW + 900 + 60) * 1000);
    let explained = explain(&verifier, &good);
    assert_eq!(explained.off_by, Some(SignedDuration::from_secs(60)));
    assert_eq!(
        explained.to_string(),
        "the credential has expired, 60 seconds ago"
    );
    assert_eq!(explained.not_before, Timestamp::from_second(NOW).ok());

    let early = with(json!({}), json!({"nbf": NOW + 1_000, "exp": NOW + 2_000}));
    let explained = explain(&verifier, &early);
    assert_eq!(explained.rejection, Some(Rejection::NotYetValid));
    assert_eq!(explained.off_by, Some(SignedDuration::from_secs(40)));
}

#[test]
fn an_api_key_that_has_ended_is_still_known() {
    let (verifier, clock) = verifier();
    let text = secret(1);
    verifier.update(|state| state.api_keys.insert(api_key(&[(&text, Some(NOW + 10))])));
    assert_eq!(explain(&verifier, &text).rejection, None);
    clock.set_wall((NOW + 15) * 1000);
    let explained = explain(&verifier, &text);
    assert_eq!(explained.rejection, Some(Rejection::Expired));
    assert_eq!(explained.off_by, Some(SignedDuration::from_secs(5)));
    assert!(explained.caller.is_some() && explained.issuer.is_none());
    verifier.update(|state| state.api_keys.remove(KEY));
    assert_eq!(explain(&verifier, &text).caller, None);
}

#[test]
fn of_a_key_that_is_not_known_here_no_claims_are_shown() {
    let (verifier, _) = verifier();
    let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "ed"}).to_string();
    let claims = json!({"sub": USER.to_string()}).to_string();
    let foreign = Signer::foreign().token(&header, &claims);
    let explained = explain(&verifier, &foreign);
    assert_eq!(explained.rejection, Some(Rejection::Signature));
    assert_eq!((explained.caller, explained.issuer), (None, None));
}
