//! Every RPC as the descriptor names it, a valid request for each, and calls
//! by path with bytes, so that a test can send what no stub would.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use countersign::{
    domain::{Call, DisplayName, Metadata, Password, PermissionName, RoleName},
    service::{
        api_keys,
        feed::Seat,
        keys,
        once::{Made, Repeatable},
        roles, users,
    },
};
use countersign_proto::{FILE_DESCRIPTOR_SET, v1};
use countersign_verifier::KeyState;
use prost::{
    Message as _,
    bytes::{Buf as _, BufMut as _},
};
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tonic::{
    Request, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::Channel,
};

use uuid::Uuid;

use super::{
    client::Client,
    world::{self, PASSWORD, Person, World},
};

/// The descriptors of the whole API.
pub static DESCRIPTORS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors"));

/// Every RPC of ours, in the order of the descriptor. Envoy's Check has callers
/// of its own kind, and tests of its own.
pub fn all() -> Vec<MethodDescriptor> {
    let services = DESCRIPTORS.services();
    services
        .filter(|service| service.package_name() == "countersign.v1")
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
}

/// `AuthService/Login`.
pub fn name(rpc: &MethodDescriptor) -> String {
    format!("{}/{}", rpc.parent_service().name(), rpc.name())
}

/// What requests act upon.
#[derive(Debug, Clone)]
pub struct Objects {
    /// An address that nobody has.
    pub free_email: String,
    pub target: Person,
    /// A role that nobody holds.
    pub role: String,
    /// A role that the target holds.
    pub held: String,
    /// What both permit.
    pub permissions: Vec<String>,
    /// A validator that follows the first node.
    pub validator: Arc<Seat>,
    /// An API key of the target, with the same permissions.
    pub api_key: String,
    /// A signing key that is next.
    pub kid: String,
}

impl Objects {
    /// A person without any permission of Countersign, and roles likewise.
    pub async fn new(world: &World) -> Self {
        let permissions = ["orders.read"];
        let (target, held) = persona(world, &permissions).await;
        let role = format!("free-{held}");
        create_role(world, &role, &permissions).await;
        let api_key = api_key(world, &target.user_id, &permissions).await.0;
        Self {
            free_email: world.new_email(),
            api_key,
            target,
            role,
            held,
            permissions: permissions.map(str::to_owned).into(),
            validator: validator(world),
            kid: String::new(),
        }
    }

    /// With signing keys as the RPC needs them: one is next for those that use it
    /// up.
    pub async fn and_keys(mut self, world: &World, rpc: &str) -> Self {
        if !rpc.starts_with("KeyService/") {
            return self;
        }
        let (core, call) = (world.node.running.core(), Call::internal("test"));
        let all = keys::list(core, &call).await.expect("lists");
        let next = all.into_iter().find(|key| key.state == KeyState::Next);
        let without = ["KeyService/ListKeys", "KeyService/StageKey"].contains(&rpc);
        match next {
            Some(key) if without => {
                let gone = keys::retire(core, &call, &key.kid).await;
                gone.expect("retires");
            }
            Some(key) => self.kid = key.kid,
            None if without => {}
            None => {
                let made = keys::stage(core, &call, None, Repeatable::once()).await;
                let Made::Now(key) = made.expect("stages") else {
                    panic!("made before")
                };
                self.kid = key.kid;
            }
        }
        self
    }

    /// An admin, and a role that permits something of Countersign.
    pub async fn above(world: &World) -> Self {
        let target = world.admin().await;
        let permissions = ["countersign.users.delete", "countersign.roles.read"];
        let free_email = world.new_email();
        let role = format!("high-{}", local_part(&free_email));
        create_role(world, &role, &permissions).await;
        let api_key = api_key(world, &target.user_id, &permissions).await.0;
        Self {
            free_email,
            api_key,
            target,
            role,
            held: RoleName::ADMIN.to_owned(),
            permissions: permissions.map(str::to_owned).into(),
            validator: validator(world),
            kid: String::new(),
        }
    }
}

fn validator(world: &World) -> Arc<Seat> {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let id = Uuid::from_u64_pair(7, COUNT.fetch_add(1, Relaxed));
    Arc::new(world.node.running.feed().seat(id))
}

/// Somebody who holds exactly these permissions, by the role that is returned.
pub async fn persona(world: &World, permissions: &[&str]) -> (Person, String) {
    persona_by(&world.anonymous(), world, permissions).await
}

