//! Claims that a genuine signature covers and that are refused all the same.

use std::sync::Arc;
use std::time::Duration;

use countersign_verifier::{Caller, Claims, Credential, Policy, Rejection, Subject, Verifier};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::minting::{
    ISSUER, MockClock, NOW, SESSION, Signer, TOKEN, USER, appended, good_claims, good_header,
    good_token, trust_state, verifier, with,
};

const LEEWAY: i64 = 5;
const MALFORMED: Rejection = Rejection::Malformed("claims");

fn verdict(claims: Value) -> Result<Arc<Caller>, Rejection> {
    verifier().0.verify(&with(json!({}), claims), None)
}

fn verdict_on_text(claims: &str) -> Result<Arc<Caller>, Rejection> {
    let token = Signer::ed25519().token(&good_header().to_string(), claims);
    verifier().0.verify(&token, None)
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_good_token_gives_its_caller() {
    let caller = verdict(json!({})).unwrap();
    assert_eq!(
        *caller,
        Caller {
            subject: Subject::User(USER),
            credential: Credential::AccessToken {
                session_id: SESSION,
                token_id: TOKEN,
                key_id: "ed".into(),
                epoch: 3,
                auth_methods: vec!["pwd".into()],
                authenticated_at: second(NOW - 60),
            },
            client_id: "countersign".into(),
            roles: vec!["clerk".into()],
            scopes: vec!["orders.read".into(), "orders.write".into()],
            audience: vec!["orders".into()],
            issued_at: second(NOW),
            expires_at: Some(second(NOW + 900)),
        }
    );
    assert!(caller.has_scope("orders.read") && caller.has_role("clerk"));
    assert!(!caller.has_scope("orders") && !caller.has_scope("") && !caller.has_role("Clerk"));
    assert!(verdict(json!({"scope": ""})).unwrap().scopes.is_empty());
}

#[test]
fn claims_are_written_as_they_are_read() {
    let claims: Claims = serde_json::from_value(good_claims()).unwrap();
    assert_eq!(serde_json::to_value(&claims).unwrap(), good_claims());
    let text = serde_json::to_string(&claims).unwrap();
    assert_eq!(serde_json::from_str::<Claims>(&text).unwrap(), claims);
}

#[test]
fn every_claim_is_required() {
    for name in good_claims().as_object().unwrap().keys() {
        assert_eq!(
            verdict(json!({ name: null })),
            Err(MALFORMED),
            "{name} missing"
        );
        let mut claims = good_claims();
        claims[name] = Value::Null;
        assert_eq!(
            verdict_on_text(&claims.to_string()),
            Err(MALFORMED),
            "{name} null"
        );
    }
}

#[test]
fn no_claim_is_named_twice() {
    for (name, value) in good_claims().as_object().unwrap() {
        let text = appended(&good_claims(), &format!("\"{name}\":{value}"));
        assert_eq!(verdict_on_text(&text), Err(MALFORMED), "{name} twice");
    }
    let unlisted = appended(&good_claims(), r#""x":1,"x":2"#);
    assert_eq!(verdict_on_text(&unlisted), Err(MALFORMED));
    let escaped = appended(&good_claims(), r#""\u0065xp":9999999999"#);
    assert_eq!(verdict_on_text(&escaped), Err(MALFORMED));
}

#[test]
fn claims_are_one_json_object() {
    let good = good_claims().to_string();
    let values = [
        "iss",
        "sub",
        "aud",
        "exp",
        "iat",
        "nbf",
        "jti",
        "sid",
        "client_id",
        "scope",
        "roles",
        "amr",
        "auth_time",
        "epoch",
    ]
    .map(|name| good_claims()[name].clone());
    let array = json!(values).to_string();
    for text in [
        array,
        format!("[{good}]"),
        format!("{good}{good}"),
        format!("{good},"),
        String::new(),
    ] {
        assert_eq!(verdict_on_text(&text), Err(MALFORMED), "{text}");
    }
    // Claims that nobody here knows are ignored (RFC 7519, section 4).
    let more = appended(&good_claims(), r#""later":{"a":1.5,"a":null}"#);
    assert!(verdict_on_text(&more).is_ok());
}

#[test]
fn times_and_the_epoch_are_integers() {
    for name in ["exp", "iat", "nbf", "auth_time", "epoch"] {
        for value in [
            "1800000900.0",
            "1.8e9",
            "\"1800000900\"",
            "[1800000900]",
            "true",
            "{}",
            "1e400",
            "9223372036854775808",
            "-9223372036854775809",
            "18446744073709551616",
        ] {
            let mut claims = good_claims();
            claims.as_object_mut().unwrap().remove(name);
            let text = appended(&claims, &format!("\"{name}\":{value}"));
            assert_eq!(verdict_on_text(&text), Err(MALFORMED), "{name}: {value}");
        }
    }
    for name in ["exp", "iat", "nbf", "auth_time"] {
        for value in [i64::MAX, i64::MIN] {
            assert_eq!(
                verdict(json!({ name: value })),
                Err(MALFORMED),
                "{name}: {value}"
            );
        }
    }
}

#[test]
fn other_claims_have_their_types_too() {
    for (name, value) in [
        ("iss", json!([ISSUER])),
        ("sub", json!("admin")),
        ("sub", json!(1)),
        ("sid", json!("")),
        ("jti", json!(7)),
        ("aud", json!({"orders": true})),
        ("aud", json!(["orders", 1])),
        ("scope", json!(["orders.read"])),
        ("roles", json!("admin")),
        ("amr", json!("pwd")),
        ("client_id", json!(0)),
    ] {
        assert_eq!(
            verdict(json!({ name: value })),
            Err(MALFORMED),
            "{name}: {value}"
        );
    }
}

#[test]
fn the_issuer_is_exact() {
    for issuer in [
        "",
        "https://auth.example.com/",
        "https://AUTH.example.com",
        "https://auth.example.co",
        "https://auth.example.com.attacker.example",
        " https://auth.example.com",
    ] {
        assert_eq!(
            verdict(json!({ "iss": issuer })),
            Err(Rejection::Issuer),
            "{issuer}"
        );
    }
}

#[test]
fn the_audience_is_exact() {
    let (verifier, _) = verifier();
    let verdict = |aud: Value, asked: Option<&str>| {
        verifier
            .verify(&with(json!({}), json!({ "aud": aud })), asked)
            .map(|caller| caller.audience.clone())
    };
    for aud in [
        json!([]),
        json!("order"),
        json!(["Orders"]),
        json!("orders "),
        json!([""]),
    ] {
        assert_eq!(
            verdict(aud.clone(), None),
            Err(Rejection::Audience),
            "{aud}"
        );
        assert_eq!(
            verdict(aud.clone(), Some("orders")),
            Err(Rejection::Audience),
            "{aud}"
        );
    }
    let both = json!(["elsewhere", "billing"]);
    assert_eq!(
        verdict(both.clone(), None).unwrap(),
        ["elsewhere", "billing"]
    );
    // What a call asks for need not be configured, and being configured is not enough.
    assert!(verdict(both.clone(), Some("elsewhere")).is_ok());
    assert_eq!(
        verdict(both.clone(), Some("orders")),
        Err(Rejection::Audience)
    );
    assert_eq!(verdict(both, Some("")), Err(Rejection::Audience));
    assert_eq!(
        verdict(json!("orders"), Some("orders")).unwrap(),
        ["orders"]
    );
}

#[test]
fn a_token_expires_on_the_very_second_plus_leeway() {
    let (verifier, clock) = verifier();
    let token = good_token();
    let dead = (NOW + 900 + LEEWAY) * 1000;
    clock.set_wall(dead - 1);
    assert!(verifier.verify(&token, None).is_ok());
    clock.set_wall(dead);
    assert_eq!(verifier.verify(&token, None), Err(Rejection::Expired));
    assert_eq!(verdict(json!({"exp": -1})), Err(Rejection::Expired));
    assert_eq!(verdict(json!({"exp": 0})), Err(Rejection::Expired));
}

#[test]
fn a_token_from_the_future_is_refused() {
    for (name, expected) in [
        ("nbf", Rejection::NotYetValid),
        ("iat", Rejection::IssuedInFuture),
    ] {
        assert!(
            verdict(json!({ name: NOW + LEEWAY })).is_ok(),
            "{name} within the leeway"
        );
        assert_eq!(
            verdict(json!({ name: NOW + LEEWAY + 1 })),
            Err(expected),
            "{name} beyond it"
        );
    }
}

#[test]
fn leeway_is_the_policys_but_never_beyond_its_bound() {
    for (leeway, effective) in [(0, 0), (30, 30), (31, 30), (u64::MAX, 30)] {
        let clock = Arc::new(MockClock::default());
        let policy = Policy {
            leeway: Duration::from_secs(leeway),
            ..Policy::default()
        };
        let verifier = Verifier::new(clock.clone(), policy);
        verifier.replace(trust_state());
        clock.set_wall((NOW + 900 + effective) * 1000 - 1);
        assert!(verifier.verify(&good_token(), None).is_ok(), "{leeway}");
        clock.set_wall((NOW + 900 + effective) * 1000);
        assert_eq!(
            verifier.verify(&good_token(), None),
            Err(Rejection::Expired),
            "{leeway}"
        );
    }
}

#[test]
fn a_revoked_session_is_refused_and_no_other() {
    let (verifier, _) = verifier();
    verifier.update(|state| {
        state
            .revocations
            .revoke_session(Uuid::from_u128(9), Timestamp::MAX);
    });
    assert!(verifier.verify(&good_token(), None).is_ok());
    verifier.update(|state| state.revocations.revoke_session(SESSION, Timestamp::MAX));
    assert_eq!(
        verifier.verify(&good_token(), None),
        Err(Rejection::SessionRevoked)
    );
}

#[test]
fn an_epoch_behind_is_refused() {
    let (verifier, _) = verifier();
    verifier.update(|state| state.revocations.revoke_user(SESSION, 99, Timestamp::MAX));
    verifier.update(|state| state.revocations.revoke_user(USER, 3, Timestamp::MAX));
    assert!(verifier.verify(&good_token(), None).is_ok());
    verifier.update(|state| state.revocations.revoke_user(USER, 4, Timestamp::MAX));
    assert_eq!(
        verifier.verify(&good_token(), None),
        Err(Rejection::UserRevoked)
    );
    assert!(
        verifier
            .verify(&with(json!({}), json!({"epoch": 4})), None)
            .is_ok()
    );
}

#[test]
fn nothing_is_judged_before_the_signature() {
    let (verifier, _) = verifier();
    verifier.update(|state| state.revocations.revoke_session(SESSION, Timestamp::MAX));
    let token = with(json!({}), json!({"iss": "other", "exp": "soon"}));
    let (signed, _) = token.rsplit_once('.').unwrap();
    assert_eq!(
        verifier.verify(&format!("{signed}.AAAA"), None),
        Err(Rejection::Signature)
    );
}
