//! ExplainToken: that it knows why, shows no more than a signature proves, and says
//! nothing to who may not ask.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_proto::v1::{self, TokenFinding};
use countersign_verifier::{Claims, api_key_text};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    harness::{
        Client, Person, World, binary::Program, calls, eventually, logs, refused, rpc,
        sidecar::Sidecar, world,
    },
    on_both,
};

const EXPLAIN: &str = "countersign.tokens.explain";

async fn explain(
    client: &Client,
    token: &str,
    audience: &str,
) -> Result<v1::ExplainTokenResponse, Status> {
    let request = v1::ExplainTokenRequest {
        token: token.to_owned(),
        audience: audience.to_owned(),
    };
    let reply = client.clone().tokens.explain_token(request).await?;
    Ok(reply.into_inner())
}

fn claims(token: &str) -> Claims {
    serde_json::from_value(calls::claims(token)).unwrap()
}

/// A token with other claims, signed by the node.
fn signed(world: &World, token: &str, change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = claims(token);
    change(&mut claims);
    let keys = world.node.running.core().keyring.keys().unwrap();
    keys.signer.sign(&claims).unwrap()
}

/// A token with another header or other claims, whose signature is no longer its own.
fn altered(token: &str, part: usize, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let mut value = if part == 0 {
        calls::header(token)
    } else {
        calls::claims(token)
    };
    change(&mut value);
    parts[part] = URL_SAFE_NO_PAD.encode(value.to_string());
    parts.join(".")
}

/// Tokens of somebody, the finding on each, and whether it proves anything.
async fn cases(world: &World, ana: &Person) -> Vec<(String, TokenFinding, bool)> {
    use TokenFinding as F;
    let good = &*ana.tokens.access_token;
    let admin = world.admin().await;
    let (gone, out) = (world.person().await, world.person().await);
    calls::disable(&admin.client, &gone.user_id).await.unwrap();
    out.client
        .clone()
        .auth
        .logout(v1::LogoutRequest::default())
        .await
        .unwrap();
    let (id, revoked) = rpc::api_key(world, &ana.user_id, &[]).await;
    calls::revoke_api_key(&ana.client, &id).await.unwrap();
    let (_, live) = rpc::api_key(world, &ana.user_id, &[]).await;
    let header =
        |name: &str, value: serde_json::Value| altered(good, 0, |header| header[name] = value);
    let end = if good.ends_with('A') { "Q" } else { "A" };
    vec![
        (good.to_owned(), F::Good, true),
        (live, F::Good, true),
        (
            signed(world, good, |claims| claims.exp = claims.iat - 60),
            F::Expired,
            true,
        ),
        (
            signed(world, good, |claims| claims.nbf = claims.iat + 60),
            F::NotYetValid,
            true,
        ),
        (
            signed(world, good, |claims| claims.iat += 60),
            F::IssuedInFuture,
            true,
        ),
        (
            signed(world, good, |claims| claims.aud = vec!["elsewhere".into()]),
            F::Audience,
            true,
        ),
        (
            signed(world, good, |claims| {
                claims.iss = "https://elsewhere.test".into();
            }),
            F::Issuer,
            true,
        ),
        (gone.tokens.access_token, F::UserRevoked, true),
        (out.tokens.access_token, F::SessionRevoked, true),
        (
            altered(good, 1, |claims| {
                claims["sub"] = admin.user_id.clone().into();
            }),
            F::Signature,
            false,
        ),
        (
            altered(good, 1, |claims| claims["exp"] = 1.into()),
            F::Signature,
            false,
        ),
        (
            format!("{}{end}", &good[..good.len() - 1]),
            F::Signature,
            false,
        ),
        (header("kid", "other".into()), F::KeyUnknown, false),
        (header("alg", "none".into()), F::Algorithm, false),
        (header("typ", "JWT".into()), F::Type, false),
        (header("crit", json!(["exp"])), F::CriticalHeader, false),
        (header("jwk", json!({})), F::OwnKey, false),
        ("no.token".to_owned(), F::Malformed, false),
        (ana.tokens.refresh_token.clone(), F::Malformed, false),
        ("x".repeat(8 * 1024 + 1), F::TooLong, false),
        (revoked, F::ApiKeyUnknown, false),
        (api_key_text(&[7; 24]), F::ApiKeyUnknown, false),
        ("csk_malformed".to_owned(), F::Malformed, false),
    ]
}

