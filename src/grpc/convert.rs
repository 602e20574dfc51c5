//! Between messages and domain types. Reading collects all that is wrong with
//! a request before it refuses it.

mod api_key;
mod audit;

use std::collections::BTreeSet;

use countersign_proto::v1;
use countersign_verifier::{Caller, Credential};
use jiff::Timestamp;
use prost_types::FieldMask;
use uuid::Uuid;

use crate::{
    domain::{
        DisplayName, Email, Identifier, Invalid, Metadata, PageSize, Password, PermissionName,
        Role, RoleName, Session, User, UserId, UserStatus, Violations, id, text,
        user::{UserChange, UserFilter},
    },
    error::{Error, Reason, Result},
    service::{
        login::Login,
        page::PageRequest,
        register::Registration,
        roles::{NewRole, RoleChange},
        token::TokenPair,
        users::NewUser,
    },
};

pub(super) use api_key::{api_key, api_key_id, create_api_key, list_api_keys, rotate_api_key};
pub(super) use audit::{audit_event, list_events, verify_log};

/// The longest refresh token or page token that is looked at, in bytes.
const MOST_TOKEN_BYTES: usize = 1_024;
/// The most audiences that a request may name.
const MOST_AUDIENCES: usize = 16;
/// The most paths of a field mask.
const MOST_PATHS: usize = 40;

/// The earliest timestamp, in seconds since 1970.
const YEAR_1: i64 = -62_135_596_800;

/// What a failed parse leaves behind once the violations have been reported.
/// `finish` has returned them by then, so this is never seen.
fn complete<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::new(Reason::InvalidRequest))
}

pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

