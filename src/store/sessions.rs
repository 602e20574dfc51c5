//! Sessions. One row each; refreshing is one guarded update.
//!
//! A session is live while it is not revoked and not expired, its account is
//! active, and its epoch is not below the account's `min_session_epoch`. Every
//! query that says "live" checks all of it in its own statement.

use diesel::{
    dsl::{case_when, exists},
    prelude::*,
};
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, on},
    failure::Outcome,
    kept::Keep as _,
    schema::{sessions, user_roles, users},
    types::{At, Id, illegal, parse},
};
use crate::{
    domain::{Page, PageSize, Session, SessionId, UserId, UserStatus},
    error::Result,
};

/// A session to be. It begins with generation 0.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Never used before.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// The account's epoch when the password was checked.
    pub epoch: i64,
    /// The key under which its first refresh token is made.
    pub key_id: i32,
    /// Random; the second MAC of its refresh tokens binds it.
    pub binding: [u8; 16],
    /// What the login was given.
    pub device_name: String,
    /// The `user-agent` of the login.
    pub user_agent: String,
    /// The client address of the login.
    pub address: Option<std::net::IpAddr>,
    /// The calling workload.
    pub client_id: String,
    /// When the login is.
    pub now: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
    /// When it ends in any case.
    pub absolute_expires_at: Timestamp,
}

/// Everything a refresh has to know of a session and its account, live or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionState {
    /// Which.
    pub session_id: SessionId,
    /// Whose.
    pub user_id: UserId,
    /// The account's epoch in which it goes on.
    pub epoch: i64,
    /// The generation of its current refresh token.
    pub generation: i64,
    /// The key under which that was made.
    pub key_id: i32,
    /// What the second MAC of its refresh tokens binds.
    pub binding: [u8; 16],
    /// When the current refresh token was made.
    pub rotated_at: Timestamp,
    /// When the login was.
    pub created_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
    /// When it ends in any case.
    pub absolute_expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The workload that the login came through.
    pub client_id: String,
    /// When a credential was checked; the claim of this name.
    pub auth_time: Timestamp,
    /// The account's status.
    pub user_status: UserStatus,
    /// The account's epoch, for an access token minted now.
    pub user_epoch: i64,
    /// Sessions of smaller epochs are dead.
    pub user_min_session_epoch: i64,
}

impl SessionState {
    /// Whether the session is live.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none()
            && self.expires_at > now
            && self.user_status == UserStatus::Active
            && self.epoch >= self.user_min_session_epoch
    }
}

/// A session that has just been advanced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advanced {
    /// Its generation now.
    pub generation: i64,
    /// Whose it is.
    pub user_id: UserId,
    /// The account's epoch, read by the statement that advanced it.
    pub user_epoch: i64,
    /// The key under which its refresh token is made now.
    pub key_id: i32,
    /// What the second MAC of its refresh tokens binds.
    pub binding: [u8; 16],
    /// When the login was.
    pub created_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
    /// The workload that the login came through.
    pub client_id: String,
    /// When a credential was checked; the claim of this name.
    pub auth_time: Timestamp,
    /// Whether the account has any role, read by that statement too.
    pub has_roles: bool,
}

