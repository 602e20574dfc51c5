//! Calls that many tests make, in one line each.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_proto::v1;
use tonic::{Request, Status};

use super::{Client, Person, logs};

/// A correlation id that no other test of this process has; all are of one
/// length.
pub fn unique_id() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("call-{:08}", NUMBER.fetch_add(1, Relaxed))
}

/// A request that names itself by `x-request-id`.
pub fn named<M>(id: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    let id = id.parse().expect("a header");
    request.metadata_mut().insert("x-request-id", id);
    request
}

/// The line of the access log about the call of this id.
pub fn access_line(id: &str) -> serde_json::Value {
    let lines = logs::lines().into_iter().rev();
    let mut lines = lines.filter(|line| line.contains(id) && line.contains("countersign::access"));
    let line = lines.next().expect("a line about the call");
    serde_json::from_str(&line).expect("JSON")
}

/// Whether the token is good, says TokenService.
pub async fn validates(client: &Client, token: &str) -> bool {
    caller(client, token).await.is_ok()
}

/// Whom the token speaks for.
pub async fn caller(client: &Client, token: &str) -> Result<v1::Caller, Status> {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        ..Default::default()
    };
    let reply = client.clone().tokens.validate_token(request).await?;
    Ok(reply.into_inner().caller.expect("a caller"))
}

