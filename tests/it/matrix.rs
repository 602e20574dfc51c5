//! Every RPC against every state that a caller can be in, exactly. The RPCs
//! come from the descriptor: one that has no row here fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::domain::Permission;
use countersign_proto::v1;
use countersign_verifier::Claims;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    harness::{
        Client, Failure, Person, World, calls, refused,
        rpc::{self, Objects},
    },
    on_both,
};

/// What one call is to say.
type Says = (Code, &'static str);

const GOOD: Says = (Code::Ok, "");
const NONE: Says = (Code::Unauthenticated, "CREDENTIALS_MISSING");
const BAD_: Says = (Code::Unauthenticated, "TOKEN_INVALID");
const DENY: Says = (Code::PermissionDenied, "PERMISSION_DENIED");
const HIGH: Says = (Code::PermissionDenied, "TARGET_OUTRANKS_CALLER");
const KEY_: Says = (Code::NotFound, "API_KEY_NOT_FOUND");
const HIDE: Says = (Code::NotFound, "SESSION_NOT_FOUND");

/// What a caller can be, in the order of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No token.
    Anonymous,
    /// An admin's token that is not good, for each of the reasons in
    /// [`bad_tokens`].
    Bad,
    /// A user without permissions, acting upon what is their own.
    Own,
    /// A user without permissions, acting upon another's.
    Other,
    /// Every permission but the one that is needed.
    Lacking,
    /// The needed permission alone.
    Permitted,
    /// The needed permission alone, acting upon an admin or a role that
    /// permits what the caller may not.
    Below,
    /// An admin acting upon another's.
    Admin,
}

const STATES: [State; 8] = [
    State::Anonymous,
    State::Bad,
    State::Own,
    State::Other,
    State::Lacking,
    State::Permitted,
    State::Below,
    State::Admin,
];

struct Row {
    rpc: &'static str,
    needs: &'static str,
    says: [Says; 8],
}

