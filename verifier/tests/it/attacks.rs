//! Attacks on the form, the header and the signature, each with the exact reason for its refusal.

use aws_lc_rs::hmac;
use countersign_verifier::{KeyState, MAX_TOKEN_BYTES, Rejection};
use serde_json::{Value, json};

use crate::minting::{
    Signer, appended, decode, encode, good_claims, good_header, good_token, merged, verifier, with,
};

fn refused(token: &str, expected: Rejection, what: &str) {
    let (verifier, _) = verifier();
    assert_eq!(verifier.verify(token, None), Err(expected), "{what}");
}

fn header(header: &str) -> String {
    Signer::ed25519().token(header, &good_claims().to_string())
}

#[test]
fn other_forms_than_the_compact_one_are_refused() {
    let good = good_token();
    let [head, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!()
    };
    let alphabet = Rejection::Malformed("alphabet");
    let parts = Rejection::Malformed("parts");
    let base64url = Rejection::Malformed("base64url");
    let flattened =
        json!({"protected": head, "payload": claims, "signature": signature}).to_string();
    let general =
        json!({"payload": claims, "signatures": [{"protected": head, "signature": signature}]});

    for (token, expected, what) in [
        (String::new(), parts, "nothing"),
        ("a".into(), parts, "one part"),
        (format!("{head}.{claims}"), parts, "two parts"),
        (format!("{good}."), parts, "four parts, the last empty"),
        (format!(".{good}"), parts, "four parts, the first empty"),
        (format!("{good}.{signature}"), parts, "four parts"),
        (
            format!("{good}..{signature}"),
            parts,
            "five parts, as an encrypted token has",
        ),
        (
            "..".into(),
            Rejection::Malformed("header"),
            "three empty parts",
        ),
        (flattened, alphabet, "flattened JSON serialisation"),
        (general.to_string(), alphabet, "general JSON serialisation"),
        (
            format!("{head}=.{claims}.{signature}"),
            alphabet,
            "padding in the header",
        ),
        (
            format!("{head}.{claims}==.{signature}"),
            alphabet,
            "padding in the claims",
        ),
        (format!("{good}=="), alphabet, "padding in the signature"),
        (format!("{good}\n"), alphabet, "a line feed at the end"),
        (format!(" {good}"), alphabet, "a space before"),
        (format!("Bearer {good}"), alphabet, "the scheme before"),
        (good.replacen('.', "%2e", 1), alphabet, "an escaped dot"),
        (format!("{good}\0"), alphabet, "NUL"),
        (format!("{good}\u{e9}"), alphabet, "a letter beyond ASCII"),
        (
            format!("{head}+.{claims}.{signature}"),
            alphabet,
            "the other base64 alphabet",
        ),
        (
            format!("{head}.{claims}.A"),
            base64url,
            "a length no encoding has",
        ),
    ] {
        refused(&token, expected, what);
    }
}

#[test]
fn trailing_bits_are_refused_in_every_part() {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // A length that is no multiple of three leaves spare bits in the last letter.
    let spare = |json: Value| {
        let text = json.to_string();
        if text.len().is_multiple_of(3) {
            format!("{text} ")
        } else {
            text
        }
    };
    let token = Signer::ed25519().token(&spare(good_header()), &spare(good_claims()));
    assert!(verifier().0.verify(&token, None).is_ok());
    for part in 0..3 {
        let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        let last = parts[part].pop().unwrap();
        let index = ALPHABET.iter().position(|b| *b == last as u8).unwrap();
        parts[part].push(ALPHABET[index | 1].into());
        assert_ne!(parts.join("."), token);
        refused(
            &parts.join("."),
            Rejection::Malformed("base64url"),
            &format!("part {part}"),
        );
    }
}

#[test]
fn the_length_is_checked_first_and_to_the_byte() {
    refused(
        &"!".repeat(MAX_TOKEN_BYTES + 1),
        Rejection::TooLong,
        "one byte too long",
    );
    refused(
        &"!".repeat(MAX_TOKEN_BYTES),
        Rejection::Malformed("alphabet"),
        "as long as may be",
    );
    refused(&"a.b.c".repeat(1 << 20), Rejection::TooLong, "5 MiB");

    // Deep nesting and many members, in a header that is read before anything is verified.
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(2900), "]".repeat(2900));
    let token = format!("{}..", encode(deep));
    assert!(token.len() <= MAX_TOKEN_BYTES);
    assert!(verifier().0.verify(&token, None).is_err());
    let many: Vec<String> = (0..600).map(|n| format!("\"m{n}\":0")).collect();
    let token = format!("{}..", encode(format!("{{{}}}", many.join(","))));
    assert!(token.len() <= MAX_TOKEN_BYTES);
    refused(&token, Rejection::Type, "many members");
}

