//! Secrets that would be known again go through every RPC, well and badly, at
//! the most talkative log level; afterwards no part of them, in any spelling,
//! is in the log, in an answer to a failed call, or among the metrics.

use std::collections::{BTreeSet, HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use countersign_proto::{FILE_DESCRIPTOR_SET, v1};
use prost::Message as _;
use prost_types::FieldMask;
use tonic::{Request, Response, Status};

use crate::{
    harness::{Client, Kind, binary::Program, rpc::Raw},
    on_both,
};

const ADMIN_EMAIL: &str = "canary-admin-4c81@lighthouse-7.example";
const EMAIL: &str = "canary-person-9f02@windmill-3.example";
const NEXT_EMAIL: &str = "canary-moved-6e55@orchard-12.example";
const OTHER_EMAIL: &str = "canary-other-d3a7@quarry-5.example";
const UNKNOWN_EMAIL: &str = "canary-nobody-71b4@harbour-8.example";
const USERNAME: &str = "canary.username.0b6d";
const DISPLAY_NAME: &str = "Canary Displayname 83fe";
const DEVICE_NAME: &str = "Canary Devicename 5a19";
const KEY_NAME: &str = "Canary Keyname 61c8e2";
const METADATA: &str = "canary-metadata-value-2c44";
const PASSWORD: &str = "canary password first e07b";
const NEXT_PASSWORD: &str = "canary password second 18d6";
const SET_PASSWORD: &str = "canary password third 94af";
const WRONG_PASSWORD: &str = "canary password wrong 3b70";
const BAD_TOKEN: &str = "canary.bearer-token.c5d8e1f2a3b4";
const BAD_REFRESH: &str = "csr_canary-refresh-token-e8f1a2b3c4d5";
const MASTER_KEY: &str = "f10e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f1";
const DATABASE_PASSWORD: &str = "canary-database-password-a6c9";

const KNOWN: [&str; 18] = [
    ADMIN_EMAIL,
    EMAIL,
    NEXT_EMAIL,
    OTHER_EMAIL,
    UNKNOWN_EMAIL,
    USERNAME,
    DISPLAY_NAME,
    DEVICE_NAME,
    METADATA,
    KEY_NAME,
    PASSWORD,
    NEXT_PASSWORD,
    SET_PASSWORD,
    WRONG_PASSWORD,
    BAD_TOKEN,
    BAD_REFRESH,
    MASTER_KEY,
    DATABASE_PASSWORD,
];

/// A shorter piece could be there by accident; a longer one could be missed.
const PIECE: usize = 16;

/// All pieces of all secrets, as they are and as they are often written.
#[derive(Debug, Default)]
struct Secrets {
    pieces: HashSet<[u8; PIECE]>,
    /// Their beginnings as lists of numbers.
    numbers: Vec<String>,
}

impl Secrets {
    fn add(&mut self, secret: &[u8]) {
        assert!(secret.len() >= PIECE, "too short to be known again");
        self.add_text(secret);
        let hex = secret.iter().map(|byte| format!("{byte:02x}"));
        let hex = hex.collect::<Vec<_>>().concat();
        self.add_text(hex.as_bytes());
        self.add_text(hex.to_uppercase().as_bytes());
        let numbers = secret.iter().take(12).map(u8::to_string);
        self.numbers.push(numbers.collect::<Vec<_>>().join(", "));
        let percent: Vec<String> = secret
            .iter()
            .map(|&byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        self.add_text(percent.concat().as_bytes());
        self.add_text(percent.concat().replace("%20", "+").as_bytes());
        // Within something longer it may begin at any of three places.
        for before in 0..3 {
            let shifted = [&b"xx"[..before], secret].concat();
            let text = STANDARD_NO_PAD.encode(&shifted);
            // The first and the last characters depend on what is around.
            let own = &text[(before * 8).div_ceil(6)..shifted.len() * 8 / 6];
            self.add_text(own.as_bytes());
            self.add_text(own.replace('+', "-").replace('/', "_").as_bytes());
        }
    }

    fn add_text(&mut self, text: &[u8]) {
        let pieces = text
            .windows(PIECE)
            .map(|piece| <[u8; PIECE]>::try_from(piece).unwrap());
        self.pieces.extend(pieces);
    }

    /// Fails if there is a piece of a secret.
    #[track_caller]
    fn assert_none_in(&self, what: &str, text: &[u8]) {
        let found = text
            .windows(PIECE)
            .position(|piece| self.pieces.contains(piece));
        let numbers = || {
            let text = String::from_utf8_lossy(text);
            self.numbers.iter().find_map(|numbers| text.find(numbers))
        };
        if let Some(at) = found.or_else(numbers) {
            let around = &text[at.saturating_sub(300)..text.len().min(at + 300)];
            panic!(
                "a secret is in {what}: …{}…",
                String::from_utf8_lossy(around)
            );
        }
    }
}

/// Calls, with what they were answered when they failed.
struct Walk {
    nobody: Client,
    said: Vec<u8>,
    secrets: Secrets,
    device_token: String,
}

impl Walk {
    /// Keeps what a call that must fail was answered.
    #[track_caller]
    fn bad<T: std::fmt::Debug>(&mut self, result: Result<Response<T>, Status>) {
        let status = result.expect_err("fails");
        let said = format!("{} {:?}\n", status.message(), status.metadata());
        self.said.extend_from_slice(said.as_bytes());
        self.said.extend_from_slice(status.details());
        self.said.push(b'\n');
    }

    /// Remembers the secrets of a pair, and gives a client that holds it.
    fn holding(&mut self, pair: &v1::TokenPair) -> Client {
        // Any token begins with the same header; that alone is no secret.
        let (_, rest) = pair.access_token.split_once('.').unwrap();
        self.secrets.add(rest.as_bytes());
        self.secrets.add(pair.refresh_token.as_bytes());
        self.nobody.with_token(&pair.access_token)
    }

    async fn login(&mut self, identifier: &str, password: &str) -> (Client, v1::TokenPair) {
        let request = v1::LoginRequest {
            identifier: identifier.into(),
            password: password.into(),
            device_name: DEVICE_NAME.into(),
            device_token: self.device_token.clone(),
            ..Default::default()
        };
        let reply = good(self.nobody.auth.login(request).await);
        self.secrets.add(reply.device_token.as_bytes());
        self.device_token = reply.device_token;
        let Some(v1::login_response::Result::Tokens(pair)) = reply.result else {
            panic!("no tokens")
        };
        (self.holding(&pair), pair)
    }
}

/// The answer of a call that must succeed.
#[track_caller]
fn good<T>(result: Result<Response<T>, Status>) -> T {
    result.expect("succeeds").into_inner()
}

fn register(email: &str, password: &str) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.into(),
        password: password.into(),
        username: USERNAME.into(),
        display_name: DISPLAY_NAME.into(),
        request_id: String::new(),
    }
}

