//! API keys where an access token stands.

use countersign_verifier::{ApiKey, ApiKeyHash, Credential, Rejection, Subject};
use jiff::Timestamp;

use crate::minting::{KEY, NOW, USER, api_key, secret, verifier};

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_live_key_gives_its_caller() {
    let (verifier, _) = verifier();
    let text = secret(1);
    verifier.update(|state| state.api_keys.insert(api_key(&[(&text, None)])));
    let caller = verifier.verify(&text, Some("orders")).unwrap();
    assert_eq!(caller.subject, Subject::User(USER));
    assert_eq!(
        caller.credential,
        Credential::ApiKey {
            id: KEY,
            hash: ApiKeyHash::of(&text).unwrap()
        }
    );
    assert_eq!(caller.client_id, "api_key:importer");
    assert_eq!((caller.roles.len(), caller.session_id()), (0, None));
    assert_eq!(caller.scopes, ["orders.read"]);
    assert_eq!(caller.issued_at, second(NOW - 60));
    assert_eq!(caller.expires_at, None);
    // No token was looked at, and no signature.
    let counts = verifier.cache_counts();
    assert_eq!((counts.hits, counts.misses, counts.entries), (0, 0, 0));
}

#[test]
fn what_is_not_a_live_key_is_refused() {
    let (verifier, _) = verifier();
    let text = secret(1);
    assert_eq!(verifier.verify(&text, None), Err(Rejection::UnknownApiKey));
    let malformed = Err(Rejection::Malformed("api key"));
    assert_eq!(verifier.verify("csk_", None), malformed);
    assert_eq!(verifier.verify(&text[..text.len() - 1], None), malformed);
    assert_eq!(
        verifier.verify(&text.to_uppercase(), None),
        Err(Rejection::Malformed("parts"))
    );

    verifier.update(|state| state.api_keys.insert(api_key(&[(&text, None)])));
    assert!(verifier.verify(&text, None).is_ok());
    verifier.update(|state| state.api_keys.remove(KEY));
    assert_eq!(verifier.verify(&text, None), Err(Rejection::UnknownApiKey));
}

#[test]
fn a_key_is_for_its_audience() {
    let (verifier, _) = verifier();
    let text = secret(1);
    let verdict = |audience: &[&str], asked| {
        let audience = audience.iter().map(|&name| name.to_owned()).collect();
        let key = api_key(&[(&text, None)]);
        verifier.update(|state| state.api_keys.insert(ApiKey { audience, ..key }));
        verifier.verify(&text, asked).map(|_| ())
    };
    assert_eq!(verdict(&["orders"], Some("orders")), Ok(()));
    assert_eq!(verdict(&["orders"], None), Ok(()));
    for (audience, asked) in [
        (&["orders"][..], Some("billing")),
        (&["orders"], Some("")),
        (&["elsewhere"], None),
        (&[], None),
        (&[], Some("orders")),
    ] {
        let refused = verdict(audience, asked);
        assert_eq!(refused, Err(Rejection::Audience), "{audience:?}, {asked:?}");
    }
}

#[test]
fn a_key_and_each_of_its_secrets_end_on_the_very_second_without_leeway() {
    let (verifier, clock) = verifier();
    let (old, new) = (secret(1), secret(2));
    let key = api_key(&[(&old, Some(NOW + 10)), (&new, None)]);
    let expires_at = Some(second(NOW + 20));
    verifier.update(|state| state.api_keys.insert(ApiKey { expires_at, ..key }));
    let verdict = |text: &str, milliseconds| {
        clock.set_wall(milliseconds);
        verifier.verify(text, None).map(|caller| caller.expires_at)
    };
    assert_eq!(
        verdict(&old, (NOW + 10) * 1000 - 1),
        Ok(Some(second(NOW + 10)))
    );
    assert_eq!(verdict(&old, (NOW + 10) * 1000), Err(Rejection::Expired));
    assert_eq!(
        verdict(&new, (NOW + 20) * 1000 - 1),
        Ok(Some(second(NOW + 20)))
    );
    assert_eq!(verdict(&new, (NOW + 20) * 1000), Err(Rejection::Expired));
}