/// How a session goes on after a change of its account.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The account's new epoch.
    pub epoch: i64,
    /// The key under which its next refresh token is made.
    pub key_id: i32,
    /// Random, and new.
    pub binding: [u8; 16],
    /// When the change is.
    pub now: Timestamp,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct StateRow {
    id: Id,
    user_id: Id,
    epoch: i64,
    generation: i64,
    key_id: i32,
    binding: Vec<u8>,
    rotated_at: At,
    created_at: At,
    expires_at: At,
    absolute_expires_at: At,
    revoked_at: Option<At>,
    client_id: String,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct ListRow {
    id: Id,
    user_id: Id,
    device_name: String,
    user_agent: String,
    address: Option<String>,
    created_at: At,
    rotated_at: At,
    expires_at: At,
}

impl ListRow {
    fn into_session(self) -> Result<Session> {
        Ok(Session {
            id: self.id.into(),
            user_id: self.user_id.into(),
            device_name: self.device_name,
            user_agent: self.user_agent,
            address: match self.address {
                Some(text) => Some(parse("sessions", "address", self.id, &text)?),
                None => None,
            },
            created_at: self.created_at.0,
            last_used_at: self.rotated_at.0,
            expires_at: self.expires_at.0,
        })
    }
}

fn binding(id: Id, bytes: Vec<u8>) -> Result<[u8; 16]> {
    bytes
        .try_into()
        .map_err(|_| illegal("sessions", "binding", id, "has not 16 bytes"))
}

/// Opens a session if the account is active and nothing has ended its sessions
/// since the password was checked, and returns the account's epoch, for the
/// access token. None otherwise.
pub async fn open(conn: &mut Conn, session: &NewSession) -> Result<Option<i64>> {
    // The row's lock comes first: whoever ends all sessions of the account has
    // it too, and so is either seen here or sees this session.
    let epoch: Option<i64> = on!(conn, |c| diesel::update(
        users::table
            .filter(users::id.eq(Id::from(session.user_id)))
            .filter(users::status.eq(UserStatus::Active.as_str()))
            .filter(users::min_session_epoch.le(session.epoch))
    )
    .set(users::epoch.eq(users::epoch))
    .returning(users::epoch)
    .kept()
    .get_result(c))
    .optional()?;
    let Some(epoch) = epoch else {
        return Ok(None);
    };
    let address = session.address.map(|address| address.to_string());
    on!(conn, |c| diesel::insert_into(sessions::table)
        .values((
            sessions::id.eq(Id::from(session.id)),
            sessions::user_id.eq(Id::from(session.user_id)),
            sessions::epoch.eq(epoch),
            sessions::generation.eq(0),
            sessions::key_id.eq(session.key_id),
            sessions::binding.eq(session.binding.as_slice()),
            sessions::device_name.eq(session.device_name.as_str()),
            sessions::user_agent.eq(session.user_agent.as_str()),
            sessions::address.eq(address),
            sessions::client_id.eq(session.client_id.as_str()),
            sessions::created_at.eq(At(session.now)),
            sessions::rotated_at.eq(At(session.now)),
            sessions::expires_at.eq(At(session.expires_at)),
            sessions::absolute_expires_at.eq(At(session.absolute_expires_at)),
        ))
        .kept()
        .execute(c))?;
    Ok(Some(epoch))
}

/// Where a session and its account stand, live or not.
pub async fn state(conn: &mut Conn, id: SessionId) -> Result<Option<SessionState>> {
    let found: Option<(StateRow, String, i64, i64)> = on!(conn, |c| sessions::table
        .inner_join(users::table)
        .filter(sessions::id.eq(Id::from(id)))
        .select((
            StateRow::as_select(),
            users::status,
            users::epoch,
            users::min_session_epoch,
        ))
        .first(c))
    .optional()?;
    let Some((row, status, user_epoch, user_min_session_epoch)) = found else {
        return Ok(None);
    };
    Ok(Some(SessionState {
        session_id: row.id.into(),
        user_id: row.user_id.into(),
        epoch: row.epoch,
        generation: row.generation,
        key_id: row.key_id,
        binding: binding(row.id, row.binding)?,
        rotated_at: row.rotated_at.0,
        created_at: row.created_at.0,
        expires_at: row.expires_at.0,
        absolute_expires_at: row.absolute_expires_at.0,
        revoked_at: row.revoked_at.map(|at| at.0),
        client_id: row.client_id,
        auth_time: row.created_at.0,
        user_status: parse("users", "status", row.user_id, &status)?,
        user_epoch,
        user_min_session_epoch,
    }))
}

/// Advances a live session from generation `from`, or from one below it whose
/// successor a failover lost, to `from + 1`; it ends at `idle_until`, or when it
/// does in any case. None if it is dead or further on: [`state`] says which. Of
/// any number of callers with one token, one succeeds. The caller must check the
/// token against the binding, and take the transaction back if it does not fit.
pub async fn advance(
    conn: &mut Conn,
    id: SessionId,
    from: i64,
    key_id: i32,
    now: Timestamp,
    idle_until: Timestamp,
) -> Result<Option<Advanced>> {
    // The epoch must come from this very statement: read later, it could be
    // that of a change which ends the session, and the token would outlive it.
    let user_epoch = users::table
        .filter(users::id.eq(sessions::user_id))
        .select(users::epoch)
        .single_value();
    let has_roles = exists(user_roles::table.filter(user_roles::user_id.eq(sessions::user_id)));
    let ends_first = sessions::absolute_expires_at.lt(At(idle_until));
    let expires_at = case_when(ends_first, sessions::absolute_expires_at);
    let row: Option<(StateRow, Option<i64>, bool)> = on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::id.eq(Id::from(id)))
            .filter(sessions::generation.le(from))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(now)))
            .filter(exists(
                users::table
                    .filter(users::id.eq(sessions::user_id))
                    .filter(users::status.eq(UserStatus::Active.as_str()))
                    .filter(users::min_session_epoch.le(sessions::epoch))
            ))
    )
    .set((
        sessions::generation.eq(from + 1),
        sessions::key_id.eq(key_id),
        sessions::rotated_at.eq(At(now)),
        sessions::expires_at.eq(expires_at.otherwise(At(idle_until))),
    ))
    .returning((StateRow::as_returning(), user_epoch, has_roles))
    .kept()
    .get_result(c))
    .optional()?;
    let Some((row, user_epoch, has_roles)) = row else {
        return Ok(None);
    };
    Ok(Some(Advanced {
        generation: row.generation,
        user_id: row.user_id.into(),
        user_epoch: user_epoch
            .ok_or_else(|| illegal("sessions", "user_id", row.id, "names no account"))?,
        key_id: row.key_id,
        binding: binding(row.id, row.binding)?,
        created_at: row.created_at.0,
        expires_at: row.expires_at.0,
        client_id: row.client_id,
        auth_time: row.created_at.0,
        has_roles,
    }))
}