on_both! {
    async fn no_secret_is_told_to_anybody(program: Program) {
        let mut program = program
            .set("COUNTERSIGN_LOG", "trace")
            .set("COUNTERSIGN_MASTER_KEY", MASTER_KEY);
        if program.database.kind == Kind::Postgres {
            let mut url = url::Url::parse(&program.database.url).unwrap();
            url.set_password(Some(DATABASE_PASSWORD)).unwrap();
            program = program.set("COUNTERSIGN_DATABASE_URL", url.as_str());
        }
        let create = ["user", "create", "--email", ADMIN_EMAIL, "--role", "admin", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let server = program.serve("server").await;
        let mut secrets = Secrets::default();
        for secret in KNOWN {
            secrets.add(secret.as_bytes());
        }
        let raw_key: Vec<u8> = MASTER_KEY
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        secrets.add(&raw_key);
        let mut walk = Walk { nobody: server.client(), said: Vec::new(), secrets, device_token: String::new() };

        people(&mut walk).await;
        administration(&mut walk).await;
        keys(&mut walk).await;
        audit(&mut walk).await;
        garbage(&mut walk).await;
        let (_, metrics) = server.get("/metrics").await;
        assert!(metrics.contains("countersign_requests_total"));

        let Walk { said, secrets, .. } = walk;
        secrets.assert_none_in("an answer to a failed call", &said);
        secrets.assert_none_in("the metrics", metrics.as_bytes());
        secrets.assert_none_in("the log", server.log().as_bytes());

        // Every RPC was there, well and badly.
        let seen = |ok: bool| -> BTreeSet<String> {
            let lines = server.lines().into_iter();
            let lines = lines.filter(|line| line["target"] == "countersign::access");
            lines
                .filter(|line| (line["code"] == "OK") == ok)
                .map(|line| line["rpc"].as_str().unwrap().to_owned())
                .collect()
        };
        for (rpc, _) in methods() {
            // A stream goes on until its reader leaves, which is no success.
            let streams = rpc.ends_with("/WatchTrust") || rpc.ends_with("/WatchEvents");
            assert!(streams || seen(true).contains(&rpc), "{rpc} never went well");
            assert!(seen(false).contains(&rpc), "{rpc} never failed");
        }
    }
}

/// What people do with their own accounts.
#[expect(clippy::too_many_lines, reason = "one walk, step by step")]
async fn people(walk: &mut Walk) {
    let mut nobody = walk.nobody.clone();
    let reply = nobody.auth.register(register(EMAIL, PASSWORD)).await;
    good(reply);
    let reply = nobody.auth.register(register(EMAIL, PASSWORD)).await;
    walk.bad(reply);
    // A taken username, and fields that break their rules.
    let reply = nobody.auth.register(register(OTHER_EMAIL, PASSWORD)).await;
    walk.bad(reply);
    let broken = v1::RegisterRequest {
        email: format!("{EMAIL} {EMAIL}"),
        password: SET_PASSWORD.repeat(20),
        username: format!("{USERNAME}!"),
        display_name: format!("{DISPLAY_NAME}\u{0}"),
        request_id: BAD_TOKEN.into(),
    };
    let reply = nobody.auth.register(broken).await;
    walk.bad(reply);

    for (identifier, password) in [
        (EMAIL, WRONG_PASSWORD),
        (USERNAME, WRONG_PASSWORD),
        (UNKNOWN_EMAIL, PASSWORD),
    ] {
        let request = v1::LoginRequest {
            identifier: identifier.into(),
            password: password.into(),
            ..Default::default()
        };
        let reply = nobody.auth.login(request).await;
        walk.bad(reply);
    }
    let (mut ana, pair) = walk.login(EMAIL, PASSWORD).await;
    let reply = ana.auth.who_am_i(v1::WhoAmIRequest {}).await;
    good(reply);

    for token in [
        &pair.access_token,
        BAD_TOKEN,
        &pair.access_token.replace("eyJ", "eyK"),
    ] {
        let request = v1::ValidateTokenRequest {
            token: token.into(),
            audience: String::new(),
        };
        let reply = nobody.tokens.validate_token(request.clone()).await;
        if *token == pair.access_token {
            good(reply);
        } else {
            walk.bad(reply);
        }
        let items = v1::ValidateTokensRequest {
            items: vec![request],
        };
        let reply = nobody.tokens.validate_tokens(items).await;
        good(reply);
    }
    let request = v1::ExplainTokenRequest {
        token: pair.access_token.clone(),
        audience: String::new(),
    };
    let reply = ana.tokens.explain_token(request).await;
    walk.bad(reply);
    let reply = nobody.tokens.get_jwks(v1::GetJwksRequest {}).await;
    good(reply);
    let mut forger = walk.nobody.with_token(BAD_TOKEN);
    let reply = forger.auth.who_am_i(v1::WhoAmIRequest {}).await;
    walk.bad(reply);

    let refresh = |token: &str| v1::RefreshRequest {
        refresh_token: token.into(),
        audiences: vec![],
    };
    let reply = nobody.auth.refresh(refresh(&pair.refresh_token)).await;
    let next = good(reply).tokens.unwrap();
    walk.holding(&next);
    let reply = nobody.auth.refresh(refresh(BAD_REFRESH)).await;
    walk.bad(reply);
    let change = |current: &str, new: &str| v1::ChangePasswordRequest {
        current_password: current.into(),
        new_password: new.into(),
    };
    let reply = ana
        .auth
        .change_password(change(WRONG_PASSWORD, NEXT_PASSWORD))
        .await;
    walk.bad(reply);
    let reply = ana
        .auth
        .change_password(change(PASSWORD, NEXT_PASSWORD))
        .await;
    let fresh = good(reply).tokens.unwrap();
    let mut ana = walk.holding(&fresh);
    let reply = ana
        .sessions
        .list_sessions(v1::ListSessionsRequest::default())
        .await;
    let sessions = good(reply).sessions;
    assert_eq!(sessions[0].device_name, DEVICE_NAME);

    // A stolen token, two generations old.
    let reply = nobody.auth.refresh(refresh(&fresh.refresh_token)).await;
    let second = good(reply).tokens.unwrap();
    walk.holding(&second);
    let reply = nobody.auth.refresh(refresh(&second.refresh_token)).await;
    let third = good(reply).tokens.unwrap();
    walk.holding(&third);
    let reply = nobody.auth.refresh(refresh(&fresh.refresh_token)).await;
    walk.bad(reply);

    let (mut ana, pair) = walk.login(USERNAME, NEXT_PASSWORD).await;
    let revoke = v1::RevokeSessionRequest {
        session_id: pair.session_id,
    };
    let reply = ana.sessions.revoke_session(revoke.clone()).await;
    good(reply);
    let reply = ana.sessions.revoke_session(revoke).await;
    walk.bad(reply);
    let (mut ana, _) = walk.login(EMAIL, NEXT_PASSWORD).await;
    let reply = ana
        .sessions
        .revoke_all_sessions(v1::RevokeAllSessionsRequest::default())
        .await;
    good(reply);
    let (_, pair) = walk.login(EMAIL, NEXT_PASSWORD).await;
    let leave = |token: &str| v1::LogoutRequest {
        refresh_token: token.into(),
    };
    let reply = nobody.auth.logout(leave(&pair.refresh_token)).await;
    good(reply);
    let reply = nobody.auth.logout(leave(BAD_REFRESH)).await;
    walk.bad(reply);
}

/// What administrators do with the accounts of others.
#[expect(clippy::too_many_lines, reason = "one walk, step by step")]
async fn administration(walk: &mut Walk) {
    let (mut admin, _) = walk.login(ADMIN_EMAIL, PASSWORD).await;
    let role = v1::Role {
        name: "keeper".into(),
        description: DISPLAY_NAME.into(),
        permissions: vec!["orders.read".into()],
        ..Default::default()
    };
    let create = v1::CreateRoleRequest {
        name: role.name.clone(),
        description: role.description.clone(),
        permissions: role.permissions.clone(),
        request_id: String::new(),
    };
    let reply = admin.roles.create_role(create.clone()).await;
    good(reply);
    let reply = admin.roles.create_role(create).await;
    walk.bad(reply);
    let reply = admin
        .roles
        .list_roles(v1::ListRolesRequest::default())
        .await;
    good(reply);
    let all = v1::ListRolesRequest {
        page_token: BAD_TOKEN.into(),
        ..Default::default()
    };
    let reply = admin.roles.list_roles(all).await;
    walk.bad(reply);
    let mask = |path: &str| {
        Some(FieldMask {
            paths: vec![path.into()],
        })
    };
    let update = v1::UpdateRoleRequest {
        role: Some(role),
        update_mask: mask("description"),
    };
    let reply = admin.roles.update_role(update).await;
    good(reply);

    let create = v1::CreateUserRequest {
        email: OTHER_EMAIL.into(),
        password: PASSWORD.into(),
        metadata: [("note".to_owned(), METADATA.to_owned())].into(),
        ..Default::default()
    };
    let reply = admin.users.create_user(create.clone()).await;
    let user_id = good(reply).user.unwrap().user_id;
    let reply = admin.users.create_user(create).await;
    walk.bad(reply);
    let reply = admin
        .users
        .get_user(v1::GetUserRequest {
            user_id: user_id.clone(),
        })
        .await;
    good(reply);
    let reply = admin
        .users
        .get_user(v1::GetUserRequest {
            user_id: BAD_TOKEN.into(),
        })
        .await;
    walk.bad(reply);
    let several = |id: &str| v1::BatchGetUsersRequest {
        user_ids: vec![id.into()],
    };
    let reply = admin.users.batch_get_users(several(&user_id)).await;
    good(reply);
    let reply = admin.users.batch_get_users(several(BAD_TOKEN)).await;
    walk.bad(reply);
    let filtered = |prefix: &str, page_token: &str| v1::ListUsersRequest {
        filter: Some(v1::UserFilter {
            email_prefix: prefix.into(),
            ..Default::default()
        }),
        page_token: page_token.into(),
        page_size: 1,
    };
    let reply = admin.users.list_users(filtered(OTHER_EMAIL, "")).await;
    good(reply);
    let reply = admin
        .users
        .list_users(filtered(OTHER_EMAIL, BAD_TOKEN))
        .await;
    walk.bad(reply);
    for (email, is_free) in [(NEXT_EMAIL, true), (EMAIL, false)] {
        let user = v1::User {
            user_id: user_id.clone(),
            email: email.into(),
            metadata: [("note".to_owned(), METADATA.to_owned())].into(),
            ..Default::default()
        };
        let update = v1::UpdateUserRequest {
            user: Some(user),
            update_mask: mask("email"),
        };
        let reply = admin.users.update_user(update).await;
        if is_free {
            good(reply);
        } else {
            walk.bad(reply);
        }
    }
    let set = |password: &str| v1::SetPasswordRequest {
        user_id: user_id.clone(),
        password: password.into(),
    };
    let reply = admin.users.set_password(set(SET_PASSWORD)).await;
    good(reply);
    let reply = admin
        .users
        .set_password(set(&WRONG_PASSWORD.repeat(20)))
        .await;
    walk.bad(reply);
    let grant = |role: &str| v1::GrantRoleRequest {
        user_id: user_id.clone(),
        role: role.into(),
    };
    let reply = admin.users.grant_role(grant("keeper")).await;
    good(reply);
    let reply = admin.users.grant_role(grant(USERNAME)).await;
    walk.bad(reply);
    let revoke = v1::RevokeRoleRequest {
        user_id: user_id.clone(),
        role: "keeper".into(),
    };
    let reply = admin.users.revoke_role(revoke).await;
    good(reply);
    let reply = admin
        .roles
        .delete_role(v1::DeleteRoleRequest {
            name: "keeper".into(),
        })
        .await;
    good(reply);
    let create = |scope: &str| v1::CreateApiKeyRequest {
        user_id: user_id.clone(),
        name: KEY_NAME.into(),
        scopes: vec![scope.into()],
        ..Default::default()
    };
    let reply = admin.api_keys.create_api_key(create("orders.read")).await;
    walk.bad(reply);
    let wish = v1::CreateApiKeyRequest {
        scopes: vec![],
        ..create("")
    };
    let reply = admin.api_keys.create_api_key(wish).await;
    let made = good(reply);
    walk.secrets.add(made.secret.as_bytes());
    let api_key_id = made.api_key.unwrap().api_key_id;
    let list = |page_token: &str| v1::ListApiKeysRequest {
        user_id: user_id.clone(),
        page_token: page_token.into(),
        ..Default::default()
    };
    let reply = admin.api_keys.list_api_keys(list("")).await;
    assert_eq!(good(reply).api_keys[0].name, KEY_NAME);
    let reply = admin.api_keys.list_api_keys(list(BAD_TOKEN)).await;
    walk.bad(reply);
    let rotate = |id: &str| v1::RotateApiKeyRequest {
        api_key_id: id.into(),
        overlap: None,
    };
    let reply = admin.api_keys.rotate_api_key(rotate(&api_key_id)).await;
    let rotated = good(reply);
    walk.secrets.add(rotated.secret.as_bytes());
    let reply = admin.api_keys.rotate_api_key(rotate(BAD_TOKEN)).await;
    walk.bad(reply);
    for secret in [&made.secret, &rotated.secret] {
        let mut program = walk.nobody.with_token(secret);
        let reply = program.auth.who_am_i(v1::WhoAmIRequest {}).await;
        good(reply);
        let reply = program
            .users
            .list_users(v1::ListUsersRequest::default())
            .await;
        walk.bad(reply);
    }
    let revoke = v1::RevokeApiKeyRequest { api_key_id };
    let reply = admin.api_keys.revoke_api_key(revoke.clone()).await;
    good(reply);
    let reply = admin.api_keys.revoke_api_key(revoke).await;
    walk.bad(reply);
    let mut program = walk.nobody.with_token(&rotated.secret);
    let reply = program.auth.who_am_i(v1::WhoAmIRequest {}).await;
    walk.bad(reply);
    let reply = admin
        .users
        .disable_user(v1::DisableUserRequest {
            user_id: user_id.clone(),
        })
        .await;
    good(reply);
    let request = v1::LoginRequest {
        identifier: NEXT_EMAIL.into(),
        password: SET_PASSWORD.into(),
        ..Default::default()
    };
    let reply = walk.nobody.clone().auth.login(request).await;
    walk.bad(reply);
    let reply = admin
        .users
        .enable_user(v1::EnableUserRequest {
            user_id: user_id.clone(),
        })
        .await;
    good(reply);
    let reply = admin
        .users
        .unlock_user(v1::UnlockUserRequest {
            user_id: user_id.clone(),
        })
        .await;
    good(reply);
    let reply = admin
        .users
        .delete_user(v1::DeleteUserRequest { user_id })
        .await;
    good(reply);
}

/// What is no request, is too large a one, or has no right to be made: of every
/// RPC.
/// The keys that sign, and who follows them.
async fn keys(walk: &mut Walk) {
    let (mut admin, _) = walk.login(ADMIN_EMAIL, PASSWORD).await;
    let all = good(admin.keys.list_keys(v1::ListKeysRequest {}).await);
    assert_eq!(all.keys.len(), 1);
    let stage = async |admin: &mut Client| {
        let reply = admin.keys.stage_key(v1::StageKeyRequest::default()).await;
        good(reply).key.unwrap().kid
    };
    let activate = v1::ActivateKeyRequest {
        kid: stage(&mut admin).await,
        force: true,
        ..Default::default()
    };
    good(admin.keys.activate_key(activate).await);
    let retire = v1::RetireKeyRequest {
        kid: stage(&mut admin).await,
    };
    good(admin.keys.retire_key(retire).await);

    let watch = v1::WatchTrustRequest::default();
    let mut stream = good(admin.trust.watch_trust(watch).await);
    let first = stream.message().await.unwrap().unwrap();
    let Some(v1::watch_trust_response::Event::Welcome(welcome)) = first.event else {
        panic!("no welcome")
    };
    let acknowledge = v1::AckTrustRequest {
        stream_id: welcome.stream_id,
        seq: 1,
    };
    good(admin.trust.ack_trust(acknowledge).await);
}

/// Who reads what they have all done.
async fn audit(walk: &mut Walk) {
    let (mut admin, pair) = walk.login(ADMIN_EMAIL, PASSWORD).await;
    for token in [&*pair.access_token, BAD_TOKEN] {
        let request = v1::ExplainTokenRequest {
            token: token.to_owned(),
            audience: String::new(),
        };
        good(admin.tokens.explain_token(request).await);
    }
    let reply = admin.audit.list_events(v1::ListEventsRequest::default());
    assert!(good(reply.await).events.len() > 10);
    let watch = v1::WatchEventsRequest {
        after_position: Some(0),
    };
    let mut stream = good(admin.audit.watch_events(watch).await);
    stream.message().await.unwrap().unwrap();
    let reply = admin.audit.verify_log(v1::VerifyLogRequest::default());
    assert_eq!(good(reply.await).fault, None);
}

async fn garbage(walk: &mut Walk) {
    let login = v1::LoginRequest {
        identifier: EMAIL.into(),
        password: PASSWORD.into(),
        ..Default::default()
    };
    // The first field is text and says how long it is, but it is not so long.
    let mut cut = login.encode_to_vec();
    cut.insert(0, 0x7f);
    cut.insert(0, 0x0a);
    let mut huge = login.encode_to_vec();
    while huge.len() < 5 << 20 {
        huge.extend_from_slice(&login.encode_to_vec());
    }
    for (rpc, _) in methods() {
        for body in [&cut, &huge] {
            let mut grpc = tonic::client::Grpc::new(walk.nobody.channel.clone());
            grpc.ready().await.unwrap();
            let path = format!("/{rpc}").parse().unwrap();
            let mut request = Request::new(body.clone());
            let bearer = format!("Bearer {BAD_TOKEN}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
            let reply = grpc.unary(request, path, Raw).await;
            walk.bad(reply);
        }
    }
}

/// Every RPC of ours with its comment.
pub fn methods() -> Vec<(String, String)> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let files = set
        .file
        .iter()
        .filter(|file| file.package() == "countersign.v1");
    let mut methods = Vec::new();
    for file in files {
        let locations = &file.source_code_info.as_ref().unwrap().location;
        for (s, service) in file.service.iter().enumerate() {
            for (m, method) in service.method.iter().enumerate() {
                // A service is field 6 of a file, a method field 2 of a service.
                let path = [6, i32::try_from(s).unwrap(), 2, i32::try_from(m).unwrap()];
                let comment = locations.iter().find(|location| location.path == path);
                let comment = comment.map(|location| location.leading_comments().to_owned());
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((name, comment.unwrap_or_default()));
            }
        }
    }
    assert!(methods.len() > 25, "{methods:?}");
    methods
}