/// The same, who calls by a connection of this client.
pub async fn persona_by(client: &Client, world: &World, permissions: &[&str]) -> (Person, String) {
    let email = world.new_email();
    let role = format!("of-{}", local_part(&email));
    create_role(world, &role, permissions).await;
    let wish = users::NewUser {
        email: email.parse().expect("an address"),
        password: Some(Password::parse(PASSWORD).expect("a password")),
        username: None,
        display_name: DisplayName::default(),
        roles: [role.parse().expect("a name")].into(),
        metadata: Metadata::default(),
    };
    let (core, call) = (world.node.running.core(), Call::internal("test"));
    let made = users::create(core, &call, wish, Repeatable::once()).await;
    let Made::Now(user) = made.expect("creates") else {
        panic!("made before")
    };
    let tokens = world::login(client, &email, PASSWORD).await;
    let tokens = tokens.expect("logs in");
    let client = client.with_token(&tokens.access_token);
    let user_id = user.id.to_string();
    let person = Person {
        email,
        user_id,
        tokens,
        client,
    };
    (person, role)
}

/// An API key of somebody: its id and its secret.
pub async fn api_key(world: &World, owner: &str, scopes: &[&str]) -> (String, String) {
    let wish = api_keys::NewApiKey {
        owner: Some(owner.parse().expect("an id")),
        name: "a program".parse().expect("a name"),
        scopes: scopes
            .iter()
            .map(|name| name.parse().expect("a permission"))
            .collect(),
        audiences: Vec::new(),
        expires_at: None,
    };
    let (core, call) = (world.node.running.core(), Call::internal("test"));
    let made = api_keys::create(core, &call, wish, Repeatable::once()).await;
    let Made::Now((key, secret)) = made.expect("creates a key") else {
        panic!("made before")
    };
    (key.id.to_string(), secret.expose().to_owned())
}

async fn create_role(world: &World, name: &str, permissions: &[&str]) {
    let wish = roles::NewRole {
        name: name.parse().expect("a name"),
        description: String::new(),
        permissions: permissions
            .iter()
            .map(|name| name.parse().expect("a permission"))
            .collect::<BTreeSet<PermissionName>>(),
    };
    let (core, call) = (world.node.running.core(), Call::internal("test"));
    roles::create(core, &call, wish, Repeatable::once())
        .await
        .expect("creates a role");
}

fn local_part(email: &str) -> &str {
    email.split('@').next().expect("an address")
}