#[test]
fn the_algorithm_is_the_keys_own() {
    for alg in ["none", "None", "NONE", "nOnE", "", " none", "none\0"] {
        let unsigned = with(json!({"alg": alg}), json!({}));
        let (signed, _) = unsigned.rsplit_once('.').unwrap();
        refused(&format!("{signed}."), Rejection::Algorithm, "unsigned");
        refused(
            &unsigned,
            Rejection::Algorithm,
            "well signed, but says none",
        );
    }
    for alg in [
        "HS256", "RS256", "PS256", "ES384", "ES256K", "eddsa", "Ed25519", "EdDSA ",
    ] {
        refused(
            &with(json!({"alg": alg}), json!({})),
            Rejection::Algorithm,
            alg,
        );
    }
    refused(
        &with(json!({"alg": null}), json!({})),
        Rejection::Algorithm,
        "no alg",
    );
    refused(
        &with(json!({"alg": ["EdDSA"]}), json!({})),
        Rejection::Malformed("header"),
        "a list",
    );
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    let claims = good_claims().to_string();
    for kid in ["ed", "p256"] {
        let jwk = match kid {
            "ed" => Signer::ed25519().public(kid, KeyState::Active).jwk(),
            _ => Signer::es256().public(kid, KeyState::Active).jwk(),
        };
        let raw = decode(&jwk.x);
        let as_json = serde_json::to_vec(&jwk).unwrap();
        for secret in [raw, jwk.x.into_bytes(), as_json, Vec::new()] {
            let head = json!({"alg": "HS256", "typ": "at+jwt", "kid": kid}).to_string();
            let signed = format!("{}.{}", encode(head), encode(&claims));
            let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let token = format!(
                "{signed}.{}",
                encode(hmac::sign(&secret, signed.as_bytes()))
            );
            refused(&token, Rejection::Algorithm, kid);
        }
    }
}

#[test]
fn algorithms_and_keys_cannot_be_swapped() {
    let claims = good_claims().to_string();
    for (signer, kid, alg, expected) in [
        (Signer::ed25519(), "p256", "EdDSA", Rejection::Algorithm),
        (Signer::ed25519(), "p256", "ES256", Rejection::Signature),
        (Signer::ed25519(), "ed", "ES256", Rejection::Algorithm),
        (Signer::es256(), "ed", "ES256", Rejection::Algorithm),
        (Signer::es256(), "ed", "EdDSA", Rejection::Signature),
        (Signer::es256(), "p256", "EdDSA", Rejection::Algorithm),
    ] {
        let head = json!({"alg": alg, "typ": "at+jwt", "kid": kid}).to_string();
        refused(
            &signer.token(&head, &claims),
            expected,
            &format!("{kid} {alg}"),
        );
    }
}

