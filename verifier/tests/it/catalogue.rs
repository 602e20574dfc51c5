//! Every attack on tokens that has a name, and tens of thousands that have none: not
//! one is accepted, no answer tells them apart, and nothing is fetched. `attacks` and
//! `claims` say of the instructive ones why they are refused.

mod contents;
mod forms;
mod keys;
mod signatures;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use axum::http::HeaderValue;
use countersign_verifier::layer::{GuardLayer, Require, Routes};
use countersign_verifier::{Algorithm, KeyState, PublicKey};
use serde_json::json;

use crate::layer::{BEARER, ask, bearer};
use crate::minting::{
    Signer, decode, encode, good_claims, good_header, good_token, merged, verifier,
};

/// Named attacks.
#[derive(Default)]
struct Catalogue(Vec<(String, String)>);

impl Catalogue {
    fn add(&mut self, name: impl Into<String>, token: impl Into<String>) {
        self.0.push((name.into(), token.into()));
    }

    /// `fetch` is a URL at which nobody should ever look.
    fn new(fetch: &str) -> Self {
        let mut all = Self::default();
        all.public_keys_as_secrets();
        all.no_signature();
        all.other_algorithms();
        all.key_ids(fetch);
        all.keys_of_their_own(fetch);
        all.other_headers();
        all.types_of_claims();
        all.good_signatures_over_bad_claims(fetch);
        all.members_named_twice();
        all.other_kinds();
        all.other_spellings();
        all.es256_signatures();
        all.ed25519_signatures();
        all.lengths();
        all
    }
}

fn signed_by(header: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", encode(signature))
}

fn header_of(header: &str) -> String {
    Signer::ed25519().token(header, &good_claims().to_string())
}

fn claims_of(claims: &str) -> String {
    Signer::ed25519().token(&good_header().to_string(), claims)
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.map(byte).collect()
}

#[test]
fn no_named_attack_is_accepted_all_are_answered_alike_and_nothing_is_fetched() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.set_nonblocking(true).unwrap();
    let fetch = format!("http://{}/jwks.json", nobody.local_addr().unwrap());
    let Catalogue(attacks) = Catalogue::new(&fetch);
    let names: BTreeSet<_> = attacks.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), attacks.len(), "each has a name of its own");
    assert!(attacks.len() >= 500, "{}", attacks.len());

    let verifier = Arc::new(verifier().0);
    let routes = Routes::default().path("/orders", Require::caller());
    let guard = GuardLayer::new(Arc::clone(&verifier), routes)
        .unwrap()
        .audience("orders");
    let answer = |token: &str, content_type: &str| {
        let headers = [
            (BEARER, bearer(token)),
            ("content-type", content_type.to_owned()),
        ];
        let headers = headers
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let response = ask(&guard, "/orders", &headers);
        (
            response.body().clone(),
            response.status(),
            response.headers().clone(),
        )
    };
    assert!(verifier.verify(&good_token(), None).is_ok());
    assert_eq!(answer(&good_token(), "application/json").1, 200);
    for content_type in ["application/json", "application/grpc"] {
        let first = answer("a.b.c", content_type);
        for (name, token) in &attacks {
            assert!(verifier.verify(token, None).is_err(), "{name}");
            // Some can be written nowhere but in a message.
            if HeaderValue::from_str(token).is_ok() && !token.starts_with(' ') {
                assert_eq!(answer(token, content_type), first, "{name}");
            }
        }
    }
    let visit = nobody.accept().expect_err("nobody comes");
    assert_eq!(visit.kind(), ErrorKind::WouldBlock);
}

/// Each letter as half of all others, each letter away, each beginning and each end;
/// `attacks` has each bit.
#[test]
fn no_altered_token_is_accepted() {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.";
    let (verifier, _) = verifier();
    let es256 = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
    let es256 = Signer::es256().token(&es256, &good_claims().to_string());
    let mut tried = 0;
    for good in [good_token(), es256] {
        assert!(verifier.verify(&good, None).is_ok());
        let mut refused = |altered: &[u8], what: &str, at: usize| {
            let altered = std::str::from_utf8(altered).unwrap();
            assert!(
                verifier.verify(altered, None).is_err(),
                "{what} {at}: {altered}"
            );
            tried += 1;
        };
        let good = good.as_bytes();
        for at in 0..good.len() {
            let mut letters = good.to_vec();
            for letter in LETTERS.iter().skip(at % 2).step_by(2) {
                letters[at] = *letter;
                if letters != good {
                    refused(&letters, "another letter at", at);
                }
            }
            refused(&[&good[..at], &good[at + 1..]].concat(), "no letter at", at);
            refused(&good[..at], "the beginning up to", at);
            refused(&good[at + 1..], "the end after", at);
        }
    }
    assert!(tried >= 43_000, "{tried}");
}

/// Good signatures of RFCs by an algorithm that we do not take.
#[test]
fn es512_of_rfc_7515_a_4_and_of_rfc_7520_4_3_is_not_taken() {
    let (verifier, _) = verifier();
    for (x, y, token) in [
        (
            "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
            "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
            concat!(
                "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPW",
                "ROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKv",
                "U8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
            ),
        ),
        (
            "AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt",
            "AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1",
            concat!(
                "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.SXTigJlzIGEgZGF",
                "uZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9",
                "hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW9",
                "1IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4.AE_R_YZCChjn4791jSQCrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUII",
                "UnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_sDDyYjnAMDxXPn7XrT0lw-kvAD890jl8e2puQens_IEK",
                "BpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2"
            ),
        ),
    ] {
        let point = [vec![4], decode(x), decode(y)].concat();
        let (message, signature) = token.rsplit_once('.').unwrap();
        // What is typed in here is what the RFC has.
        let key = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, &point);
        key.verify(message.as_bytes(), &decode(signature)).unwrap();
        for algorithm in [Algorithm::Es256, Algorithm::Ed25519] {
            assert!(PublicKey::new("k", algorithm, KeyState::Active, &point).is_err());
        }
        assert!(verifier.verify(token, None).is_err());
    }
    assert_eq!(Algorithm::from_name("ES512"), None);
}