/// A valid request of an RPC, by its name.
#[expect(clippy::too_many_lines, reason = "a line or two for each RPC")]
pub fn request(rpc: &str, on: &Objects) -> Vec<u8> {
    let user_id = || on.target.user_id.clone();
    let mask = |path: &str| {
        Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        })
    };
    let validate = || v1::ValidateTokenRequest {
        token: on.target.tokens.access_token.clone(),
        audience: String::new(),
    };
    match rpc {
        "TokenService/ValidateToken" => validate().encode_to_vec(),
        "TokenService/ValidateTokens" => v1::ValidateTokensRequest {
            items: vec![validate()],
        }
        .encode_to_vec(),
        "TokenService/ExplainToken" => v1::ExplainTokenRequest {
            token: on.target.tokens.access_token.clone(),
            audience: String::new(),
        }
        .encode_to_vec(),
        "TokenService/GetJwks" | "AuthService/WhoAmI" | "AuthService/Logout" => Vec::new(),
        "AuthService/Register" => v1::RegisterRequest {
            email: on.free_email.clone(),
            password: PASSWORD.to_owned(),
            ..Default::default()
        }
        .encode_to_vec(),
        "AuthService/Login" => v1::LoginRequest {
            identifier: on.target.email.clone(),
            password: PASSWORD.to_owned(),
            device_name: "a laptop".to_owned(),
            ..Default::default()
        }
        .encode_to_vec(),
        "AuthService/Refresh" => v1::RefreshRequest {
            refresh_token: on.target.tokens.refresh_token.clone(),
            ..Default::default()
        }
        .encode_to_vec(),
        "AuthService/ChangePassword" => v1::ChangePasswordRequest {
            current_password: PASSWORD.to_owned(),
            new_password: "another horse entirely, thanks".to_owned(),
        }
        .encode_to_vec(),
        "UserService/CreateUser" => v1::CreateUserRequest {
            email: on.free_email.clone(),
            ..Default::default()
        }
        .encode_to_vec(),
        "UserService/GetUser" => v1::GetUserRequest { user_id: user_id() }.encode_to_vec(),
        "UserService/BatchGetUsers" => v1::BatchGetUsersRequest {
            user_ids: vec![user_id()],
        }
        .encode_to_vec(),
        "UserService/ListUsers" => v1::ListUsersRequest {
            filter: Some(v1::UserFilter {
                email_prefix: on.target.email.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec(),
        "UserService/UpdateUser" => v1::UpdateUserRequest {
            user: Some(v1::User {
                user_id: user_id(),
                display_name: "Ana".to_owned(),
                ..Default::default()
            }),
            update_mask: mask("display_name"),
        }
        .encode_to_vec(),
        "UserService/DeleteUser" => v1::DeleteUserRequest { user_id: user_id() }.encode_to_vec(),
        "UserService/DisableUser" => v1::DisableUserRequest { user_id: user_id() }.encode_to_vec(),
        "UserService/EnableUser" => v1::EnableUserRequest { user_id: user_id() }.encode_to_vec(),
        "UserService/UnlockUser" => v1::UnlockUserRequest { user_id: user_id() }.encode_to_vec(),
        "UserService/SetPassword" => v1::SetPasswordRequest {
            user_id: user_id(),
            password: "another horse entirely, thanks".to_owned(),
        }
        .encode_to_vec(),
        "UserService/GrantRole" => v1::GrantRoleRequest {
            user_id: user_id(),
            role: on.role.clone(),
        }
        .encode_to_vec(),
        "UserService/RevokeRole" => v1::RevokeRoleRequest {
            user_id: user_id(),
            role: on.held.clone(),
        }
        .encode_to_vec(),
        "RoleService/CreateRole" => v1::CreateRoleRequest {
            name: format!("new-{}", local_part(&on.free_email)),
            permissions: on.permissions.clone(),
            ..Default::default()
        }
        .encode_to_vec(),
        "RoleService/ListRoles" => v1::ListRolesRequest {
            page_size: 1,
            ..Default::default()
        }
        .encode_to_vec(),
        "RoleService/UpdateRole" => v1::UpdateRoleRequest {
            role: Some(v1::Role {
                name: on.role.clone(),
                description: "sees orders".to_owned(),
                ..Default::default()
            }),
            update_mask: mask("description"),
        }
        .encode_to_vec(),
        "RoleService/DeleteRole" => v1::DeleteRoleRequest {
            name: on.role.clone(),
        }
        .encode_to_vec(),
        "SessionService/ListSessions" => v1::ListSessionsRequest {
            user_id: user_id(),
            ..Default::default()
        }
        .encode_to_vec(),
        "SessionService/RevokeSession" => v1::RevokeSessionRequest {
            session_id: on.target.tokens.session_id.clone(),
        }
        .encode_to_vec(),
        "SessionService/RevokeAllSessions" => v1::RevokeAllSessionsRequest {
            user_id: user_id(),
            keep_current: false,
        }
        .encode_to_vec(),
        "TrustService/WatchTrust" => v1::WatchTrustRequest {
            instance: "a validator".to_owned(),
            ..Default::default()
        }
        .encode_to_vec(),
        "TrustService/AckTrust" => v1::AckTrustRequest {
            stream_id: on.validator.id().to_string(),
            seq: 1,
        }
        .encode_to_vec(),
        "ApiKeyService/CreateApiKey" => v1::CreateApiKeyRequest {
            user_id: user_id(),
            name: "another program".to_owned(),
            scopes: on.permissions.clone(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ApiKeyService/ListApiKeys" => v1::ListApiKeysRequest {
            user_id: user_id(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ApiKeyService/RotateApiKey" => v1::RotateApiKeyRequest {
            api_key_id: on.api_key.clone(),
            ..Default::default()
        }
        .encode_to_vec(),
        "ApiKeyService/RevokeApiKey" => v1::RevokeApiKeyRequest {
            api_key_id: on.api_key.clone(),
        }
        .encode_to_vec(),
        "KeyService/ListKeys" => v1::ListKeysRequest {}.encode_to_vec(),
        "KeyService/StageKey" => v1::StageKeyRequest::default().encode_to_vec(),
        "KeyService/ActivateKey" => v1::ActivateKeyRequest {
            kid: on.kid.clone(),
            force: true,
            retire_previous: false,
        }
        .encode_to_vec(),
        "KeyService/RetireKey" => v1::RetireKeyRequest {
            kid: on.kid.clone(),
        }
        .encode_to_vec(),
        "AuditService/ListEvents" => v1::ListEventsRequest {
            filter: Some(v1::AuditFilter {
                subject_id: user_id(),
                action: "session.login".to_owned(),
                ..Default::default()
            }),
            page_size: 1,
            ..Default::default()
        }
        .encode_to_vec(),
        // From now on: the first message comes at once.
        "AuditService/WatchEvents" => v1::WatchEventsRequest::default().encode_to_vec(),
        "AuditService/VerifyLog" => v1::VerifyLogRequest::default().encode_to_vec(),
        other => panic!("{other} is new: give it a valid request here"),
    }
}

/// Calls an RPC by its path with an encoded message. Of a stream it takes the
/// first message.
pub async fn call(
    channel: &Channel,
    path: &str,
    token: Option<&str>,
    message: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the node listens");
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    let is_stream = all()
        .iter()
        .any(|rpc| rpc.is_server_streaming() && path == self::path(&name(rpc)));
    let path = http::uri::PathAndQuery::try_from(path).expect("a path");
    if is_stream {
        let mut stream = grpc
            .server_streaming(request, path, Raw)
            .await?
            .into_inner();
        let first = stream.message().await?;
        return Ok(first.expect("a stream has a first message"));
    }
    grpc.unary(request, path, Raw)
        .await
        .map(Response::into_inner)
}

/// `/countersign.v1.AuthService/Login`.
pub fn path(name: &str) -> String {
    format!("/countersign.v1.{name}")
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
