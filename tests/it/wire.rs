//! What travels, as snapshots: replies, failures, tokens and keys. A change
//! here is a change that clients see.
//!
//! Ids, tokens and what chance has a part in are masked.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::error::{self, Error, Reason};
use countersign_proto::v1;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    harness::{
        Kind, World,
        rpc::{self, Objects},
        world,
    },
    on_both,
};

/// Compares with the snapshot of this name, masked.
fn matches(name: &str, text: &str) {
    let masks = [
        (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "[access token]"),
        (r"csr_[\w-]+", "[refresh token]"),
        (r"csk_[\w-]+", "[API key]"),
        (r"csd_[\w-]+", "[device token]"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[id]"),
        (
            r#"request_id: "[0-9a-f]{32}""#,
            "request_id: [correlation id]",
        ),
        (r#""[\w-]{43}""#, "\"[32 bytes]\""),
        (
            r#""correlation_id": "[0-9a-f]{32}""#,
            "\"correlation_id\": \"[correlation id]\"",
        ),
        (r#""tonic/[\d.]+""#, "\"[user agent]\""),
        // How far the chain has come by then.
        (
            r#""public_key": "[^"]*""#,
            "\"public_key\": \"[public key]\"",
        ),
        (r#""anchor": "[\w-]*""#, "\"anchor\": \"[anchor]\""),
        (
            r#""(batch|position|unchained)": "\d+""#,
            "\"$1\": \"[number]\"",
        ),
        (
            r#"next_page_token": "[\w-]+""#,
            "next_page_token\": \"[page token]\"",
        ),
        // The life of a token is shortened at random.
        (r"2030-01-01T00:1\d:\d\dZ", "[within minutes]"),
        (r#""(exp)": \d+"#, "\"$1\": [within minutes]"),
    ];
    insta::with_settings!({ filters => masks, omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, text);
    });
}

fn json(descriptor: MessageDescriptor, bytes: &[u8]) -> String {
    let message = DynamicMessage::decode(descriptor, bytes).expect("a message of its type");
    let mut out = Vec::new();
    let mut writer = serde_json::Serializer::pretty(&mut out);
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .use_proto_field_name(true);
    message
        .serialize_with_options(&mut writer, &options)
        .expect("JSON");
    String::from_utf8(out).expect("text")
}

/// A failure as a client sees it.
fn failure(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = format!("{:?}: {}\n", status.code(), status.message());
    if let Some(info) = details.error_info() {
        let metadata: std::collections::BTreeMap<_, _> = info.metadata.iter().collect();
        writeln!(
            text,
            "  ErrorInfo {} {} {metadata:?}",
            info.domain, info.reason
        )
        .unwrap();
    }
    for violation in details
        .bad_request()
        .iter()
        .flat_map(|bad| &bad.field_violations)
    {
        writeln!(
            text,
            "  BadRequest {}: {}",
            violation.field, violation.description
        )
        .unwrap();
    }
    for violation in details
        .quota_failure()
        .iter()
        .flat_map(|quota| &quota.violations)
    {
        writeln!(
            text,
            "  QuotaFailure {}: {}",
            violation.subject, violation.description
        )
        .unwrap();
    }
    if let Some(retry) = details.retry_info() {
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        let pushback = pushback.map(|value| value.to_str().unwrap());
        writeln!(
            text,
            "  RetryInfo {:?}, pushback {pushback:?}",
            retry.retry_delay
        )
        .unwrap();
    }
    if let Some(request) = details.request_info() {
        writeln!(text, "  RequestInfo request_id: {:?}", request.request_id).unwrap();
    }
    text
}

on_both! {
    async fn every_reply_has_its_shape(world: World) {
        let admin = world.admin().await;
        let mut text = String::new();
        for rpc in rpc::all() {
            let name = rpc::name(&rpc);
            let on = Objects::new(&world).await.and_keys(&world, &name).await;
            // These act upon the caller.
            let caller = match name.split('/').next() {
                Some("AuthService") => &on.target,
                _ => &admin,
            };
            let (channel, token) = (&world.anonymous().channel, &caller.tokens.access_token);
            let request = rpc::request(&name, &on);
            let reply = rpc::call(channel, &rpc::path(&name), Some(token), request).await;
            let reply = json(rpc.output(), &reply.expect(&name));
            writeln!(text, "{name}\n{reply}\n").unwrap();
        }
        matches("replies", &text);
    }

    async fn every_failure_has_its_shape(world: World) {
        let mut text = String::new();
        for (reason, status) in provoke(&world).await {
            let info = status.get_error_details().error_info().cloned().expect("ErrorInfo");
            assert_eq!(info.reason, reason, "{status:?}");
            writeln!(text, "{reason}\n{}", failure(&status)).unwrap();
        }
        matches("failures", &text);
    }

    async fn a_token_says_what_it_says(world: World) {
        let ana = world.person_who_may(&["orders.read", "countersign.users.read"]).await;
        let parts: Vec<&str> = ana.tokens.access_token.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("three parts") };
        let show = |part: &str| {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
            serde_json::to_string_pretty(&value).unwrap()
        };
        assert_eq!(URL_SAFE_NO_PAD.decode(signature).unwrap().len(), 64);
        matches("token", &format!("{}\n{}\n", show(header), show(claims)));
        // RFC 9068 leaves little to add; a member more is a decision.
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert!((855..=900).contains(&life), "{life}");
    }

    async fn keys_are_served_with_a_tag(world: World) {
        let path = "/.well-known/jwks.json";
        let (head, body) = get(&world, path, "").await;
        let keys: Value = serde_json::from_str(&body).unwrap();
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
        let again = get(&world, path, &format!("if-none-match: {tag}\r\n")).await;
        assert_eq!(again.1, "");
        let (changed, _) = get(&world, path, "if-none-match: \"another\"\r\n").await;
        assert_eq!(changed, head);
        let text = format!("{head}\n{}\n\n{}", serde_json::to_string_pretty(&keys).unwrap(), again.0);
        matches("keys", &text);
        // The same keys over gRPC.
        let reply = world.anonymous().tokens.get_jwks(v1::GetJwksRequest {}).await.unwrap().into_inner();
        let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
        let by_http: Vec<_> = keys["keys"].as_array().unwrap().iter().map(kid).collect();
        let by_grpc: Vec<_> = reply.keys.into_iter().map(|key| key.kid).collect();
        assert_eq!(by_http, by_grpc);
    }
}

/// Refusals as callers get them, each with its reason.
#[expect(clippy::too_many_lines, reason = "a line or two for each reason")]
async fn provoke(world: &World) -> Vec<(&'static str, Status)> {
    let mut admin = world.admin().await;
    let mut ana = world.person().await;
    let mut nobody = world.anonymous();
    let user_id = ana.user_id.clone();
    let unknown_id = "00000000-0000-7000-8000-000000000000".to_owned();
    let mut all = Vec::new();
    macro_rules! refused {
        ($reason:literal, $client:expr, $call:ident, $request:expr) => {
            all.push(($reason, $client.$call($request).await.expect_err($reason)))
        };
    }

    let registration = v1::RegisterRequest {
        email: "ana@@example.com".into(),
        password: "\0".into(),
        username: "a".into(),
        display_name: "a\u{202e}b".into(),
        request_id: "one".into(),
    };
    refused!("INVALID_REQUEST", nobody.auth, register, registration);
    let short = v1::RegisterRequest {
        email: "new@example.com".into(),
        password: "password".into(),
        ..Default::default()
    };
    refused!("INVALID_REQUEST", nobody.auth, register, short);
    let mut first = v1::RegisterRequest {
        email: "first@example.com".into(),
        password: world::PASSWORD.into(),
        username: "first".into(),
        request_id: unknown_id.clone(),
        ..Default::default()
    };
    nobody.auth.register(first.clone()).await.unwrap();
    first.display_name = "First".into();
    refused!("REQUEST_ID_REUSED", nobody.auth, register, first.clone());
    first.request_id = String::new();
    refused!("EMAIL_TAKEN", nobody.auth, register, first.clone());
    first.email = "second@example.com".into();
    refused!("USERNAME_TAKEN", nobody.auth, register, first);
    let page = v1::ListRolesRequest {
        page_token: "AAAA".into(),
        ..Default::default()
    };
    refused!("PAGE_TOKEN_INVALID", admin.client.roles, list_roles, page);
    refused!(
        "CREDENTIALS_MISSING",
        nobody.auth,
        who_am_i,
        v1::WhoAmIRequest {}
    );
    let mut forged = nobody.with_token("no.token");
    refused!("TOKEN_INVALID", forged.auth, who_am_i, v1::WhoAmIRequest {});
    let login = v1::LoginRequest {
        identifier: ana.email.clone(),
        password: "another horse entirely, thanks".into(),
        ..Default::default()
    };
    refused!("LOGIN_FAILED", nobody.auth, login, login);
    let refresh = v1::RefreshRequest {
        refresh_token: "csr_none".into(),
        ..Default::default()
    };
    refused!("REFRESH_TOKEN_INVALID", nobody.auth, refresh, refresh);
    refused!(
        "PERMISSION_DENIED",
        ana.client.users,
        list_users,
        v1::ListUsersRequest::default()
    );
    let change = v1::ChangePasswordRequest {
        current_password: "another horse entirely, thanks".into(),
        new_password: "a third horse, of course".into(),
    };
    refused!(
        "CURRENT_PASSWORD_INCORRECT",
        ana.client.auth,
        change_password,
        change
    );
    let (mut writer, _) = rpc::persona(world, &["countersign.users.write"]).await;
    let high = v1::DisableUserRequest {
        user_id: admin.user_id.clone(),
    };
    refused!(
        "TARGET_OUTRANKS_CALLER",
        writer.client.users,
        disable_user,
        high
    );
    let unknown = v1::GetUserRequest {
        user_id: unknown_id.clone(),
    };
    refused!("USER_NOT_FOUND", admin.client.users, get_user, unknown);
    let grant = |role: &str| v1::GrantRoleRequest {
        user_id: user_id.clone(),
        role: role.into(),
    };
    refused!(
        "ROLE_NOT_FOUND",
        admin.client.users,
        grant_role,
        grant("none")
    );
    let unknown = v1::RevokeSessionRequest {
        session_id: unknown_id,
    };
    refused!(
        "SESSION_NOT_FOUND",
        admin.client.sessions,
        revoke_session,
        unknown
    );
    let unknown = v1::RevokeApiKeyRequest {
        api_key_id: ana.user_id.clone(),
    };
    refused!(
        "API_KEY_NOT_FOUND",
        ana.client.api_keys,
        revoke_api_key,
        unknown
    );
    let role = |name: String| v1::CreateRoleRequest {
        name,
        ..Default::default()
    };
    refused!(
        "ROLE_EXISTS",
        admin.client.roles,
        create_role,
        role("admin".into())
    );
    let last = v1::RevokeRoleRequest {
        user_id: admin.user_id.clone(),
        role: "admin".into(),
    };
    refused!("LAST_ADMIN", admin.client.users, revoke_role, last);
    let built_in = v1::DeleteRoleRequest {
        name: "admin".into(),
    };
    refused!("ROLE_BUILT_IN", admin.client.roles, delete_role, built_in);
    for i in 0..8 {
        admin
            .client
            .roles
            .create_role(role(format!("r{i}")))
            .await
            .unwrap();
        admin
            .client
            .users
            .grant_role(grant(&format!("r{i}")))
            .await
            .unwrap();
    }
    let in_use = v1::DeleteRoleRequest { name: "r0".into() };
    refused!("ROLE_IN_USE", admin.client.roles, delete_role, in_use);
    admin
        .client
        .roles
        .create_role(role("r8".into()))
        .await
        .unwrap();
    refused!(
        "TOO_MANY_ROLES",
        admin.client.users,
        grant_role,
        grant("r8")
    );
    let mut keys = admin.client.keys.clone();
    let stage = v1::StageKeyRequest::default();
    let active = keys.list_keys(v1::ListKeysRequest {}).await.unwrap();
    let active = active.into_inner().keys.remove(0).kid;
    let next = keys.stage_key(stage.clone()).await.unwrap().into_inner();
    let next = next.key.expect("a key").kid;
    let activate = |kid: &str| v1::ActivateKeyRequest {
        kid: kid.into(),
        ..Default::default()
    };
    let retire = |kid: &str| v1::RetireKeyRequest { kid: kid.into() };
    refused!("KEY_NOT_FOUND", keys, retire_key, retire("none"));
    refused!("KEY_ALREADY_STAGED", keys, stage_key, stage);
    refused!("KEY_NOT_PUBLISHED", keys, activate_key, activate(&next));
    refused!("KEY_NOT_NEXT", keys, activate_key, activate(&active));
    refused!("KEY_ACTIVE", keys, retire_key, retire(&active));
    let large = v1::LoginRequest {
        password: "x".repeat(100_000),
        ..Default::default()
    };
    refused!("REQUEST_TOO_LARGE", nobody.auth, login, large);
    let none = rpc::call(
        &nobody.channel,
        "/countersign.v1.AuthService/None",
        None,
        Vec::new(),
    );
    all.push(("METHOD_UNKNOWN", none.await.expect_err("METHOD_UNKNOWN")));
    all
}

/// Refusals that a healthy node with the limits off does not give.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_a_node_in_need_have_their_shape() {
    let statuses = [
        Error::rate_limited("login", Duration::from_millis(1_500)),
        Error::login_throttled(Duration::from_millis(29_001)),
        Error::overloaded(Duration::from_millis(250)),
        Error::unavailable("database", Duration::from_secs(1)),
        Error::not_ready(),
        Error::new(Reason::ClockSkewed).retry_after(Duration::from_secs(2)),
        Error::from(Reason::TooManyKeys),
        Error::from(Reason::OutcomeUnknown),
        Error::from(Reason::DeadlineExceeded),
        Error::from(Reason::Cancelled),
        Error::from(Reason::AuditLogBroken),
        Error::internal("a cause that stays here"),
    ]
    .map(Status::from);
    let text: String = statuses.iter().map(failure).collect();
    matches("failures_in_need", &text);
}

/// The limit per peer is off in other tests. One database will do: none of it
/// is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_over_its_limit_is_told_when_to_come_again() {
    let world = World::with(Kind::Sqlite, |config| {
        config.limits.rate_limits_enabled = true;
        config.limits.login_per_minute = 1;
    });
    let world = world.await;
    // More calls than any burst takes.
    let mut refusal = None;
    for _ in 0..60 {
        let login = world::login(&world.anonymous(), "nobody", world::PASSWORD).await;
        refusal = login
            .err()
            .filter(|status| status.code() == Code::ResourceExhausted);
        if refusal.is_some() {
            break;
        }
    }
    let details = refusal.expect("a limit").get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
    let quota = &details.quota_failure().unwrap().violations[0];
    assert_eq!(
        (quota.subject.as_str(), quota.description.as_str()),
        ("peer", "login")
    );
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(delay <= Duration::from_mins(1), "{delay:?}");
}

/// What the documentation says about each reason.
#[test]
fn the_documentation_lists_every_reason_with_its_code() {
    let reasons = rpc::DESCRIPTORS
        .get_enum_by_name("countersign.v1.Reason")
        .unwrap();
    let known: BTreeSet<(String, String)> = reasons
        .values()
        .filter(|value| value.number() != 0)
        .map(|value| {
            let reason = Reason::try_from(value.number()).unwrap();
            (
                error::reason_name(reason).to_owned(),
                code_name(error::code(reason)),
            )
        })
        .collect();
    let page = include_str!("../../docs/errors.md");
    let mut listed = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
        let bare = |cell: &str| cell.trim_matches('`').to_owned();
        assert!(
            listed.insert((bare(cells[0]), bare(cells[1]))),
            "twice: {line}"
        );
    }
    assert_eq!(listed, known);
}

/// A code as the gRPC documentation writes it.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Head, without what changes from moment to moment, and body of an answer of
/// the side port.
async fn get(world: &World, path: &str, header: &str) -> (String, String) {
    let mut stream = TcpStream::connect(world.node.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head
        .lines()
        .filter(|line| !line.starts_with("date: "))
        .collect();
    lines[1..].sort_unstable();
    (lines.join("\n"), body.to_owned())
}