fn moment(at: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Invalid> {
    // What google.protobuf.Timestamp allows. jiff goes back further than
    // PostgreSQL does, which would fail the query.
    at.map(|at| {
        let legal = at.seconds >= YEAR_1 && (0..1_000_000_000).contains(&at.nanos);
        let time = legal.then(|| Timestamp::new(at.seconds, at.nanos).ok());
        time.flatten()
            .ok_or_else(|| Invalid::new("must be a timestamp between the years 1 and 9999"))
    })
    .transpose()
}

pub(super) fn register(m: v1::RegisterRequest) -> Result<(Registration, Option<Uuid>)> {
    let mut v = Violations::default();
    let email = v.parse("email", &m.email);
    let password = v.check("password", Password::parse(&m.password));
    let username = v.parse_optional("username", &m.username);
    let display_name = v.parse("display_name", &m.display_name);
    let request_id = request_id(&mut v, &m.request_id);
    v.finish()?;
    let registration = Registration {
        email: complete(email)?,
        password: complete(password)?,
        username,
        display_name: complete(display_name)?,
    };
    Ok((registration, request_id))
}

pub(super) fn login(m: v1::LoginRequest) -> Result<Login> {
    let mut v = Violations::default();
    let identifier = v.parse::<Identifier>("identifier", &m.identifier);
    let password = v.check("password", Password::parse(&m.password));
    v.check("device_name", text::check(&m.device_name, 128));
    check_audiences(&mut v, &m.audiences);
    check_token(&mut v, "device_token", &m.device_token);
    v.finish()?;
    Ok(Login {
        identifier: complete(identifier)?,
        password: complete(password)?,
        device_name: m.device_name,
        audiences: m.audiences,
        device_token: m.device_token,
    })
}

pub(super) fn refresh(m: v1::RefreshRequest) -> Result<(String, Vec<String>)> {
    let mut v = Violations::default();
    if m.refresh_token.is_empty() {
        v.add("refresh_token", Invalid::new("must not be empty"));
    }
    check_token(&mut v, "refresh_token", &m.refresh_token);
    check_audiences(&mut v, &m.audiences);
    v.finish()?;
    Ok((m.refresh_token, m.audiences))
}

pub(super) fn logout(m: v1::LogoutRequest) -> Result<Option<String>> {
    let mut v = Violations::default();
    check_token(&mut v, "refresh_token", &m.refresh_token);
    v.finish()?;
    Ok(Some(m.refresh_token).filter(|token| !token.is_empty()))
}

pub(super) fn change_password(m: v1::ChangePasswordRequest) -> Result<(Password, Password)> {
    let mut v = Violations::default();
    let current = v.check("current_password", Password::parse(&m.current_password));
    let new = v.check("new_password", Password::parse(&m.new_password));
    v.finish()?;
    Ok((complete(current)?, complete(new)?))
}

pub(super) fn create_user(m: v1::CreateUserRequest) -> Result<(NewUser, Option<Uuid>)> {
    let mut v = Violations::default();
    let email = v.parse("email", &m.email);
    let password = match m.password.as_str() {
        "" => None,
        text => v.check("password", Password::parse(text)),
    };
    let username = v.parse_optional("username", &m.username);
    let display_name = v.parse("display_name", &m.display_name);
    let mut roles = BTreeSet::new();
    if m.roles.len() > Role::MOST_PER_USER {
        v.add("roles", Invalid::new("must be at most 8"));
    } else {
        for (i, name) in m.roles.iter().enumerate() {
            roles.extend(v.parse::<RoleName>(format!("roles[{i}]"), name));
        }
    }
    let metadata = v.check("metadata", Metadata::new(m.metadata));
    let request_id = request_id(&mut v, &m.request_id);
    v.finish()?;
    let user = NewUser {
        email: complete(email)?,
        password,
        username,
        display_name: complete(display_name)?,
        roles,
        metadata: complete(metadata)?,
    };
    Ok((user, request_id))
}

pub(super) fn set_password(m: &v1::SetPasswordRequest) -> Result<(UserId, Password)> {
    let mut v = Violations::default();
    let user_id = v.parse("user_id", &m.user_id);
    let password = v.check("password", Password::parse(&m.password));
    v.finish()?;
    Ok((complete(user_id)?, complete(password)?))
}

pub(super) fn user_and_role(user_id: &str, role: &str) -> Result<(UserId, RoleName)> {
    let mut v = Violations::default();
    let user_id = v.parse("user_id", user_id);
    let role = v.parse("role", role);
    v.finish()?;
    Ok((complete(user_id)?, complete(role)?))
}

pub(super) fn user_id(text: &str) -> Result<UserId> {
    let mut v = Violations::default();
    let id = v.parse("user_id", text);
    v.finish()?;
    complete(id)
}

pub(super) fn user_ids(m: &v1::BatchGetUsersRequest) -> Result<Vec<UserId>> {
    let mut v = Violations::default();
    let mut ids = Vec::new();
    if (1..=100).contains(&m.user_ids.len()) {
        for (i, text) in m.user_ids.iter().enumerate() {
            ids.extend(v.parse::<UserId>(format!("user_ids[{i}]"), text));
        }
    } else {
        v.add("user_ids", Invalid::new("must be 1 to 100"));
    }
    v.finish()?;
    Ok(ids)
}

pub(super) fn list_users(m: v1::ListUsersRequest) -> Result<(UserFilter, PageRequest)> {
    use prost::Message;

    let mut v = Violations::default();
    let wish = m.filter.unwrap_or_default();
    let scope = [b"users:".as_slice(), &wish.encode_to_vec()].concat();
    let page = page(&mut v, m.page_size, m.page_token, scope);
    let mut filter = UserFilter::default();
    if !wish.email_prefix.is_empty() {
        filter.email_prefix = v.check("filter.email_prefix", Email::prefix(&wish.email_prefix));
    }
    filter.role = v.parse_optional("filter.role", &wish.role);
    filter.status = match v1::UserStatus::try_from(wish.status) {
        Ok(v1::UserStatus::Unspecified) => None,
        Ok(v1::UserStatus::Active) => Some(UserStatus::Active),
        Ok(v1::UserStatus::Disabled) => Some(UserStatus::Disabled),
        Ok(v1::UserStatus::Deleted) => Some(UserStatus::Deleted),
        Err(_) => {
            v.add(
                "filter.status",
                Invalid::new("is no status that is known here"),
            );
            None
        }
    };
    filter.created_from = v
        .check("filter.created_from", moment(wish.created_from))
        .flatten();
    filter.created_before = v
        .check("filter.created_before", moment(wish.created_before))
        .flatten();
    v.finish()?;
    Ok((filter, complete(page)?))
}

pub(super) fn update_user(m: v1::UpdateUserRequest) -> Result<(UserId, UserChange)> {
    let mut v = Violations::default();
    let mut wish = m.user.unwrap_or_default();
    let user_id = v.parse("user.user_id", &wish.user_id);
    let mut change = UserChange::default();
    for path in mask(&mut v, m.update_mask) {
        match path.as_str() {
            "email" => change.email = v.parse("user.email", &wish.email),
            "username" => {
                change.username = match wish.username.as_str() {
                    "" => Some(None),
                    text => v.parse("user.username", text).map(Some),
                }
            }
            "display_name" => {
                change.display_name =
                    v.parse::<DisplayName>("user.display_name", &wish.display_name);
            }
            "metadata" => {
                change.metadata = v.check("user.metadata", Metadata::new(wish.metadata.clone()));
            }
            other => match other.strip_prefix("metadata.") {
                Some(key) => {
                    if v.check("update_mask", Metadata::check_key(key)).is_some() {
                        let value = wish.metadata.remove(key);
                        if let Some(value) = &value {
                            v.check("user.metadata", Metadata::check_value(value));
                        }
                        change.labels.insert(key.to_owned(), value);
                    }
                }
                None => v.add(
                    "update_mask",
                    Invalid::new(
                        "may name email, username, display_name, metadata and metadata.KEY only",
                    ),
                ),
            },
        }
    }
    if change.metadata.is_some() && !change.labels.is_empty() {
        v.add(
            "update_mask",
            Invalid::new("must not name metadata both whole and by key"),
        );
    }
    v.finish()?;
    Ok((complete(user_id)?, change))
}

pub(super) fn create_role(m: v1::CreateRoleRequest) -> Result<(NewRole, Option<Uuid>)> {
    let mut v = Violations::default();
    let name = v.parse("name", &m.name);
    v.check("description", Role::check_description(&m.description));
    let permissions = permissions(&mut v, "permissions", &m.permissions);
    let request_id = request_id(&mut v, &m.request_id);
    v.finish()?;
    let role = NewRole {
        name: complete(name)?,
        description: m.description,
        permissions,
    };
    Ok((role, request_id))
}

pub(super) fn list_roles(m: v1::ListRolesRequest) -> Result<PageRequest> {
    let mut v = Violations::default();
    let page = page(&mut v, m.page_size, m.page_token, b"roles:".to_vec());
    v.finish()?;
    complete(page)
}

pub(super) fn update_role(m: v1::UpdateRoleRequest) -> Result<(RoleName, RoleChange)> {
    let mut v = Violations::default();
    let wish = m.role.unwrap_or_default();
    let name = v.parse("role.name", &wish.name);
    let mut change = RoleChange::default();
    for path in mask(&mut v, m.update_mask) {
        match path.as_str() {
            "description" => {
                v.check(
                    "role.description",
                    Role::check_description(&wish.description),
                );
                change.description = Some(wish.description.clone());
            }
            "permissions" => {
                change.permissions =
                    Some(permissions(&mut v, "role.permissions", &wish.permissions));
            }
            _ => v.add(
                "update_mask",
                Invalid::new("may name description and permissions only"),
            ),
        }
    }
    v.finish()?;
    Ok((complete(name)?, change))
}

pub(super) fn role_name(text: &str) -> Result<RoleName> {
    let mut v = Violations::default();
    let name = v.parse("name", text);
    v.finish()?;
    complete(name)
}

pub(super) fn list_sessions(m: v1::ListSessionsRequest) -> Result<(Option<UserId>, PageRequest)> {
    let mut v = Violations::default();
    let user_id = v.parse_optional("user_id", &m.user_id);
    let scope = format!("sessions:{}", m.user_id).into_bytes();
    let page = page(&mut v, m.page_size, m.page_token, scope);
    v.finish()?;
    Ok((user_id, complete(page)?))
}

pub(super) fn session_id(text: &str) -> Result<crate::domain::SessionId> {
    let mut v = Violations::default();
    let id = v.parse("session_id", text);
    v.finish()?;
    complete(id)
}

pub(super) fn optional_user_id(text: &str) -> Result<Option<UserId>> {
    let mut v = Violations::default();
    let id = v.parse_optional("user_id", text);
    v.finish()?;
    Ok(id)
}

pub(super) fn request_id(v: &mut Violations, text: &str) -> Option<Uuid> {
    if text.is_empty() {
        None
    } else {
        v.check("request_id", id::uuid(text))
    }
}

fn check_token(v: &mut Violations, field: &'static str, token: &str) {
    if token.len() > MOST_TOKEN_BYTES {
        v.add(field, Invalid::new("must be at most 1,024 bytes"));
    }
}

fn check_audiences(v: &mut Violations, audiences: &[String]) {
    if audiences.len() > MOST_AUDIENCES || audiences.iter().any(|a| a.len() > 256) {
        v.add(
            "audiences",
            Invalid::new("must be at most 16 of at most 256 bytes"),
        );
    }
}

fn page(v: &mut Violations, size: i32, token: String, scope: Vec<u8>) -> Option<PageRequest> {
    check_token(v, "page_token", &token);
    let size = v.check("page_size", PageSize::new(size))?;
    Some(PageRequest { size, token, scope })
}

fn mask(v: &mut Violations, mask: Option<FieldMask>) -> BTreeSet<String> {
    let paths = mask.unwrap_or_default().paths;
    if (1..=MOST_PATHS).contains(&paths.len()) {
        paths.into_iter().collect()
    } else {
        v.add("update_mask", Invalid::new("must name 1 to 40 fields"));
        BTreeSet::new()
    }
}

fn permissions(
    v: &mut Violations,
    field: &'static str,
    names: &[String],
) -> BTreeSet<PermissionName> {
    let mut set = BTreeSet::new();
    if names.len() > Role::MOST_PERMISSIONS {
        v.add(field, Invalid::new("must be at most 32"));
        return set;
    }
    for (i, name) in names.iter().enumerate() {
        set.extend(v.parse::<PermissionName>(format!("{field}[{i}]"), name));
    }
    v.check(field, Role::check_permissions(&set));
    set
}

pub(super) fn pair(pair: &TokenPair) -> v1::TokenPair {
    v1::TokenPair {
        access_token: pair.access_token.expose().to_owned(),
        token_type: "Bearer".to_owned(),
        expires_at: Some(timestamp(pair.expires_at)),
        refresh_token: pair.refresh_token.expose().to_owned(),
        refresh_expires_at: Some(timestamp(pair.refresh_expires_at)),
        refresh_after: Some(timestamp(pair.refresh_after)),
        session_id: pair.session_id.to_string(),
    }
}

pub(super) fn user(user: User) -> v1::User {
    let status = match user.status {
        UserStatus::Active => v1::UserStatus::Active,
        UserStatus::Disabled => v1::UserStatus::Disabled,
        UserStatus::Deleted => v1::UserStatus::Deleted,
    };
    v1::User {
        user_id: user.id.to_string(),
        email: user
            .email
            .map(|email| email.as_str().to_owned())
            .unwrap_or_default(),
        email_verified: user.email_verified,
        username: user
            .username
            .map(|name| name.as_str().to_owned())
            .unwrap_or_default(),
        display_name: user.display_name.as_str().to_owned(),
        status: status.into(),
        roles: user.roles.iter().map(ToString::to_string).collect(),
        metadata: user.metadata.into_labels(),
        created_at: Some(timestamp(user.created_at)),
        updated_at: Some(timestamp(user.updated_at)),
    }
}

pub(super) fn role(role: Role) -> v1::Role {
    v1::Role {
        name: role.name.to_string(),
        description: role.description,
        permissions: role.permissions.iter().map(ToString::to_string).collect(),
        built_in: role.built_in,
        created_at: Some(timestamp(role.created_at)),
        updated_at: Some(timestamp(role.updated_at)),
    }
}

pub(super) fn session(session: Session, current: Option<crate::domain::SessionId>) -> v1::Session {
    v1::Session {
        session_id: session.id.to_string(),
        user_id: session.user_id.to_string(),
        device_name: session.device_name,
        user_agent: session.user_agent,
        address: session
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
        created_at: Some(timestamp(session.created_at)),
        last_used_at: Some(timestamp(session.last_used_at)),
        expires_at: Some(timestamp(session.expires_at)),
        current: current == Some(session.id),
    }
}

pub(super) fn caller(caller: &Caller) -> v1::Caller {
    let mut message = v1::Caller {
        subject: caller.subject.to_string(),
        client_id: caller.client_id.clone(),
        roles: caller.roles.clone(),
        scopes: caller.scopes.clone(),
        audience: caller.audience.clone(),
        issued_at: Some(timestamp(caller.issued_at)),
        expires_at: caller.expires_at.map(timestamp),
        ..v1::Caller::default()
    };
    let kind = match &caller.credential {
        Credential::AccessToken {
            session_id,
            auth_methods,
            authenticated_at,
            ..
        } => {
            message.session_id = session_id.to_string();
            message.auth_methods.clone_from(auth_methods);
            message.authenticated_at = Some(timestamp(*authenticated_at));
            v1::CallerKind::User
        }
        Credential::ApiKey { id, .. } => {
            message.api_key_id = id.to_string();
            v1::CallerKind::ApiKey
        }
        Credential::Certificate => v1::CallerKind::Workload,
    };
    message.kind = kind.into();
    message
}