/// Revokes a session. True only on the step from live to dead, so that of
/// several callers one tells of it. An account that is not active or a raised
/// `min_session_epoch` do not count here.
pub async fn revoke(conn: &mut Conn, id: SessionId, now: Timestamp) -> Result<bool> {
    let revoked = on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::id.eq(Id::from(id)))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(now)))
    )
    .set(sessions::revoked_at.eq(At(now)))
    .kept()
    .execute(c))?;
    Ok(revoked == 1)
}

/// Revokes the sessions of an account, but for one, and returns those on which
/// [`revoke`] would have been true.
pub async fn revoke_all(
    conn: &mut Conn,
    user: UserId,
    except: Option<SessionId>,
    now: Timestamp,
) -> Result<Vec<SessionId>> {
    // No session has the nil id.
    let except = except.map_or(Id(uuid::Uuid::nil()), Id::from);
    let revoked: Vec<Id> = on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::user_id.eq(Id::from(user)))
            .filter(sessions::id.ne(except))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(now)))
    )
    .set(sessions::revoked_at.eq(At(now)))
    .returning(sessions::id)
    .kept()
    .get_results(c))?;
    Ok(revoked.into_iter().map(SessionId::from).collect())
}

/// Revokes sessions whose refresh token is under a key: up to `limit` of those
/// after an id, in the order of ids. Returns them, and the last id that was looked
/// at; none if there are no more.
pub async fn revoke_under_key(
    conn: &mut Conn,
    key_id: i32,
    after: SessionId,
    limit: i64,
    now: Timestamp,
) -> Result<(Vec<SessionId>, Option<SessionId>)> {
    let found: Vec<Id> = on!(conn, |c| sessions::table
        .filter(sessions::id.gt(Id::from(after)))
        .filter(sessions::key_id.eq(key_id))
        .filter(sessions::revoked_at.is_null())
        .filter(sessions::expires_at.gt(At(now)))
        .order(sessions::id.asc())
        .limit(limit)
        .select(sessions::id)
        .load(c))?;
    let last = found.last().copied().map(SessionId::from);
    let revoked: Vec<Id> = on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::id.eq_any(found))
            .filter(sessions::key_id.eq(key_id))
            .filter(sessions::revoked_at.is_null())
    )
    .set(sessions::revoked_at.eq(At(now)))
    .returning(sessions::id)
    .get_results(c))?;
    Ok((revoked.into_iter().map(SessionId::from).collect(), last))
}