#[test]
fn the_key_id_is_required_and_known() {
    refused(
        &with(json!({"kid": null}), json!({})),
        Rejection::Malformed("kid"),
        "none",
    );
    let null = header(r#"{"alg":"EdDSA","typ":"at+jwt","kid":null}"#);
    refused(&null, Rejection::Malformed("kid"), "null");
    for kid in [json!(1), json!(["ed"]), json!({"ed": 1}), json!(true)] {
        refused(
            &with(json!({ "kid": kid }), json!({})),
            Rejection::Malformed("header"),
            "a type",
        );
    }
    for kid in [
        "",
        "unknown",
        "ED",
        "ed ",
        "ed\0",
        "../../../dev/null",
        "/dev/null",
        "ed' OR '1'='1",
        "ed; select pg_sleep(5)",
        "| /bin/true",
        "http://attacker.example/jwks.json",
        "${jndi:x}",
    ] {
        refused(
            &with(json!({ "kid": kid }), json!({})),
            Rejection::UnknownKey,
            kid,
        );
    }
}

#[test]
fn only_access_tokens_are_accepted() {
    for typ in [
        "JWT",
        "jwt",
        "at",
        "at+jwt ",
        "at+jwt+x",
        "application/JWT",
        "text/at+jwt",
        "",
        "application/",
        "application/application/at+jwt",
        "id+jwt",
        "logout+jwt",
        "applicatio\u{e9}/at+jwt",
    ] {
        refused(
            &with(json!({ "typ": typ }), json!({})),
            Rejection::Type,
            typ,
        );
    }
    refused(
        &with(json!({"typ": null}), json!({})),
        Rejection::Type,
        "none",
    );
    refused(
        &with(json!({"typ": 1}), json!({})),
        Rejection::Malformed("header"),
        "a number",
    );
    for typ in [
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/At+Jwt",
    ] {
        let (verifier, _) = verifier();
        assert!(
            verifier
                .verify(&with(json!({ "typ": typ }), json!({})), None)
                .is_ok(),
            "{typ}"
        );
    }
}

#[test]
fn critical_extensions_are_refused_whatever_they_are() {
    for crit in [
        json!(["exp"]),
        json!([]),
        json!("b64"),
        json!(["b64"]),
        json!(false),
    ] {
        refused(
            &with(json!({"crit": crit, "b64": false}), json!({})),
            Rejection::Critical,
            "crit",
        );
    }
    let null = header(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"ed","crit":null}"#);
    refused(&null, Rejection::Critical, "null");
}

#[test]
fn a_token_cannot_bring_its_own_key() {
    let attacker = Signer::es256();
    let jwk = serde_json::to_value(attacker.public("ed", KeyState::Active).jwk()).unwrap();
    for (name, value) in [
        ("jwk", jwk),
        ("jku", json!("https://attacker.example/jwks.json")),
        ("x5u", json!("https://attacker.example/cert.pem")),
        ("x5c", json!(["MIIB"])),
        ("x5t", json!("AAAA")),
        ("x5t#S256", json!("AAAA")),
        ("jwk", Value::Null),
    ] {
        let member = format!("\"{name}\":{value}");
        let head = appended(&good_header(), &member);
        refused(&header(&head), Rejection::OwnKey, "well signed");
        let head = appended(&merged(good_header(), json!({"alg": "ES256"})), &member);
        let token = attacker.token(&head, &good_claims().to_string());
        refused(&token, Rejection::OwnKey, "signed by the attacker's key");
    }
}

#[test]
fn a_header_is_one_json_object_with_distinct_members() {
    let good = good_header().to_string();
    for text in [
        appended(&good_header(), r#""alg":"EdDSA""#),
        appended(&good_header(), r#""kid":"ed""#),
        appended(&good_header(), r#""typ":"at+jwt""#),
        appended(&good_header(), r#""x":1,"x":1"#),
        appended(&good_header(), r#""x":1,"\u0078":1"#),
        appended(&good_header(), r#""\u006bid":"p256""#),
        appended(&good_header(), r#""jku":"a","jku":"b""#),
        r#"["EdDSA","at+jwt","ed",null,null,null,null,null,null,null]"#.into(),
        format!("{good}{good}"),
        format!("{good}x"),
        format!("[{good}]"),
        good.trim_end_matches('}').into(),
        good.replace('"', "'"),
        format!("\u{feff}{good}"),
        "null".into(),
        "\"\"".into(),
        "0".into(),
        String::new(),
    ] {
        refused(&header(&text), Rejection::Malformed("header"), &text);
    }
    let token = format!("{}.e30.", encode(b"{\"alg\":\"\xff\"}"));
    refused(&token, Rejection::Malformed("header"), "not UTF-8");
    // Unknown parameters are ignored (RFC 7515, section 4).
    let (verifier, _) = verifier();
    let token = header(&appended(
        &good_header(),
        r#""cty":"x","zip":{"a":1,"b":[2.5]}"#,
    ));
    assert!(verifier.verify(&token, None).is_ok());
}

#[test]
fn signatures_of_other_messages_lengths_and_keys_are_refused() {
    let good = good_token();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other = with(json!({}), json!({"roles": ["admin"]}));
    let (other_signed, _) = other.rsplit_once('.').unwrap();
    let long = format!("{signed}.{}", encode([decode(signature), vec![0]].concat()));
    for (token, what) in [
        (format!("{signed}."), "none"),
        (format!("{signed}.{}", encode([0; 64])), "zeros"),
        (format!("{signed}.{}", encode([0; 63])), "too short"),
        (long, "too long"),
        (format!("{other_signed}.{signature}"), "of another token"),
    ] {
        refused(&token, Rejection::Signature, what);
    }
    let zeros = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
    let signed = format!("{}.{}", encode(zeros), encode(good_claims().to_string()));
    refused(
        &format!("{signed}.{}", encode([0; 64])),
        Rejection::Signature,
        "r = s = 0",
    );
}

#[test]
fn no_flipped_bit_is_accepted() {
    let (verifier, _) = verifier();
    let es256 = merged(good_header(), json!({"alg": "ES256", "kid": "p256"})).to_string();
    for good in [
        good_token(),
        Signer::es256().token(&es256, &good_claims().to_string()),
    ] {
        assert!(verifier.verify(&good, None).is_ok());
        let mut tried = 0;
        for index in 0..good.len() {
            // The eighth bit would leave ASCII, and then it is no `str`.
            for bit in 0..7 {
                let mut bytes = good.clone().into_bytes();
                bytes[index] ^= 1 << bit;
                let flipped = String::from_utf8(bytes).unwrap();
                assert!(
                    verifier.verify(&flipped, None).is_err(),
                    "byte {index}, bit {bit}"
                );
                tried += 1;
            }
        }
        assert_eq!(tried, good.len() * 7);
    }
}
