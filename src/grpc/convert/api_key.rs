//! API keys.

use countersign_proto::v1;
use jiff::SignedDuration;
use uuid::Uuid;

use super::{check_audiences, complete, moment, page, request_id, timestamp};
use crate::{
    domain::{
        ApiKey, ApiKeyId, ApiKeyName, Invalid, PermissionName, UserId, Violations, api_key::Overlap,
    },
    error::Result,
    service::{api_keys::NewApiKey, page::PageRequest},
};

pub(in crate::grpc) fn create_api_key(
    m: v1::CreateApiKeyRequest,
) -> Result<(NewApiKey, Option<Uuid>)> {
    let mut v = Violations::default();
    let owner = v.parse_optional("user_id", &m.user_id);
    let name = v.parse::<ApiKeyName>("name", &m.name);
    let mut scopes = Vec::new();
    if m.scopes.len() > ApiKey::MOST_SCOPES {
        v.add("scopes", Invalid::new("must be at most 64"));
    } else {
        for (i, scope) in m.scopes.iter().enumerate() {
            scopes.extend(v.parse::<PermissionName>(format!("scopes[{i}]"), scope));
        }
    }
    check_audiences(&mut v, &m.audiences);
    let expires_at = v.check("expires_at", moment(m.expires_at)).flatten();
    let request_id = request_id(&mut v, &m.request_id);
    v.finish()?;
    let key = NewApiKey {
        owner,
        name: complete(name)?,
        scopes,
        audiences: m.audiences,
        expires_at,
    };
    Ok((key, request_id))
}

pub(in crate::grpc) fn list_api_keys(
    m: v1::ListApiKeysRequest,
) -> Result<(Option<UserId>, PageRequest)> {
    let mut v = Violations::default();
    let user_id = v.parse_optional("user_id", &m.user_id);
    let scope = format!("api keys:{}", m.user_id).into_bytes();
    let page = page(&mut v, m.page_size, m.page_token, scope);
    v.finish()?;
    Ok((user_id, complete(page)?))
}

pub(in crate::grpc) fn rotate_api_key(m: &v1::RotateApiKeyRequest) -> Result<(ApiKeyId, Overlap)> {
    let mut v = Violations::default();
    let id = v.parse("api_key_id", &m.api_key_id);
    let overlap = v.check("overlap", overlap(m.overlap));
    v.finish()?;
    Ok((complete(id)?, complete(overlap)?))
}

fn overlap(wish: Option<prost_types::Duration>) -> Result<Overlap, Invalid> {
    let Some(wish) = wish else {
        return Ok(Overlap::default());
    };
    // Nothing that google.protobuf.Duration allows has more, and what is negative
    // is no overlap.
    if !(0..1_000_000_000).contains(&wish.nanos) {
        return Err(Invalid::new("must be 0 to 30 days"));
    }
    Overlap::new(SignedDuration::new(wish.seconds, wish.nanos))
}

pub(in crate::grpc) fn api_key_id(text: &str) -> Result<ApiKeyId> {
    let mut v = Violations::default();
    let id = v.parse("api_key_id", text);
    v.finish()?;
    complete(id)
}

pub(in crate::grpc) fn api_key(key: ApiKey) -> v1::ApiKey {
    v1::ApiKey {
        api_key_id: key.id.to_string(),
        user_id: key.owner.to_string(),
        name: key.name.as_str().to_owned(),
        scopes: key.scopes.iter().map(ToString::to_string).collect(),
        audiences: key.audiences.into_iter().collect(),
        created_at: Some(timestamp(key.created_at)),
        expires_at: key.expires_at.map(timestamp),
        rotated_at: key.rotated_at.map(timestamp),
        overlap_until: key.overlap_until.map(timestamp),
    }
}