/// Whether a live session has its refresh token under this key.
pub async fn any_under_key(conn: &mut Conn, key_id: i32, now: Timestamp) -> Result<bool> {
    Ok(on!(conn, |c| diesel::select(exists(
        sessions::table
            .filter(sessions::key_id.eq(key_id))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(now)))
    ))
    .get_result(c))?)
}

/// Lets a live session go on after a change of its account that was made
/// through it: in the account's new epoch, and with a new binding and the next
/// generation, so that no refresh token of before fits it. None if it is dead.
pub async fn renew(conn: &mut Conn, id: SessionId, renewal: &Renewal) -> Result<Option<i64>> {
    on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::id.eq(Id::from(id)))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(renewal.now)))
    )
    .set((
        sessions::epoch.eq(renewal.epoch),
        sessions::generation.eq(sessions::generation + 1),
        sessions::key_id.eq(renewal.key_id),
        sessions::binding.eq(renewal.binding.as_slice()),
        sessions::rotated_at.eq(At(renewal.now)),
    ))
    .returning(sessions::generation)
    .kept()
    .get_result(c))
    .optional()
}

/// Revokes the oldest live sessions of an account beyond the newest `keep`, and
/// returns them.
pub async fn end_excess(
    conn: &mut Conn,
    user: UserId,
    keep: usize,
    now: Timestamp,
) -> Result<Vec<SessionId>> {
    let keep = i64::try_from(keep).unwrap_or(i64::MAX);
    let excess: Vec<Id> = on!(conn, |c| sessions::table
        .inner_join(users::table)
        .filter(sessions::user_id.eq(Id::from(user)))
        .filter(live(now))
        .order((sessions::created_at.desc(), sessions::id.desc()))
        .offset(keep)
        .select(sessions::id)
        .load(c))?;
    if excess.is_empty() {
        return Ok(Vec::new());
    }
    let revoked: Vec<Id> = on!(conn, |c| diesel::update(
        sessions::table
            .filter(sessions::id.eq_any(excess))
            .filter(sessions::revoked_at.is_null())
            .filter(sessions::expires_at.gt(At(now)))
    )
    .set(sessions::revoked_at.eq(At(now)))
    .returning(sessions::id)
    .get_results(c))?;
    Ok(revoked.into_iter().map(SessionId::from).collect())
}

/// A live session.
pub async fn get(conn: &mut Conn, id: SessionId, now: Timestamp) -> Result<Option<Session>> {
    let row: Option<ListRow> = on!(conn, |c| sessions::table
        .inner_join(users::table)
        .filter(sessions::id.eq(Id::from(id)))
        .filter(live(now))
        .select(ListRow::as_select())
        .first(c))
    .optional()?;
    row.map(ListRow::into_session).transpose()
}

/// A page of an account's live sessions, newest first.
pub async fn list(
    conn: &mut Conn,
    user: UserId,
    now: Timestamp,
    after: Option<(Timestamp, SessionId)>,
    size: PageSize,
) -> Result<Page<Session, (Timestamp, SessionId)>> {
    let rows: Vec<ListRow> = on!(conn, |c| {
        let mut query = sessions::table
            .inner_join(users::table)
            .filter(sessions::user_id.eq(Id::from(user)))
            .filter(live(now))
            .select(ListRow::as_select())
            .order((sessions::created_at.desc(), sessions::id.desc()))
            .limit(size.limit())
            .into_boxed();
        if let Some((at, id)) = after {
            query = query.filter(
                sessions::created_at.lt(At(at)).or(sessions::created_at
                    .eq(At(at))
                    .and(sessions::id.lt(Id::from(id)))),
            );
        }
        query.load(c)
    })?;
    let sessions = rows
        .into_iter()
        .map(ListRow::into_session)
        .collect::<Result<Vec<_>>>()?;
    Ok(Page::cut(sessions, size, |session| {
        (session.created_at, session.id)
    }))
}

/// The condition on a session joined with its account.
#[diesel::dsl::auto_type(no_type_alias)]
fn live(now: Timestamp) -> _ {
    let now: At = At(now);
    let active: &'static str = UserStatus::Active.as_str();
    sessions::revoked_at
        .is_null()
        .and(sessions::expires_at.gt(now))
        .and(users::status.eq(active))
        .and(users::min_session_epoch.le(sessions::epoch))
}