on_both! {
    async fn each_finding_is_true_and_shows_what_a_signature_proves(world: World) {
        let (ana, asker) = (world.person().await, world.person_who_may(&[EXPLAIN]).await);
        let mut answers = Vec::new();
        let cases = cases(&world, &ana).await;
        for (token, finding, proves) in &cases {
            let (finding, proves) = (*finding, *proves);
            let found = explain(&asker.client, token, "").await.unwrap();
            assert_eq!(found.finding(), finding, "{token}: {found:?}");
            assert!(!found.explanation.is_empty());
            let is_token = token.starts_with("ey");
            assert_eq!((found.caller.is_some(), found.claims.is_some()), (proves, proves && is_token), "{found:?}");
            if let (Some(caller), Some(said)) = (&found.caller, &found.claims) {
                let claims = claims(token);
                assert_eq!((&caller.subject, &caller.session_id), (&claims.sub.to_string(), &claims.sid.to_string()));
                assert_eq!((&said.issuer, &said.token_id, said.epoch), (&claims.iss, &claims.jti.to_string(), claims.epoch));
                assert_eq!(said.key_id, calls::signer(token));
                assert_eq!(said.not_before.unwrap().seconds, claims.nbf);
            }
            // By how much, where that is what is wrong.
            let late = [TokenFinding::Expired, TokenFinding::NotYetValid, TokenFinding::IssuedInFuture];
            let off_by = found.off_by.map(|off_by| off_by.seconds);
            assert_eq!(off_by, late.contains(&finding).then_some(60), "{found:?}");
            assert_eq!(found.malformed_part.is_empty(), finding != TokenFinding::Malformed);
            // Whoever validates learns what they always did.
            let validated = calls::caller(&world.anonymous(), token).await;
            if finding == TokenFinding::Good {
                assert_eq!(Some(validated.unwrap()), found.caller);
            } else {
                let status = validated.unwrap_err();
                answers.push((status.code(), status.message().to_owned()));
            }
        }
        answers.dedup();
        assert_eq!(answers, [(Code::Unauthenticated, "the access token is not valid".to_owned())]);
        let good = &ana.tokens.access_token;
        assert_eq!(explain(&asker.client, good, "elsewhere").await.unwrap().finding(), TokenFinding::Audience);
        let asked = claims(good).jti.to_string();
        // No token is in a log, and that somebody has asked is.
        let lines = logs::lines();
        for (token, ..) in cases.iter().filter(|(token, ..)| token.len() > 40) {
            assert!(!lines.iter().any(|line| line.contains(token)), "{token}");
        }
        let told = ["a token was explained", &asked, &asker.user_id];
        assert!(lines.iter().any(|line| told.iter().all(|part| line.contains(part))));
        // What a change of the account has to do with it is said.
        let told = explain(&asker.client, good, "").await.unwrap();
        assert_eq!(told.explanation, "the credential is good");
        let admin = world.admin().await;
        calls::disable(&admin.client, &ana.user_id).await.unwrap();
        let told = explain(&asker.client, good, "").await.unwrap().explanation;
        assert!(told.ends_with("(its epoch is 0, the least 1)"), "{told}");
    }

    async fn who_may_not_ask_is_told_the_same_of_every_token(world: World) {
        let ana = world.person().await;
        let nosy = world.person_who_may(&["countersign.users.read"]).await;
        let (_, key) = rpc::api_key(&world, &nosy.user_id, &["countersign.users.read"]).await;
        let mut all = cases(&world, &ana).await;
        all.push((String::new(), TokenFinding::Malformed, false));
        for (client, code, reason) in [
            (world.anonymous(), Code::Unauthenticated, "CREDENTIALS_MISSING"),
            (nosy.client.clone(), Code::PermissionDenied, "PERMISSION_DENIED"),
            (world.anonymous().with_token(&key), Code::PermissionDenied, "PERMISSION_DENIED"),
        ] {
            let mut told = Vec::new();
            for (token, ..) in &all {
                let status = explain(&client, token, "").await.unwrap_err();
                told.push(status.message().to_owned());
                refused::<()>(Err(status), code, reason);
            }
            told.dedup();
            assert_eq!(told.len(), 1, "{told:?}");
        }
    }

    async fn a_sidecar_says_what_the_nodes_say(world: World) {
        let (ana, watcher) = (world.person().await, world.person_who_may(&["countersign.trust.watch"]).await);
        let asker = world.person_who_may(&[EXPLAIN]).await;
        let sidecar = Sidecar::start(&world, &[&world.node], &watcher.tokens.access_token).await;
        let beside = sidecar.client().with_token(&asker.tokens.access_token);
        let knows = async || explain(&beside, &ana.tokens.access_token, "").await.is_ok();
        eventually("the sidecar knows", knows).await;
        ana.client.clone().auth.logout(v1::LogoutRequest::default()).await.unwrap();
        let token = &ana.tokens.access_token;
        let here = explain(&asker.client, token, "").await.unwrap();
        assert_eq!(here.finding(), TokenFinding::SessionRevoked);
        eventually("it hears of the logout", async || explain(&beside, token, "").await.unwrap() == here).await;
        let nosy = sidecar.client().with_token(&watcher.tokens.access_token);
        refused(explain(&nosy, token, "").await, Code::PermissionDenied, "PERMISSION_DENIED");
    }

    async fn the_command_line_reads_it_from_standard_input(program: Program) {
        let password = "a long walk by the sea";
        let empty = program.run_with(&["token", "explain"], " \n");
        assert_eq!(empty.status.code(), Some(1), "not judged");
        let server = program.serve("server").await;
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, password);
        let pair = world::login(&server.client(), "ana@example.com", password).await.unwrap();
        let token = format!("{}\n", pair.access_token);
        let said = program.succeed(&["token", "explain"], &token);
        assert!(said.starts_with("GOOD: the credential is good\n"), "{said}");
        assert!(said.contains(&pair.session_id) && !said.contains(&pair.access_token), "{said}");

        let client = server.client().with_token(&pair.access_token);
        client.clone().auth.logout(v1::LogoutRequest::default()).await.unwrap();
        let refused = program.run_with(&["token", "explain", "--format", "json"], &token);
        assert_eq!(refused.status.code(), Some(3));
        let said: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!((&said["finding"], &said["claims"]["session"]), (&json!("SESSION_REVOKED"), &json!(pair.session_id)));
        let forged = format!("{}A", &pair.access_token[..pair.access_token.len() - 2]);
        let refused = program.run_with(&["token", "explain"], &forged);
        let said = String::from_utf8(refused.stdout).unwrap();
        assert!(refused.status.code() == Some(3) && said.lines().count() == 1, "{said}");
        // Whatever it is, it is judged.
        for (bytes, finding) in [(vec![0xff; 100], "MALFORMED: "), (vec![0xff; 50_000], "TOO_LONG: ")] {
            let refused = program.run_with(&["token", "explain"], bytes);
            let said = String::from_utf8(refused.stdout).unwrap();
            assert!(refused.status.code() == Some(3) && said.starts_with(finding), "{said}");
        }
    }
}
