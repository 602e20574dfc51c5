//! Another key, or another algorithm, than the one that signs.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_verifier::{Algorithm, KeyState, PublicKey};
use serde_json::json;

use super::{Catalogue, header_of, hex, signed_by};
use crate::minting::{
    Signer, appended, decode, good_claims, good_header, good_token, merged, trust_state, with,
};

impl Catalogue {
    /// The algorithm is taken from the token, and the public key for an HMAC secret.
    pub(super) fn public_keys_as_secrets(&mut self) {
        let claims = good_claims().to_string();
        let jwks = json!({"keys": trust_state().keys.jwks()}).to_string();
        for kid in ["ed", "p256"] {
            let keys = trust_state().keys;
            let key = keys.get(kid).unwrap();
            let jwk = key.jwk();
            let der = subject_public_key_info(key);
            let pem = pem(&der);
            for (form, secret) in [
                ("raw", key.public_bytes().to_vec()),
                ("x", decode(&jwk.x)),
                ("x as text", jwk.x.clone().into_bytes()),
                ("JWK", serde_json::to_vec(&jwk).unwrap()),
                ("JWKS", jwks.clone().into_bytes()),
                ("DER", der.clone()),
                ("DER as base64", STANDARD.encode(&der).into_bytes()),
                ("PEM", pem.clone().into_bytes()),
                (
                    "PEM without a line feed",
                    pem.trim_end().as_bytes().to_vec(),
                ),
                ("kid", kid.into()),
                ("nothing", Vec::new()),
            ] {
                for (alg, hash) in [
                    ("HS256", hmac::HMAC_SHA256),
                    ("HS384", hmac::HMAC_SHA384),
                    ("HS512", hmac::HMAC_SHA512),
                ] {
                    let header = merged(good_header(), json!({"alg": alg, "kid": kid}));
                    let secret = hmac::Key::new(hash, &secret);
                    let token = signed_by(&header.to_string(), &claims, |message| {
                        hmac::sign(&secret, message).as_ref().to_vec()
                    });
                    self.add(format!("{alg} by {kid} as {form}"), token);
                }
            }
        }
    }

    pub(super) fn no_signature(&mut self) {
        for casing in 0..16_u8 {
            let alg: String = (0..4)
                .zip("none".chars())
                .map(|(bit, letter)| match (casing >> bit) & 1 {
                    1 => letter.to_ascii_uppercase(),
                    _ => letter,
                })
                .collect();
            let signed = with(json!({ "alg": alg }), json!({}));
            let (unsigned, _) = signed.rsplit_once('.').unwrap();
            self.add(format!("{alg} without a signature"), format!("{unsigned}."));
            self.add(format!("{alg} without the last dot"), unsigned);
            self.add(format!("{alg} with a good signature"), signed);
        }
        let good = good_token();
        let (unsigned, _) = good.rsplit_once('.').unwrap();
        self.add("a good header without a signature", format!("{unsigned}."));
    }

    pub(super) fn other_algorithms(&mut self) {
        for alg in [
            "",
            " ",
            "RS256",
            "RS384",
            "RS512",
            "PS256",
            "PS512",
            "ES384",
            "ES512",
            "ES256K",
            "Ed448",
            "Ed25519",
            "eddsa",
            "EDDSA",
            "EdDSA ",
            " EdDSA",
            "EdDSA\0",
            "ES256",
            "A128KW",
            "dir",
            "RSA-OAEP",
            "HS256",
            "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256",
        ] {
            self.add(format!("alg {alg:?}"), with(json!({"alg": alg}), json!({})));
        }
        for alg in [
            json!(null),
            json!(0),
            json!(true),
            json!(["EdDSA"]),
            json!({"EdDSA": 1}),
        ] {
            let header = good_header()
                .to_string()
                .replace("\"EdDSA\"", &alg.to_string());
            self.add(format!("alg {alg}"), header_of(&header));
        }
        let claims = good_claims().to_string();
        for (what, signer) in [("Ed25519", Signer::ed25519()), ("P-256", Signer::es256())] {
            for (kid, alg) in [
                ("ed", "EdDSA"),
                ("ed", "ES256"),
                ("p256", "EdDSA"),
                ("p256", "ES256"),
            ] {
                if matches!(
                    (what, kid, alg),
                    ("Ed25519", "ed", "EdDSA") | ("P-256", "p256", "ES256")
                ) {
                    continue;
                }
                let header = merged(good_header(), json!({"alg": alg, "kid": kid})).to_string();
                self.add(
                    format!("{what} as {kid} by {alg}"),
                    signer.token(&header, &claims),
                );
            }
        }
    }