/// Trades a refresh token for the next pair.
pub async fn refresh(client: &Client, token: &str) -> Result<v1::TokenPair, Status> {
    let request = v1::RefreshRequest {
        refresh_token: token.to_owned(),
        ..Default::default()
    };
    let reply = client.clone().auth.refresh(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

/// Gives an account another username.
pub async fn rename(client: &Client, user_id: &str, username: &str) {
    let request = v1::UpdateUserRequest {
        user: Some(v1::User {
            user_id: user_id.to_owned(),
            username: username.to_owned(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["username".into()],
        }),
    };
    let renamed = client.clone().users.update_user(request).await;
    renamed.expect("renames");
}

/// Whether neither token of the pair is good for anything.
pub async fn is_dead(client: &Client, pair: &v1::TokenPair) -> bool {
    !validates(client, &pair.access_token).await
        && refresh(client, &pair.refresh_token).await.is_err()
}

/// Registers an account.
pub async fn register(client: &Client, request: v1::RegisterRequest) -> Result<v1::User, Status> {
    let reply = client.clone().auth.register(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Changes the caller's own password.
pub async fn change_password(
    client: &Client,
    current: &str,
    new: &str,
) -> Result<v1::TokenPair, Status> {
    let request = v1::ChangePasswordRequest {
        current_password: current.to_owned(),
        new_password: new.to_owned(),
    };
    let reply = client.clone().auth.change_password(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

/// Returns an account.
pub async fn get_user(client: &Client, user_id: &str) -> Result<v1::User, Status> {
    let request = v1::GetUserRequest {
        user_id: user_id.to_owned(),
    };
    let reply = client.clone().users.get_user(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Disables an account.
pub async fn disable(client: &Client, user_id: &str) -> Result<v1::User, Status> {
    let request = v1::DisableUserRequest {
        user_id: user_id.to_owned(),
    };
    let reply = client.clone().users.disable_user(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Enables an account.
pub async fn enable(client: &Client, user_id: &str) -> Result<v1::User, Status> {
    let request = v1::EnableUserRequest {
        user_id: user_id.to_owned(),
    };
    let reply = client.clone().users.enable_user(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Forgets the failed logins of an account.
pub async fn unlock(client: &Client, user_id: &str) -> Result<v1::User, Status> {
    let request = v1::UnlockUserRequest {
        user_id: user_id.to_owned(),
    };
    let reply = client.clone().users.unlock_user(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Deletes an account.
pub async fn delete(client: &Client, user_id: &str) -> Result<(), Status> {
    let request = v1::DeleteUserRequest {
        user_id: user_id.to_owned(),
    };
    client.clone().users.delete_user(request).await?;
    Ok(())
}

/// Sets another's password.
pub async fn set_password(client: &Client, user_id: &str, new: &str) -> Result<(), Status> {
    let request = v1::SetPasswordRequest {
        user_id: user_id.to_owned(),
        password: new.to_owned(),
    };
    client.clone().users.set_password(request).await?;
    Ok(())
}

/// Gives a role to an account.
pub async fn grant(client: &Client, user_id: &str, role: &str) -> Result<v1::User, Status> {
    let request = v1::GrantRoleRequest {
        user_id: user_id.to_owned(),
        role: role.to_owned(),
    };
    let reply = client.clone().users.grant_role(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Takes a role from an account.
pub async fn revoke_role(client: &Client, user_id: &str, role: &str) -> Result<v1::User, Status> {
    let request = v1::RevokeRoleRequest {
        user_id: user_id.to_owned(),
        role: role.to_owned(),
    };
    let reply = client.clone().users.revoke_role(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

/// Creates a role.
pub async fn create_role(
    client: &Client,
    name: &str,
    permissions: &[&str],
) -> Result<v1::Role, Status> {
    let request = v1::CreateRoleRequest {
        name: name.to_owned(),
        permissions: permissions.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let reply = client.clone().roles.create_role(request).await?;
    Ok(reply.into_inner().role.expect("a role"))
}

/// Deletes a role.
pub async fn delete_role(client: &Client, name: &str) -> Result<(), Status> {
    let request = v1::DeleteRoleRequest {
        name: name.to_owned(),
    };
    client.clone().roles.delete_role(request).await?;
    Ok(())
}

/// The live sessions of an account; one's own without an id.
pub async fn sessions(client: &Client, user_id: &str) -> Result<Vec<v1::Session>, Status> {
    let request = v1::ListSessionsRequest {
        user_id: user_id.to_owned(),
        ..Default::default()
    };
    let reply = client.clone().sessions.list_sessions(request).await?;
    Ok(reply.into_inner().sessions)
}

/// Ends a session.
pub async fn revoke_session(client: &Client, session_id: &str) -> Result<(), Status> {
    let request = v1::RevokeSessionRequest {
        session_id: session_id.to_owned(),
    };
    client.clone().sessions.revoke_session(request).await?;
    Ok(())
}

/// What an access token claims, without a look at its signature.
pub fn claims(token: &str) -> serde_json::Value {
    part(token, 1)
}

fn part(token: &str, number: usize) -> serde_json::Value {
    let part = token.split('.').nth(number).expect("three parts");
    let json = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&json).expect("JSON")
}

impl Person {
    /// The person once more, in another session.
    pub async fn again(&self) -> Self {
        let client = self.client.anonymous();
        let tokens = super::world::login(&client, &self.email, super::world::PASSWORD).await;
        let tokens = tokens.expect("logs in");
        Self {
            client: client.with_token(&tokens.access_token),
            tokens,
            ..self.clone()
        }
    }
}

/// Creates an API key of the caller's own: what is known of it, and its secret.
pub async fn create_api_key(
    client: &Client,
    scopes: &[&str],
) -> Result<(v1::ApiKey, String), Status> {
    let request = v1::CreateApiKeyRequest {
        name: "a program".to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let reply = client.clone().api_keys.create_api_key(request).await?;
    let reply = reply.into_inner();
    Ok((reply.api_key.expect("a key"), reply.secret))
}

/// Gives an API key another secret, which is returned.
pub async fn rotate_api_key(
    client: &Client,
    api_key_id: &str,
    overlap: std::time::Duration,
) -> Result<(v1::ApiKey, String), Status> {
    let request = v1::RotateApiKeyRequest {
        api_key_id: api_key_id.to_owned(),
        overlap: Some(prost_types::Duration::try_from(overlap).expect("not so long")),
    };
    let reply = client.clone().api_keys.rotate_api_key(request).await?;
    let reply = reply.into_inner();
    Ok((reply.api_key.expect("a key"), reply.secret))
}

/// Ends an API key.
pub async fn revoke_api_key(client: &Client, api_key_id: &str) -> Result<(), Status> {
    let request = v1::RevokeApiKeyRequest {
        api_key_id: api_key_id.to_owned(),
    };
    client.clone().api_keys.revoke_api_key(request).await?;
    Ok(())
}

/// The API keys of an account, newest first; one's own without an id.
pub async fn api_keys(client: &Client, user_id: &str) -> Result<Vec<v1::ApiKey>, Status> {
    let request = v1::ListApiKeysRequest {
        user_id: user_id.to_owned(),
        ..Default::default()
    };
    let reply = client.clone().api_keys.list_api_keys(request).await?;
    Ok(reply.into_inner().api_keys)
}

/// Stages the next signing key.
pub async fn stage_key(client: &Client) -> Result<v1::SigningKey, Status> {
    let request = v1::StageKeyRequest::default();
    let reply = client.keys.clone().stage_key(request).await?;
    Ok(reply.into_inner().key.expect("a key"))
}

/// Has a staged key sign.
pub async fn activate_key(
    client: &Client,
    request: impl tonic::IntoRequest<v1::ActivateKeyRequest>,
) -> Result<v1::SigningKey, Status> {
    let reply = client.keys.clone().activate_key(request).await?;
    Ok(reply.into_inner().key.expect("a key"))
}

/// Takes a signing key away.
pub async fn retire_key(client: &Client, kid: &str) -> Result<(), Status> {
    let request = v1::RetireKeyRequest {
        kid: kid.to_owned(),
    };
    client.keys.clone().retire_key(request).await.map(drop)
}

/// The header of an access token.
pub fn header(token: &str) -> serde_json::Value {
    part(token, 0)
}

/// The key that signed an access token.
pub fn signer(token: &str) -> String {
    header(token)["kid"].as_str().expect("a kid").to_owned()
}
