//! Another implementation reads our tokens and keys, and we read its tokens.

use countersign_verifier::{Claims, KeyState};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::json;

use crate::minting::{
    ISSUER, Signer, good_claims, good_header, good_token, merged, trust_state, verifier,
};

fn pkcs8(signer: &Signer) -> Vec<u8> {
    match signer {
        Signer::Ed25519(pair) => pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
        Signer::Es256(pair) => pair.to_pkcs8v1().unwrap().as_ref().to_vec(),
    }
}

#[test]
fn tokens_of_another_implementation_verify() {
    let (verifier, _) = verifier();
    let claims: Claims = serde_json::from_value(good_claims()).unwrap();
    let ed25519 = EncodingKey::from_ed_der(&pkcs8(&Signer::ed25519()));
    let es256 = EncodingKey::from_ec_der(&pkcs8(&Signer::es256()));
    for (kid, algorithm, key) in [
        ("ed", Algorithm::EdDSA, ed25519),
        ("p256", Algorithm::ES256, es256),
    ] {
        let mut header = Header::new(algorithm);
        header.typ = Some("at+jwt".into());
        header.kid = Some(kid.into());
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        assert_eq!(
            verifier.verify(&token, Some("orders")).unwrap().user_id(),
            Some(claims.sub),
            "{kid}"
        );
    }
}

#[test]
fn another_implementation_verifies_our_tokens_with_our_jwks() {
    let jwks = serde_json::to_value(json!({"keys": trust_state().keys.jwks()})).unwrap();
    let jwks: JwkSet = serde_json::from_value(jwks).unwrap();
    let es256 = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
    for (kid, algorithm, token) in [
        ("ed", Algorithm::EdDSA, good_token()),
        (
            "p256",
            Algorithm::ES256,
            Signer::es256().token(&es256, &good_claims().to_string()),
        ),
    ] {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&["orders"]);
        let key = DecodingKey::from_jwk(jwks.find(kid).unwrap()).unwrap();
        // The library reads the machine's clock: the token's time is far from over.
        validation.validate_exp = false;
        let decoded = jsonwebtoken::decode::<Claims>(&token, &key, &validation).unwrap();
        assert_eq!(
            serde_json::to_value(decoded.claims).unwrap(),
            good_claims(),
            "{kid}"
        );
    }
    assert_eq!(jwks.keys.len(), 2);
    assert_eq!(
        trust_state().keys.get("p256").unwrap().state(),
        KeyState::Next
    );
}
