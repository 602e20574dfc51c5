//! Headers and claims that a good signature covers.

use serde_json::{Value, json};

use super::{Catalogue, claims_of, header_of};
use crate::minting::{NOW, appended, good_claims, good_header, merged, with};

impl Catalogue {
    pub(super) fn other_headers(&mut self) {
        for crit in [
            r#"["exp"]"#,
            "[]",
            "null",
            "false",
            r#""b64""#,
            r#"["b64"]"#,
            r#"["crit"]"#,
            r#"["kid"]"#,
            "{}",
        ] {
            let member = format!("\"b64\":false,\"crit\":{crit}");
            self.add(
                format!("crit {crit}"),
                header_of(&appended(&good_header(), &member)),
            );
        }
        for typ in [
            "",
            "JWT",
            "jwt",
            "at",
            "jwt+at",
            "at+jwt ",
            " at+jwt",
            "at+jwt;v=1",
            "at+jwt+x",
            "application/",
            "application/jwt",
            "application//at+jwt",
            "text/at+jwt",
            "application/application/at+jwt",
            "JOSE",
            "JOSE+JSON",
            "id+jwt",
            "logout+jwt",
            "dpop+jwt",
            "secevent+jwt",
            "statuslist+jwt",
            "token-introspection+jwt",
            "oauth-authz-req+jwt",
            "entity-statement+jwt",
            "vc+sd-jwt",
            "kb+jwt",
            "wallet-unit-attestation+jwt",
            "at\u{ff0b}jwt",
        ] {
            self.add(
                format!("typ {typ:?}"),
                with(json!({ "typ": typ }), json!({})),
            );
        }
        for typ in [json!(null), json!(1), json!(["at+jwt"]), json!({})] {
            let header = good_header()
                .to_string()
                .replace("\"at+jwt\"", &typ.to_string());
            self.add(format!("typ {typ}"), header_of(&header));
        }
        let good = good_header().to_string();
        for header in [
            "",
            "null",
            "{}",
            "[]",
            "0",
            "\"\"",
            "{",
            "}",
            "{,}",
            "[{}]",
            "{\"alg\":\"EdDSA\"}",
        ] {
            self.add(format!("header {header}"), header_of(header));
        }
        for header in [
            format!("{good}{good}"),
            format!("{good}\0"),
            format!("\u{feff}{good}"),
            format!("[{good}]"),
            good.replace('"', "'"),
            good.replace("alg", "ALG"),
            good.replace('{', "{/**/"),
            good.replace('}', ",}"),
            format!("\"{}\"", good.replace('"', "\\\"")),
        ] {
            self.add(format!("header {header}"), header_of(&header));
        }
    }

    /// A value of every type where another one belongs.
    pub(super) fn types_of_claims(&mut self) {
        let id = "01900000-0000-7000-8000-000000000001";
        for (name, good) in good_claims().as_object().unwrap() {
            let wrong: Vec<Value> = match good {
                Value::Number(number) => vec![
                    json!(number.to_string()),
                    json!(1.5),
                    json!(f64::MAX),
                    json!(u64::MAX),
                    json!([number]),
                ],
                Value::String(_) => vec![json!(1), json!([good]), json!({"value": good})],
                _ => vec![
                    json!(1),
                    json!([1]),
                    json!([null]),
                    json!([good]),
                    json!({"0": "orders"}),
                ],
            };
            let more = [json!(true), json!({}), json!([])];
            for value in wrong.into_iter().chain(more) {
                // No roles and no methods are lists like any other.
                if value == json!([]) && ["roles", "amr"].contains(&name.as_str()) {
                    continue;
                }
                self.add(
                    format!("{name} {value}"),
                    with(json!({}), json!({ name: value })),
                );
            }
            let nothing = merged(good_claims(), json!({ name: null }));
            self.add(format!("no {name}"), claims_of(&nothing.to_string()));
            let mut null = good_claims();
            null[name] = Value::Null;
            self.add(format!("{name} null"), claims_of(&null.to_string()));
        }
        for name in ["sub", "jti", "sid"] {
            for text in [
                "",
                "admin",
                "0",
                &format!("{id}x"),
                &id[1..],
                &format!("{id}\0"),
                "../x",
            ] {
                self.add(
                    format!("{name} {text:?}"),
                    with(json!({}), json!({ name: text })),
                );
            }
        }
        for (name, number) in [
            ("exp", "1e400"),
            ("exp", "1800000900.0"),
            ("exp", "+1800000900"),
            ("exp", "01800000900"),
            ("exp", "0x6b49d584"),
            ("exp", "9223372036854775808"),
            ("exp", "Infinity"),
            ("exp", "NaN"),
            ("epoch", "3.0"),
            ("epoch", "-0.0"),
            ("iat", "1.8e9"),
        ] {
            let good = good_claims();
            let claims = good.to_string();
            let claims = claims.replace(
                &format!("\"{name}\":{}", good[name]),
                &format!("\"{name}\":{number}"),
            );
            self.add(format!("{name} written {number}"), claims_of(&claims));
        }
    }

