//! What happened where a header was believed, and where an answer was
//! remembered for the wrong question.

use std::collections::{BTreeMap, BTreeSet};

use countersign::middleware::access::{ROWS, Who};
use countersign_proto::{
    envoy::service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse, OkHttpResponse,
        attribute_context::{self, HttpRequest},
        check_response::HttpResponse,
    },
    v1,
};
use prost::Message as _;
use tonic::{Code, Status};

use super::call_with;
use crate::{
    harness::{
        Failure, Person, World, calls, refused, rpc,
        world::{self, PASSWORD},
    },
    on_both,
};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const WRONG: &str = "not the password at all";

/// By which proxies and gateways tell services who calls.
const NAMES: [&str; 26] = [
    "x-countersign-subject",
    "x-countersign-kind",
    "x-countersign-roles",
    "x-countersign-scope",
    "x-countersign-session",
    "x-user-id",
    "x-user",
    "x-remote-user",
    "remote-user",
    "x-webauth-user",
    "x-authenticated-user",
    "x-auth-request-user",
    "x-auth-request-email",
    "x-forwarded-user",
    "x-forwarded-email",
    "x-forwarded-groups",
    "x-forwarded-preferred-username",
    "x-forwarded-client-cert",
    "x-ssl-client-s-dn",
    "x-goog-authenticated-user-email",
    "x-amzn-oidc-identity",
    "x-envoy-original-path",
    "x-envoy-internal",
    "x-envoy-peer-metadata-id",
    "x-internal-request",
    "x-original-url",
];

/// Where others look for a token.
const TOKENS: [&str; 4] = [
    "x-forwarded-access-token",
    "x-api-key",
    "proxy-authorization",
    "cookie",
];

/// By which proxies tell where a request comes from.
const ADDRESSES: [&str; 8] = [
    "x-forwarded-for",
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
];

/// All that could say that an admin calls, but for `authorization`.
fn spoofed(admin: &Person) -> Vec<(&'static str, String)> {
    let names = NAMES.map(|name| {
        let value = match name {
            "x-countersign-roles" | "x-forwarded-groups" => "admin",
            "x-countersign-scope" => "countersign.users.write",
            "x-envoy-internal" | "x-internal-request" => "true",
            _ => admin.user_id.as_str(),
        };
        (name, value.to_owned())
    });
    let token = &admin.tokens.access_token;
    let tokens = TOKENS.map(|name| match name {
        "proxy-authorization" => (name, format!("Bearer {token}")),
        "cookie" => (name, format!("access_token={token}")),
        _ => (name, token.clone()),
    });
    names.into_iter().chain(tokens).collect()
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// Asks as Envoy does about a request with these headers, on this route.
async fn check<H: AsRef<str>>(
    world: &World,
    route: &[(&str, &str)],
    headers: &[(&'static str, H)],
    metadata: &[(&'static str, String)],
) -> CheckResponse {
    let headers = headers.iter();
    let http = HttpRequest {
        method: "GET".into(),
        headers: headers
            .map(|(name, value)| ((*name).to_owned(), value.as_ref().to_owned()))
            .collect(),
        header_map: None,
    };
    let extensions = route.iter();
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(attribute_context::Request { http: Some(http) }),
            context_extensions: extensions
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }),
    };
    let channel = world.anonymous().channel;
    let reply = call_with(&channel, CHECK, metadata, &request).await;
    CheckResponse::decode(&reply.expect("an answer")[..]).expect("a message")
}

/// 0 where the request passes, else the status that it is refused with.
fn verdict(response: &CheckResponse) -> i32 {
    match &response.http_response {
        Some(HttpResponse::OkResponse(_)) => 0,
        Some(HttpResponse::DeniedResponse(denied)) => {
            denied.status.as_ref().expect("a status").code
        }
        None => panic!("neither: {response:?}"),
    }
}

#[track_caller]
fn passes(response: CheckResponse) -> OkHttpResponse {
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) => ok,
        other => panic!("refused: {other:?}"),
    }
}

/// What the service behind is told, by the header's name.
fn told(ok: &OkHttpResponse) -> BTreeMap<&str, &str> {
    let set = ok.headers.iter().map(|option| option.header.as_ref());
    set.map(|header| header.expect("a header"))
        .map(|header| (header.key.as_str(), header.value.as_str()))
        .collect()
}

