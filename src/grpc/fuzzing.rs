//! How RPCs read their requests, by name: the way in for the fuzz target
//! `requests`, as an RPC itself would go on to the database. Nothing else uses
//! this, and nothing of it is API.

use countersign_proto::v1;
use prost::Message;

use super::{convert, key, token, trust};
use crate::error::Result;

/// Reads bytes as an RPC would read its request, and refuses what it would
/// refuse. Bytes that are no message never come as far as that.
pub type Reader = fn(&[u8]) -> Result<()>;

/// Every RPC whose request has fields, but for AckTrust and WatchEvents, which
/// read theirs in place.
pub const READERS: &[(&str, Reader)] = &[
    ("Register", |bytes| read(bytes, convert::register)),
    ("Login", |bytes| read(bytes, convert::login)),
    ("Refresh", |bytes| read(bytes, convert::refresh)),
    ("Logout", |bytes| read(bytes, convert::logout)),
    ("ChangePassword", |bytes| {
        read(bytes, convert::change_password)
    }),
    ("CreateUser", |bytes| read(bytes, convert::create_user)),
    ("GetUser", |bytes| {
        read(bytes, |m: v1::GetUserRequest| convert::user_id(&m.user_id))
    }),
    ("BatchGetUsers", |bytes| {
        read(bytes, |m| convert::user_ids(&m))
    }),
    ("ListUsers", |bytes| read(bytes, convert::list_users)),
    ("UpdateUser", |bytes| read(bytes, convert::update_user)),
    ("DeleteUser", |bytes| {
        read(bytes, |m: v1::DeleteUserRequest| {
            convert::user_id(&m.user_id)
        })
    }),
    ("DisableUser", |bytes| {
        read(bytes, |m: v1::DisableUserRequest| {
            convert::user_id(&m.user_id)
        })
    }),
    ("EnableUser", |bytes| {
        read(bytes, |m: v1::EnableUserRequest| {
            convert::user_id(&m.user_id)
        })
    }),
    ("UnlockUser", |bytes| {
        read(bytes, |m: v1::UnlockUserRequest| {
            convert::user_id(&m.user_id)
        })
    }),
    ("SetPassword", |bytes| {
        read(bytes, |m| convert::set_password(&m))
    }),
    ("GrantRole", |bytes| {
        read(bytes, |m: v1::GrantRoleRequest| {
            convert::user_and_role(&m.user_id, &m.role)
        })
    }),
    ("RevokeRole", |bytes| {
        read(bytes, |m: v1::RevokeRoleRequest| {
            convert::user_and_role(&m.user_id, &m.role)
        })
    }),
    ("CreateRole", |bytes| read(bytes, convert::create_role)),
    ("ListRoles", |bytes| read(bytes, convert::list_roles)),
    ("UpdateRole", |bytes| read(bytes, convert::update_role)),
    ("DeleteRole", |bytes| {
        read(bytes, |m: v1::DeleteRoleRequest| {
            convert::role_name(&m.name)
        })
    }),
    ("ListSessions", |bytes| read(bytes, convert::list_sessions)),
    ("RevokeSession", |bytes| {
        read(bytes, |m: v1::RevokeSessionRequest| {
            convert::session_id(&m.session_id)
        })
    }),
    ("RevokeAllSessions", |bytes| {
        read(bytes, |m: v1::RevokeAllSessionsRequest| {
            convert::optional_user_id(&m.user_id)
        })
    }),
    ("CreateApiKey", |bytes| read(bytes, convert::create_api_key)),
    ("ListApiKeys", |bytes| read(bytes, convert::list_api_keys)),
    ("RotateApiKey", |bytes| {
        read(bytes, |m| convert::rotate_api_key(&m))
    }),
    ("RevokeApiKey", |bytes| {
        read(bytes, |m: v1::RevokeApiKeyRequest| {
            convert::api_key_id(&m.api_key_id)
        })
    }),
    ("StageKey", |bytes| read(bytes, |m| key::wish(&m))),
    ("ActivateKey", |bytes| {
        read(bytes, |m: v1::ActivateKeyRequest| key::kid(m.kid))
    }),
    ("RetireKey", |bytes| {
        read(bytes, |m: v1::RetireKeyRequest| key::kid(m.kid))
    }),
    ("ValidateToken", |bytes| {
        read(bytes, |item| token::check(&[item], false))
    }),
    ("ValidateTokens", |bytes| {
        read(bytes, |m: v1::ValidateTokensRequest| {
            token::check(&m.items, true)
        })
    }),
    ("WatchTrust", |bytes| read(bytes, trust::watch)),
    ("ListEvents", |bytes| read(bytes, convert::list_events)),
    ("VerifyLog", |bytes| read(bytes, convert::verify_log)),
    ("ExplainToken", |bytes| {
        read(bytes, |m: v1::ExplainTokenRequest| {
            let v1::ExplainTokenRequest { token, audience } = m;
            token::check(&[v1::ValidateTokenRequest { token, audience }], false)
        })
    }),
];

fn read<M, T>(bytes: &[u8], convert: impl FnOnce(M) -> Result<T>) -> Result<()>
where
    M: Message + Default,
{
    M::decode(bytes).map_or(Ok(()), |message| convert(message).map(drop))
}