    pub(super) fn good_signatures_over_bad_claims(&mut self, fetch: &str) {
        for (what, claims) in [
            ("expired", json!({"exp": NOW - 5})),
            ("expired since 1970", json!({"exp": 0})),
            ("expired before 1970", json!({"exp": -1})),
            ("expires at the end of time", json!({"exp": i64::MAX})),
            ("not yet", json!({"nbf": NOW + 6})),
            ("issued in the future", json!({"iat": NOW + 6})),
            ("issued at the end of time", json!({"iat": i64::MAX})),
            (
                "another issuer",
                json!({"iss": "https://elsewhere.example.com"}),
            ),
            ("an issuer to be asked", json!({"iss": fetch})),
            ("no issuer to speak of", json!({"iss": ""})),
            (
                "the issuer with a slash",
                json!({"iss": "https://auth.example.com/"}),
            ),
            (
                "the issuer in capitals",
                json!({"iss": "HTTPS://AUTH.EXAMPLE.COM"}),
            ),
            (
                "the issuer as a prefix",
                json!({"iss": "https://auth.example.com.evil.example"}),
            ),
            ("another audience", json!({"aud": ["payroll"]})),
            ("an audience in capitals", json!({"aud": ["ORDERS"]})),
            (
                "an audience as a prefix",
                json!({"aud": ["orders2", "order"]}),
            ),
            ("audiences in one text", json!({"aud": "orders billing"})),
            ("every audience", json!({"aud": ["*"]})),
        ] {
            self.add(what, with(json!({}), claims));
        }
        let good = good_claims().to_string();
        for claims in [
            String::new(),
            "null".into(),
            "{}".into(),
            "[]".into(),
            format!("[{good}]"),
            format!("{good}{good}"),
            format!("{good},"),
            format!("\u{feff}{good}"),
            good.replace('"', "'"),
            format!("\"{}\"", good.replace('"', "\\\"")),
        ] {
            self.add(format!("claims {claims}"), claims_of(&claims));
        }
    }

    /// Two readers of one token would see two tokens.
    pub(super) fn members_named_twice(&mut self) {
        for (name, value) in good_header().as_object().unwrap() {
            let again = format!("\"{name}\":{value}");
            self.add(
                format!("header with {name} twice"),
                header_of(&appended(&good_header(), &again)),
            );
            let escaped = format!("\"\\u{:04x}{}\":{value}", name.as_bytes()[0], &name[1..]);
            self.add(
                format!("header with {name} escaped"),
                header_of(&appended(&good_header(), &escaped)),
            );
        }
        for (name, value) in good_claims().as_object().unwrap() {
            let again = format!("\"{name}\":{value}");
            self.add(
                format!("claims with {name} twice"),
                claims_of(&appended(&good_claims(), &again)),
            );
        }
        for member in [
            r#""\u0065xp":9999999999"#,
            r#""x":1,"x":2"#,
            r#""":1,"":2"#,
            r#""admin":1,"\u0061dmin":2"#,
        ] {
            self.add(
                format!("claims with {member}"),
                claims_of(&appended(&good_claims(), member)),
            );
            self.add(
                format!("header with {member} "),
                header_of(&appended(&good_header(), &format!("{member},{member}"))),
            );
        }
    }
}