    pub(super) fn key_ids(&mut self, fetch: &str) {
        for kid in [
            "",
            "unknown",
            "ED",
            "Ed",
            "ed ",
            " ed",
            "ed\0",
            "ed\0x",
            "ed,p256",
            "*",
            "%",
            "..",
            ".",
            "../../../../dev/null",
            "/dev/null",
            "/proc/sys/kernel/randomize_va_space",
            "file:///dev/null",
            "ed' OR '1'='1",
            "x' UNION SELECT 'AAAA'--",
            "ed; select pg_sleep(5)",
            "| /bin/true",
            "$(id)",
            "`id`",
            "${jndi:ldap://127.0.0.1/x}",
            "{{7*7}}",
            "__proto__",
            "constructor",
            "0",
            "-1",
            "\u{435}d",
            "e\u{301}d",
            fetch,
        ] {
            self.add(
                format!("kid {kid:?}"),
                with(json!({ "kid": kid }), json!({})),
            );
        }
        // A file with known content as the secret.
        for kid in ["/dev/null", "../../dev/null"] {
            let header = merged(good_header(), json!({"alg": "HS256", "kid": kid})).to_string();
            let secret = hmac::Key::new(hmac::HMAC_SHA256, b"");
            let token = signed_by(&header, &good_claims().to_string(), |message| {
                hmac::sign(&secret, message).as_ref().to_vec()
            });
            self.add(format!("kid {kid:?} with HMAC of nothing"), token);
        }
        for kid in [
            json!(null),
            json!(0),
            json!(true),
            json!(["ed"]),
            json!({"ed": 1}),
        ] {
            let header = good_header()
                .to_string()
                .replace("\"ed\"", &kid.to_string());
            self.add(format!("kid {kid}"), header_of(&header));
        }
        self.add("no kid", with(json!({"kid": null}), json!({})));
    }

    /// The token brings its key, or says where it is to be had.
    pub(super) fn keys_of_their_own(&mut self, fetch: &str) {
        let jwk =
            serde_json::to_value(Signer::foreign().public("ed", KeyState::Active).jwk()).unwrap();
        let with_member = |name: &str, value: &str| {
            let mut jwk = jwk.clone();
            jwk[name] = serde_json::from_str(value).unwrap();
            jwk.to_string()
        };
        let keys = [
            ("jwk", jwk.to_string()),
            ("jwk", with_member("use", "\"enc\"")),
            ("jwk", with_member("key_ops", "[\"verify\"]")),
            ("jwk", with_member("key_ops", "[\"sign\", \"verify\"]")),
            ("jwk", with_member("key_ops", "[]")),
            (
                "jwk",
                with_member("d", "\"CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg\""),
            ),
            ("jwk", r#"{"kty":"oct","k":""}"#.to_owned()),
            ("jwk", r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned()),
            ("jwk", "null".to_owned()),
            ("jwk", "{}".to_owned()),
            ("jku", json!(fetch).to_string()),
            ("jku", json!(fetch.replace("http:", "https:")).to_string()),
            ("jku", "\"file:///etc/passwd\"".to_owned()),
            ("jku", "null".to_owned()),
            ("x5u", json!(fetch).to_string()),
            ("x5u", "\"\"".to_owned()),
            ("x5c", "[\"MIIB\"]".to_owned()),
            ("x5c", "[]".to_owned()),
            ("x5t", "\"AAAA\"".to_owned()),
            ("x5t#S256", "\"AAAA\"".to_owned()),
        ];
        for (name, value) in keys {
            let header = appended(&good_header(), &format!("\"{name}\":{value}"));
            let claims = good_claims().to_string();
            self.add(format!("{name} {value}, well signed"), header_of(&header));
            let token = Signer::foreign().token(&header, &claims);
            self.add(format!("{name} {value}, by the attacker's key"), token);
            let header = header.replace(r#""kid":"ed","#, "");
            let token = Signer::foreign().token(&header, &claims);
            self.add(format!("{name} {value}, without a kid"), token);
        }
    }
}

fn subject_public_key_info(key: &PublicKey) -> Vec<u8> {
    let start = match key.algorithm() {
        Algorithm::Ed25519 => hex("302a300506032b6570032100"),
        Algorithm::Es256 => hex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
    };
    [start.as_slice(), key.public_bytes()].concat()
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    )
}