const fn row(rpc: &'static str, needs: &'static str, says: [Says; 8]) -> Row {
    Row { rpc, needs, says }
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    //                                                                     Anon  Bad   Own   Other Lack  Perm  Below Admin
    row("TokenService/ValidateToken", "",                                 [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("TokenService/ValidateTokens", "",                                [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("TokenService/ExplainToken", "countersign.tokens.explain",        [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("TokenService/GetJwks", "",                                       [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/Register", "",                                       [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/Login", "",                                          [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/Refresh", "",                                        [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/Logout", "",                                         [NONE, BAD_, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/WhoAmI", "",                                         [NONE, BAD_, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("AuthService/ChangePassword", "",                                 [NONE, BAD_, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD]),
    row("UserService/CreateUser", "countersign.users.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("UserService/GetUser", "countersign.users.read",                  [NONE, BAD_, GOOD, DENY, DENY, GOOD, GOOD, GOOD]),
    row("UserService/BatchGetUsers", "countersign.users.read",            [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("UserService/ListUsers", "countersign.users.read",                [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("UserService/UpdateUser", "countersign.users.write",              [NONE, BAD_, GOOD, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/DeleteUser", "countersign.users.delete",             [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/DisableUser", "countersign.users.write",             [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/EnableUser", "countersign.users.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/UnlockUser", "countersign.users.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/SetPassword", "countersign.users.set_password",      [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/GrantRole", "countersign.roles.grant",               [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("UserService/RevokeRole", "countersign.roles.grant",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("RoleService/CreateRole", "countersign.roles.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("RoleService/ListRoles", "countersign.roles.read",                [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("RoleService/UpdateRole", "countersign.roles.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("RoleService/DeleteRole", "countersign.roles.write",              [NONE, BAD_, DENY, DENY, DENY, GOOD, HIGH, GOOD]),
    row("SessionService/ListSessions", "countersign.sessions.read",       [NONE, BAD_, GOOD, DENY, DENY, GOOD, GOOD, GOOD]),
    // Whether another's session is there is not for everybody to know.
    row("SessionService/RevokeSession", "countersign.sessions.revoke",    [NONE, BAD_, GOOD, HIDE, HIDE, GOOD, HIGH, GOOD]),
    row("SessionService/RevokeAllSessions", "countersign.sessions.revoke",[NONE, BAD_, GOOD, DENY, DENY, GOOD, HIGH, GOOD]),
    row("TrustService/WatchTrust", "countersign.trust.watch",             [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("TrustService/AckTrust", "countersign.trust.watch",               [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("ApiKeyService/CreateApiKey", "countersign.api_keys.write",       [NONE, BAD_, GOOD, DENY, DENY, GOOD, HIGH, GOOD]),
    row("ApiKeyService/ListApiKeys", "countersign.api_keys.read",         [NONE, BAD_, GOOD, DENY, DENY, GOOD, GOOD, GOOD]),
    row("ApiKeyService/RotateApiKey", "countersign.api_keys.write",       [NONE, BAD_, GOOD, KEY_, KEY_, GOOD, HIGH, GOOD]),
    row("ApiKeyService/RevokeApiKey", "countersign.api_keys.write",       [NONE, BAD_, GOOD, KEY_, KEY_, GOOD, HIGH, GOOD]),
    row("KeyService/ListKeys", "countersign.keys.read",                   [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("KeyService/StageKey", "countersign.keys.rotate",                 [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("KeyService/ActivateKey", "countersign.keys.rotate",              [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("KeyService/RetireKey", "countersign.keys.rotate",                [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("AuditService/ListEvents", "countersign.audit.read",              [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("AuditService/WatchEvents", "countersign.audit.read",             [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
    row("AuditService/VerifyLog", "countersign.audit.verify",             [NONE, BAD_, DENY, DENY, DENY, GOOD, GOOD, GOOD]),
];

fn all_but(needed: &str) -> Vec<&'static str> {
    let names = Permission::ALL.iter().map(|permission| permission.name());
    names.filter(|name| *name != needed).collect()
}

/// Admins' tokens that are not good, and why.
async fn bad_tokens(world: &World) -> BTreeMap<&'static str, String> {
    let mut admin = world.admin().await;
    let disabled = world.admin().await;
    let wish = v1::DisableUserRequest {
        user_id: disabled.user_id.clone(),
    };
    admin.client.users.disable_user(wish).await.unwrap();
    let mut revoked = world.admin().await;
    let wish = v1::LogoutRequest::default();
    revoked.client.auth.logout(wish).await.unwrap();

    let good = &admin.tokens.access_token;
    let sign = |change: &dyn Fn(&mut Claims)| {
        let mut claims = claims(good);
        change(&mut claims);
        let keys = world.node.running.core().keyring.keys().unwrap();
        keys.signer.sign(&claims).unwrap()
    };
    assert!(
        validates(world, &sign(&|_| {})).await,
        "signs as the node does"
    );
    let mut forged = good.clone().into_bytes();
    let last = forged.len() - 10;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    BTreeMap::from([
        ("disabled", disabled.tokens.access_token),
        ("expired", sign(&|claims| claims.exp = claims.iat - 60)),
        ("forged", String::from_utf8(forged).unwrap()),
        ("malformed", "no.token".to_owned()),
        ("revoked session", revoked.tokens.access_token),
        (
            "wrong audience",
            sign(&|claims| claims.aud = vec!["elsewhere".into()]),
        ),
        (
            "wrong issuer",
            sign(&|claims| claims.iss = "https://elsewhere.test".into()),
        ),
    ])
}

fn claims(token: &str) -> Claims {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

async fn validates(world: &World, token: &str) -> bool {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        audience: String::new(),
    };
    world
        .anonymous()
        .tokens
        .validate_token(request)
        .await
        .is_ok()
}

/// What a call said, and which permission it named.
fn said(result: &Result<Vec<u8>, Status>) -> (Code, String, String) {
    let Err(status) = result else {
        return (Code::Ok, String::new(), String::new());
    };
    let info = status.get_error_details().error_info().cloned();
    let permission = info.and_then(|info| info.metadata.get("permission").cloned());
    let failure = Failure::from(status);
    (failure.code, failure.reason, permission.unwrap_or_default())
}

/// Makes the calls of one cell and returns what is not as the table says.
async fn cell(world: &World, row: &Row, state: State, bad: &BTreeMap<&str, String>) -> Vec<String> {
    let expected = row.says(state);
    let needed: Vec<&str> = Some(row.needs)
        .filter(|name| !name.is_empty())
        .into_iter()
        .collect();
    let person = |(person, _): (Person, String)| Some(person.tokens.access_token);
    let mut wrong = Vec::new();
    let tokens: Vec<(&str, Option<String>)> = match state {
        State::Anonymous | State::Own => vec![("", None)],
        State::Bad => bad
            .iter()
            .map(|(why, token)| (*why, Some(token.clone())))
            .collect(),
        State::Other => vec![("", person(rpc::persona(world, &[]).await))],
        State::Lacking => vec![("", person(rpc::persona(world, &all_but(row.needs)).await))],
        State::Permitted | State::Below => vec![("", person(rpc::persona(world, &needed).await))],
        State::Admin => vec![("", Some(world.admin().await.tokens.access_token))],
    };
    for (why, mut token) in tokens {
        let on = match state {
            State::Below => Objects::above(world).await,
            _ => Objects::new(world).await,
        };
        let on = on.and_keys(world, row.rpc).await;
        if state == State::Own {
            token = Some(on.target.tokens.access_token.clone());
        }
        let (path, message) = (rpc::path(row.rpc), rpc::request(row.rpc, &on));
        let channel = &world.anonymous().channel;
        let result = rpc::call(channel, &path, token.as_deref(), message).await;
        let (code, reason, permission) = said(&result);
        let named = if expected == DENY { row.needs } else { "" };
        if (code, reason.as_str(), permission.as_str()) != (expected.0, expected.1, named) {
            wrong.push(format!(
                "{} as {state:?} {why}: {code:?} {reason} {permission}, not {expected:?}",
                row.rpc
            ));
        }
    }
    wrong
}

/// RPCs that take access tokens only.
const IN_PERSON: [&str; 6] = [
    "AuthService/Logout",
    "AuthService/ChangePassword",
    "UserService/SetPassword",
    "ApiKeyService/CreateApiKey",
    "ApiKeyService/RotateApiKey",
    "ApiKeyService/RevokeApiKey",
];

const KIND: Says = (Code::PermissionDenied, "CREDENTIAL_KIND_NOT_ALLOWED");

impl Row {
    fn says(&self, state: State) -> Says {
        self.says[STATES.iter().position(|s| *s == state).unwrap()]
    }

    /// What an API key is told that may do what one in this state may, and whose
    /// owner has nothing of their own there.
    fn says_to_key(&self, state: State) -> Says {
        if IN_PERSON.contains(&self.rpc) {
            KIND
        } else {
            self.says(state)
        }
    }
}

/// API keys that are not good, and why.
async fn bad_keys(world: &World) -> BTreeMap<&'static str, String> {
    let admin = world.admin().await;
    let all = all_but("");
    let mut keys = BTreeMap::new();
    for why in ["disabled", "revoked", "rotated away"] {
        let owner = world.admin().await;
        let (id, secret) = rpc::api_key(world, &owner.user_id, &all).await;
        match why {
            "disabled" => drop(calls::disable(&admin.client, &owner.user_id).await.unwrap()),
            "revoked" => calls::revoke_api_key(&owner.client, &id).await.unwrap(),
            _ => drop(
                calls::rotate_api_key(&owner.client, &id, Duration::ZERO)
                    .await
                    .unwrap(),
            ),
        }
        keys.insert(why, secret);
    }
    let mut expiring = v1::CreateApiKeyRequest {
        name: "short".into(),
        scopes: all.iter().map(ToString::to_string).collect(),
        expires_at: Some(prost_types::Timestamp {
            seconds: 1_893_456_000 + 1,
            nanos: 0,
        }),
        ..Default::default()
    };
    let made = admin
        .client
        .clone()
        .api_keys
        .create_api_key(expiring.clone())
        .await;
    keys.insert("expired", made.unwrap().into_inner().secret);
    expiring.expires_at = None;
    expiring.audiences = vec!["elsewhere".into()];
    let made = admin.client.clone().api_keys.create_api_key(expiring).await;
    keys.insert("wrong audience", made.unwrap().into_inner().secret);
    keys.insert("unknown", countersign_verifier::api_key_text(&[7; 24]));
    keys.insert("malformed", "csk_malformed".to_owned());
    world.clock.advance(Duration::from_secs(1));
    keys
}

on_both! {
    async fn every_rpc_says_what_it_should_to_every_api_key(world: World) {
        let world = world.restarted(|config| config.audiences.push("elsewhere".into())).await;
        let channel = world.anonymous().channel;
        let mut wrong = Vec::new();
        let mut check = |row: &Row, what: &str, expected: Says, result: &Result<Vec<u8>, Status>| {
            let (code, reason, permission) = said(result);
            let named = if expected == DENY { row.needs } else { "" };
            if (code, reason.as_str(), permission.as_str()) != (expected.0, expected.1, named) {
                wrong.push(format!("{} by a key {what}: {code:?} {reason} {permission}, not {expected:?}", row.rpc));
            }
        };
        let bad = bad_keys(&world).await;
        let on = Objects::new(&world).await;
        for row in TABLE.iter().filter(|row| row.says(State::Bad) == BAD_) {
            let (path, message) = (rpc::path(row.rpc), rpc::request(row.rpc, &on));
            for (why, key) in &bad {
                let result = rpc::call(&channel, &path, Some(key), message.clone()).await;
                check(row, why, BAD_, &result);
            }
        }
        for row in TABLE {
            let path = rpc::path(row.rpc);
            let needed: Vec<&str> = Some(row.needs).filter(|name| !name.is_empty()).into_iter().collect();
            let (permitted, _) = rpc::persona(&world, &needed).await;
            let (lacking, _) = rpc::persona(&world, &all_but(row.needs)).await;
            for (what, owner, scopes, expected) in [
                ("with the scope", &permitted, needed, row.says_to_key(State::Permitted)),
                ("without the scope, of one who holds it", &permitted, vec![], row.says_to_key(State::Other)),
                ("with all others", &lacking, all_but(row.needs), row.says_to_key(State::Lacking)),
            ] {
                let on = Objects::new(&world).await.and_keys(&world, row.rpc).await;
                let (_, key) = rpc::api_key(&world, &owner.user_id, &scopes).await;
                let result = rpc::call(&channel, &path, Some(&key), rpc::request(row.rpc, &on)).await;
                check(row, what, expected, &result);
            }
            // What is its owner's own is nothing to a key.
            let on = Objects::new(&world).await.and_keys(&world, row.rpc).await;
            let (_, key) = rpc::api_key(&world, &on.target.user_id, &[]).await;
            let result = rpc::call(&channel, &path, Some(&key), rpc::request(row.rpc, &on)).await;
            check(row, "of the one acted upon", row.says_to_key(State::Other), &result);
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    async fn no_key_makes_a_credential_that_outlives_it(world: World) {
        let admin = world.admin().await;
        let (_, key) = rpc::api_key(&world, &admin.user_id, &all_but("")).await;
        let mut program = world.anonymous().with_token(&key);
        let with_password = v1::CreateUserRequest {
            email: world.new_email(),
            password: "an unremarkable long phrase".into(),
            ..Default::default()
        };
        let status = program.users.create_user(with_password.clone()).await.unwrap_err();
        let info = status.get_error_details().error_info().cloned().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["kind"].as_str()), ("CREDENTIAL_KIND_NOT_ALLOWED", "api_key"));
        let without = v1::CreateUserRequest { password: String::new(), ..with_password };
        program.users.create_user(without).await.unwrap();
        // Who it is, it is told; whom it acts for, it is not.
        let said = program.auth.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!((said.user, said.caller.unwrap().subject), (None, admin.user_id));
    }

    async fn every_rpc_says_what_the_table_says_to_every_caller(world: World) {
        let rpcs: BTreeSet<String> = rpc::all().iter().map(rpc::name).collect();
        let rows: BTreeSet<String> = TABLE.iter().map(|row| row.rpc.to_owned()).collect();
        assert_eq!(rows, rpcs, "every RPC has a row");
        let bad = bad_tokens(&world).await;
        let mut wrong = Vec::new();
        for row in TABLE {
            for state in STATES {
                wrong.extend(cell(&world, row, state, &bad).await);
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    async fn a_path_without_a_row_is_refused_whoever_calls(world: World) {
        let admin = world.admin().await;
        for path in [
            "/",
            "/countersign.v1.AuthService",
            "/countersign.v1.AuthService/",
            "/countersign.v1.AuthService/login",
            "/countersign.v1.AuthService/Login/",
            "/countersign.v1.AuthService/DropEverything",
            "/countersign.v1.AuthService/WhoAmI?x=1",
            "/countersign.v2.AuthService/Login",
            "//countersign.v1.AuthService/Login",
            "/countersign.v1.AuthService/../UserService/ListUsers",
            "/countersign.v1.AuthService%2FLogin",
        ] {
            for token in [None, Some(admin.tokens.access_token.as_str())] {
                let channel = &world.anonymous().channel;
                let result = rpc::call(channel, path, token, Vec::new()).await;
                refused(result, Code::Unimplemented, "METHOD_UNKNOWN");
            }
        }
    }

    async fn creating_with_a_password_or_roles_needs_more_than_creating(world: World) {
        let create = async |client: &Client, password: &str, roles: &[&str]| {
            let request = v1::CreateUserRequest {
                email: world.new_email(),
                password: password.to_owned(),
                roles: roles.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            client.clone().users.create_user(request).await
        };
        let password = "an unremarkable long phrase";
        let denied = (Code::PermissionDenied, "PERMISSION_DENIED");
        let write = "countersign.users.write";
        let (writer, own_role) = rpc::persona(&world, &[write]).await;
        create(&writer.client, "", &[]).await.unwrap();
        refused(create(&writer.client, password, &[]).await, denied.0, denied.1);
        refused(create(&writer.client, "", &[&own_role]).await, denied.0, denied.1);
        let (setter, _) = rpc::persona(&world, &[write, "countersign.users.set_password"]).await;
        create(&setter.client, password, &[]).await.unwrap();
        refused(create(&setter.client, password, &[&own_role]).await, denied.0, denied.1);
        let (granter, _) = rpc::persona(&world, &[write, "countersign.roles.grant"]).await;
        create(&granter.client, "", &[&own_role]).await.unwrap();
        // Nobody hands out what they do not hold.
        refused(
            create(&granter.client, "", &["admin"]).await,
            Code::PermissionDenied, "TARGET_OUTRANKS_CALLER",
        );
    }

    async fn ones_own_address_and_labels_need_a_permission_and_names_do_not(world: World) {
        let ana = world.person().await;
        let update = async |path: &str| {
            let request = v1::UpdateUserRequest {
                user: Some(v1::User {
                    user_id: ana.user_id.clone(),
                    email: world.new_email(),
                    username: "ana.lima".into(),
                    display_name: "Ana".into(),
                    metadata: [("team".to_owned(), "blue".to_owned())].into(),
                    ..Default::default()
                }),
                update_mask: Some(prost_types::FieldMask { paths: vec![path.to_owned()] }),
            };
            ana.client.clone().users.update_user(request).await
        };
        for path in ["username", "display_name"] {
            update(path).await.unwrap();
        }
        for path in ["email", "metadata", "metadata.team"] {
            refused(update(path).await, Code::PermissionDenied, "PERMISSION_DENIED");
        }
    }
}
