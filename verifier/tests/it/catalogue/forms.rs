//! What is no access token, or not as it should be written.

use countersign_verifier::{MAX_TOKEN_BYTES, api_key_text};
use serde_json::json;

use super::{Catalogue, claims_of, header_of};
use crate::minting::{appended, encode, good_header, good_token, with};

impl Catalogue {
    /// What we or others made for something else.
    pub(super) fn other_kinds(&mut self) {
        let good = good_token();
        let [head, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
            panic!("three parts")
        };
        let refresh = format!("csr_{}", "A".repeat(96));
        for (what, token) in [
            ("a refresh token", refresh.clone()),
            ("a device token", format!("csd_{}", "A".repeat(60))),
            ("an anchor of the audit log", format!("csa_{}", "A".repeat(166))),
            ("an API key of nobody", api_key_text(&[9; 24])),
            ("an API key without its checksum", api_key_text(&[1; 24])[..36].to_owned()),
            ("an API key in capitals", api_key_text(&[1; 24]).to_uppercase()),
            ("the prefix of API keys", "csk_".to_owned()),
            ("an API key with a token", format!("{}{good}", api_key_text(&[9; 24]))),
            ("a page token", encode([1; 60])),
            ("a refresh token in three parts", format!("{refresh}.{refresh}.{refresh}")),
            ("an encrypted token", format!("{head}.{signature}.{signature}.{claims}.{signature}")),
            ("an encrypted token, short", format!("{head}....")),
            ("JSON, flattened", json!({"protected": head, "payload": claims, "signature": signature}).to_string()),
            ("JSON, general", json!({"payload": claims, "signatures": [{"protected": head, "signature": signature}]}).to_string()),
            ("a detached payload", format!("{head}..{signature}")),
            ("SD-JWT", format!("{good}~{claims}~")),
            ("PASETO", "v4.public.eyJzdWIiOiJhZG1pbiJ9".to_owned()),
            ("base64 of a token", encode(&good)),
            ("a password", "correct horse battery staple".to_owned()),
        ] {
            self.add(what, token);
        }
        // Signed by us, for another use of the same key.
        for typ in ["id+jwt", "logout+jwt", "JWT"] {
            let claims = json!({"nonce": "n", "events": {}, "scope": null, "roles": null});
            self.add(
                format!("{typ} of the same key"),
                with(json!({ "typ": typ }), claims),
            );
        }
        self.add(
            "a nested token",
            with(json!({"cty": "JWT"}), json!({"scope": null, "token": good})),
        );
        self.add("a token in a claim", claims_of(&json!(good).to_string()));
    }

    pub(super) fn other_spellings(&mut self) {
        let good = good_token();
        let [head, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
            panic!("three parts")
        };
        for (what, token) in [
            (
                "padding in the header",
                format!("{head}=.{claims}.{signature}"),
            ),
            (
                "padding in the claims",
                format!("{head}.{claims}==.{signature}"),
            ),
            ("padding in the signature", format!("{good}==")),
            ("escaped padding", format!("{good}%3D%3D")),
            ("a space before", format!(" {good}")),
            ("a space after", format!("{good} ")),
            ("a space within", format!("{head}. {claims}.{signature}")),
            ("a tab", format!("{good}\t")),
            ("a line feed", format!("{good}\n")),
            (
                "lines of 64",
                good.as_bytes()
                    .chunks(64)
                    .map(|line| String::from_utf8_lossy(line) + "\n")
                    .collect(),
            ),
            ("NUL", format!("{good}\0")),
            ("an escaped dot", good.replacen('.', "%2e", 1)),
            ("a full-width dot", good.replacen('.', "\u{ff0e}", 1)),
            (
                "the other alphabet",
                format!("{head}+.{claims}.{signature}"),
            ),
            ("a slash", format!("{head}/.{claims}.{signature}")),
            ("a letter beyond ASCII", format!("{good}\u{e9}")),
            ("in quotes", format!("\"{good}\"")),
            ("two tokens by a comma", format!("{good},{good}")),
            ("two tokens by a dot", format!("{good}.{good}")),
            ("two tokens by nothing", format!("{good}{good}")),
            ("its scheme before", format!("Bearer {good}")),
            ("a dot before", format!(".{good}")),
            ("a dot after", format!("{good}.")),
            ("two dots", good.replacen('.', "..", 1)),
            ("all capitals", good.to_uppercase()),
            ("no dot", good.replace('.', "")),
            ("backwards", good.chars().rev().collect()),
            ("its parts turned", format!("{claims}.{head}.{signature}")),
            (
                "one letter more in the claims",
                format!("{head}.{claims}A.{signature}"),
            ),
            ("nothing", String::new()),
            ("dots", "..".to_owned()),
        ] {
            self.add(what, token);
        }
    }

    pub(super) fn lengths(&mut self) {
        let filler = |bytes: usize| "A".repeat(bytes);
        for (what, token) in [
            (
                "a long header",
                header_of(&appended(
                    &good_header(),
                    &format!("\"x\":\"{}\"", filler(6_200)),
                )),
            ),
            ("long claims", with(json!({}), json!({"x": filler(6_200)}))),
            (
                "a long signature",
                format!("{}{}", good_token(), filler(MAX_TOKEN_BYTES)),
            ),
            ("a long kid", with(json!({"kid": filler(6_000)}), json!({}))),
            ("a long typ", with(json!({"typ": filler(6_000)}), json!({}))),
            ("letters", filler(MAX_TOKEN_BYTES + 1)),
            ("letters to the byte", filler(MAX_TOKEN_BYTES)),
            ("dots", ".".repeat(MAX_TOKEN_BYTES)),
            ("a long API key", format!("csk_{}", filler(MAX_TOKEN_BYTES))),
        ] {
            self.add(format!("length: {what}"), token);
        }
    }
}