/// A guess at somebody's password, from an address that it names itself.
async fn guess(world: &World, email: &str, address: &str) -> Result<(), Status> {
    let headers = ADDRESSES.map(|name| match name {
        "forwarded" => (name, format!("for={address}")),
        _ => (name, address.to_owned()),
    });
    let request = v1::LoginRequest {
        identifier: email.into(),
        password: WRONG.into(),
        ..Default::default()
    };
    let channel = world.anonymous().channel;
    let path = "/countersign.v1.AuthService/Login";
    call_with(&channel, path, &headers, &request)
        .await
        .map(drop)
}

on_both! {
    // Leans on middleware/authenticate.rs, caller: one header says who calls, and
    // where it is not there, nobody does.
    async fn a_header_that_named_a_user_was_believed_by_an_rpc(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let channel = world.anonymous().channel;
        let nobody = spoofed(&admin);
        let mut as_ana = spoofed(&admin);
        as_ana.push(bearer(&ana.tokens.access_token));
        let mut asked = 0;
        for row in ROWS {
            // What a request says does not matter to who may call.
            let says_nothing = v1::WhoAmIRequest {};
            if matches!(row.who, Who::Caller | Who::Needs(_)) {
                asked += 1;
                let reply = call_with(&channel, row.path, &nobody, &says_nothing).await;
                refused(reply, Code::Unauthenticated, "CREDENTIALS_MISSING");
            }
            if matches!(row.who, Who::Needs(_)) {
                let reply = call_with(&channel, row.path, &as_ana, &says_nothing).await;
                refused(reply, Code::PermissionDenied, "PERMISSION_DENIED");
            }
        }
        assert!(asked > 30, "{asked}");
        let who = "/countersign.v1.AuthService/WhoAmI";
        let reply = call_with(&channel, who, &as_ana, &v1::WhoAmIRequest {}).await.unwrap();
        let caller = v1::WhoAmIResponse::decode(&reply[..]).unwrap().caller.unwrap();
        assert_eq!(caller.subject, ana.user_id);
        assert!(caller.roles.is_empty() && caller.scopes.is_empty(), "{caller:?}");
        // An odd neighbour does not make the one header count for more, or twice.
        for (name, value) in [
            ("authorization", format!("Basic {}", admin.tokens.access_token)),
            ("authorization", admin.tokens.access_token.clone()),
            ("authorization", format!("Bearer {}", admin.tokens.access_token)),
        ] {
            let mut two = as_ana.clone();
            two.push((name, value));
            let reply = call_with(&channel, who, &two, &v1::WhoAmIRequest {}).await;
            refused(reply, Code::Unauthenticated, "CREDENTIALS_MISSING");
        }
    }

    // Leans on grpc/ext_authz.rs, caller, and on grpc/ext_authz/answer.rs, which
    // removes what it does not set.
    async fn a_header_that_named_a_user_was_passed_on_by_a_proxy(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let nobody = spoofed(&admin);
        // What Envoy sends of itself is no credential of the request, either.
        let metadata = [vec![bearer(&admin.tokens.access_token)], spoofed(&admin)].concat();
        for route in [&[][..], &[("role", "admin")], &[("scope", "countersign.users.write")]] {
            assert_eq!(verdict(&check(&world, route, &nobody, &metadata).await), 401, "{route:?}");
        }
        let ours: BTreeSet<&str> = NAMES.into_iter().filter(|name| name.starts_with("x-countersign-")).collect();
        let ok = passes(check(&world, &[("optional", "true")], &nobody, &metadata).await);
        assert_eq!(told(&ok).into_keys().collect::<Vec<_>>(), ["x-countersign-staleness"]);
        let removed: BTreeSet<&str> = ok.headers_to_remove.iter().map(String::as_str).collect();
        assert!(removed.is_superset(&ours), "{removed:?}");

        let mut as_ana = nobody;
        as_ana.push(bearer(&ana.tokens.access_token));
        let ok = passes(check(&world, &[], &as_ana, &metadata).await);
        let told = told(&ok);
        assert_eq!(told["x-countersign-subject"], ana.user_id);
        for name in ours {
            assert!(told.contains_key(name) || ok.headers_to_remove.iter().any(|gone| gone == name), "{name}");
            assert!(told.get(name).is_none_or(|value| *value != admin.user_id && *value != "admin"), "{name}");
        }
        for route in [&[("role", "admin")][..], &[("scope", "countersign.users.write")]] {
            assert_eq!(verdict(&check(&world, route, &as_ana, &metadata).await), 403, "{route:?}");
        }
    }

    // Leans on middleware/peer.rs, client: who is not trusted says nothing about
    // where a call comes from.
    async fn an_address_that_the_caller_had_written_was_believed(world: World) {
        let email = world.person().await.email;
        let world = world.restarted(|config| {
            config.limits.rate_limits_enabled = true;
            config.limits.login_per_minute = 5;
        }).await;
        let mut said = BTreeMap::new();
        for n in 1..=12 {
            let status = guess(&world, &email, &format!("198.51.100.{n}")).await.unwrap_err();
            *said.entry(Failure::from(&status).reason).or_insert(0) += 1;
        }
        // One address, and its limit.
        assert_eq!(said, BTreeMap::from([("LOGIN_FAILED".to_owned(), 5), ("RATE_LIMITED".to_owned(), 7)]));
        let addresses = "SELECT DISTINCT address FROM audit_origins WHERE address IS NOT NULL";
        assert_eq!(world.query(addresses).await, ["127.0.0.1"]);

        // A proxy of our own is believed, as far as it has written it itself.
        let world = world.restarted(|config| {
            config.limits.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        }).await;
        let mut limited = 0;
        for n in 1..=12 {
            let chain = format!("192.0.2.{n}, 203.0.113.7");
            let status = guess(&world, &email, &chain).await.unwrap_err();
            limited += usize::from(Failure::from(&status).reason == "RATE_LIMITED");
        }
        assert_eq!(limited, 7, "what stands to the left of it was written by anybody");
        let another = guess(&world, &email, "203.0.113.8").await;
        refused(another, Code::Unauthenticated, "LOGIN_FAILED");
        let mut found = world.query(addresses).await;
        found.sort_unstable();
        assert_eq!(found, ["127.0.0.1", "203.0.113.7", "203.0.113.8"]);
        // The list of sessions says the same.
        let pair = world::login(&world.anonymous(), &email, PASSWORD).await.unwrap();
        let client = world.anonymous().with_token(&pair.access_token);
        let sessions = calls::sessions(&client, "").await.unwrap();
        assert!(sessions.iter().all(|session| session.address == "127.0.0.1"), "{sessions:?}");
    }

    // Leans on the verifier, where what is remembered of a token is its signature
    // alone: `judge` in proof.rs, and `lacking` in grpc/ext_authz.rs, are asked at
    // each hit.
    async fn an_answer_for_one_route_was_remembered_for_another(world: World) {
        let world = world.restarted(|config| {
            config.audiences = ["orders", "stock"].map(String::from).into();
            config.own_audience = "orders".to_owned();
        }).await;
        let (ana, _) = rpc::persona(&world, &["orders.read"]).await;
        let (ben, _) = rpc::persona(&world, &["orders.write"]).await;
        let mut tokens = Vec::new();
        for person in [&ana, &ben] {
            let request = v1::LoginRequest {
                identifier: person.email.clone(),
                password: PASSWORD.into(),
                audiences: vec!["orders".into()],
                ..Default::default()
            };
            let reply = world.anonymous().auth.login(request).await.unwrap().into_inner();
            let Some(v1::login_response::Result::Tokens(pair)) = reply.result else {
                panic!("no tokens")
            };
            tokens.push(pair.access_token);
        }
        // The more lenient first, and all of it again and again: from the second
        // round on every token is known.
        for round in 0..3 {
            for (route, anas, bens) in [
                (&[][..], 0, 0),
                (&[("audience", "orders")], 0, 0),
                (&[("audience", "stock")], 401, 401),
                (&[("scope", "orders.read")], 0, 403),
                (&[("scope", "orders.write")], 403, 0),
                (&[("scope", "orders.read orders.write")], 403, 403),
                (&[("role", "admin")], 403, 403),
                (&[("scope", "orders.read"), ("audience", "stock")], 401, 401),
            ] {
                for (person, token, expected) in [(&ana, &tokens[0], anas), (&ben, &tokens[1], bens)] {
                    let response = check(&world, route, &[bearer(token)], &[]).await;
                    assert_eq!(verdict(&response), expected, "round {round}, {route:?}");
                    if expected == 0 {
                        let ok = passes(response);
                        assert_eq!(told(&ok)["x-countersign-subject"], person.user_id, "round {round}, {route:?}");
                    }
                }
            }
        }
        // Nor do the RPCs take one for another.
        let mut asked = world.anonymous().tokens;
        for (audience, good) in [("orders", true), ("stock", false), ("", true), ("stock", false)] {
            let request = v1::ValidateTokenRequest { token: tokens[0].clone(), audience: audience.into() };
            assert_eq!(asked.validate_token(request).await.is_ok(), good, "{audience}");
        }
    }
}
