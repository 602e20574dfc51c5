//! Accounts.
//!
//! Epochs change with the account in one statement. What they mean is said in
//! [`crate::domain::user::User`]; telling validators of them is the caller's,
//! by [`Conn::announce`].

mod credentials;

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

pub use self::credentials::{
    Credentials, credentials, credentials_by_id, for_login, passwords, rehash, set_password,
    stored_under,
};
use super::{
    conn::{Conn, on},
    failure::Outcome,
    kept::Keep as _,
    schema::{audit_origins, idempotency, roles, sessions, user_roles, users},
    types::{At, Id, Labels, illegal, parse},
};
use crate::{
    domain::{
        DisplayName, Email, Metadata, Page, PageSize, RoleId, RoleName, StoredPassword, User,
        UserId, UserStatus, Username, user::UserFilter,
    },
    error::{Error, Result},
};

/// Accounts that one statement changes, so that it stays within a query's time.
const CHUNK: i64 = 1_000;

/// An account to be.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Never used before.
    pub id: UserId,
    /// Its address, not verified yet.
    pub email: Email,
    /// The second name to log in with.
    pub username: Option<Username>,
    /// For people.
    pub display_name: DisplayName,
    /// None: it cannot log in by password.
    pub password: Option<StoredPassword>,
    /// Free labels.
    pub metadata: Metadata,
    /// When it is created.
    pub now: Timestamp,
}

/// How an insertion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The account exists.
    Done,
    /// Another account has the address.
    EmailTaken,
    /// Another account has the username.
    UsernameTaken,
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// As asked.
    Done,
    /// There is no such account, or only its tombstone.
    Gone,
    /// Another account has the address or the username. The transaction is
    /// over: return an error from it.
    Conflict,
}

/// What UpdateUser may change, all of it.
#[derive(Debug, Clone)]
pub struct UserColumns {
    /// The address.
    pub email: Email,
    /// Whether it was proved.
    pub email_verified: bool,
    /// The second name to log in with.
    pub username: Option<Username>,
    /// For people.
    pub display_name: DisplayName,
    /// Free labels.
    pub metadata: Metadata,
}

/// The epochs of an account after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// Tokens of smaller epochs are refused.
    pub epoch: i64,
    /// Sessions of smaller epochs are dead.
    pub min_session_epoch: i64,
}

#[derive(Insertable)]
#[diesel(table_name = users, treat_none_as_default_value = false)]
struct NewRow<'a> {
    id: Id,
    email: &'a str,
    email_verified: bool,
    username: Option<String>,
    display_name: &'a str,
    password: Option<String>,
    status: &'a str,
    metadata: Labels,
    epoch: i64,
    min_session_epoch: i64,
    created_at: At,
    updated_at: At,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
struct Row {
    id: Id,
    email: Option<String>,
    email_verified: bool,
    username: Option<String>,
    display_name: String,
    status: String,
    metadata: Labels,
    epoch: i64,
    min_session_epoch: i64,
    created_at: At,
    updated_at: At,
}

impl Row {
    fn into_user(self, mut roles: Vec<RoleName>) -> Result<User> {
        let id = self.id;
        roles.sort();
        Ok(User {
            id: id.into(),
            email: match self.email {
                Some(text) => Some(parse("users", "email", id, &text)?),
                None => None,
            },
            email_verified: self.email_verified,
            username: match self.username {
                Some(text) => Some(parse("users", "username", id, &text)?),
                None => None,
            },
            display_name: parse("users", "display_name", id, &self.display_name)?,
            status: parse("users", "status", id, &self.status)?,
            roles,
            metadata: Metadata::new(self.metadata.0)
                .map_err(|why| illegal("users", "metadata", id, why))?,
            epoch: self.epoch,
            min_session_epoch: self.min_session_epoch,
            created_at: self.created_at.0,
            updated_at: self.updated_at.0,
        })
    }
}

impl From<(i64, i64)> for Epochs {
    fn from((epoch, min_session_epoch): (i64, i64)) -> Self {
        Self {
            epoch,
            min_session_epoch,
        }
    }
}

/// Creates an account unless its address or username is taken, which fails no
/// transaction.
pub async fn insert(conn: &mut Conn, user: &NewUser) -> Result<Inserted> {
    let row = NewRow {
        id: user.id.into(),
        email: user.email.as_str(),
        email_verified: false,
        username: user.username.as_ref().map(|name| name.as_str().to_owned()),
        display_name: user.display_name.as_str(),
        password: user.password.as_ref().map(|hash| hash.as_str().to_owned()),
        status: UserStatus::Active.as_str(),
        metadata: Labels(user.metadata.labels().clone()),
        epoch: 0,
        min_session_epoch: 0,
        created_at: user.now.into(),
        updated_at: user.now.into(),
    };
    let done = on!(conn, |c| diesel::insert_into(users::table)
        .values(&row)
        .on_conflict_do_nothing()
        .kept()
        .execute(c))?;
    if done == 1 {
        return Ok(Inserted::Done);
    }
    let email_taken = on!(conn, |c| diesel::select(diesel::dsl::exists(
        users::table.filter(users::email.eq(user.email.as_str()))
    ))
    .get_result::<bool>(c))?;
    Ok(if email_taken || user.username.is_none() {
        Inserted::EmailTaken
    } else {
        Inserted::UsernameTaken
    })
}

/// The account with its roles, also when only its tombstone is left.
pub async fn get(conn: &mut Conn, id: UserId) -> Result<Option<User>> {
    Ok(get_many(conn, &[id]).await?.pop())
}

/// The accounts in the order asked for, without those that are not there.
pub async fn get_many(conn: &mut Conn, ids: &[UserId]) -> Result<Vec<User>> {
    let wanted: Vec<Id> = ids.iter().copied().map(Id::from).collect();
    let rows: Vec<Row> = on!(conn, |c| users::table
        .filter(users::id.eq_any(wanted))
        .select(Row::as_select())
        .load(c))?;
    let found = with_roles(conn, rows).await?;
    let mut by_id: HashMap<UserId, User> = found.into_iter().map(|user| (user.id, user)).collect();
    Ok(ids.iter().filter_map(|id| by_id.remove(id)).collect())
}

/// A page of accounts, oldest first.
pub async fn list(
    conn: &mut Conn,
    filter: &UserFilter,
    after: Option<(Timestamp, UserId)>,
    size: PageSize,
) -> Result<Page<User, (Timestamp, UserId)>> {
    let rows: Vec<Row> = on!(conn, |c| {
        let mut query = users::table
            .select(Row::as_select())
            .order((users::created_at.asc(), users::id.asc()))
            .limit(size.limit())
            .into_boxed();
        query = match filter.status {
            Some(status) => query.filter(users::status.eq(status.as_str())),
            None => query.filter(users::status.ne(UserStatus::Deleted.as_str())),
        };
        if let Some(prefix) = &filter.email_prefix {
            // A range instead of LIKE: it needs no escaping, agrees on both
            // databases, and an index serves it.
            query = query.filter(users::email.ge(prefix));
            if let Some(end) = end_of_prefix(prefix) {
                query = query.filter(users::email.lt(end));
            }
        }
        if let Some(role) = &filter.role {
            let holders = user_roles::table
                .inner_join(roles::table)
                .filter(roles::name.eq(role.as_str()))
                .select(user_roles::user_id);
            query = query.filter(users::id.eq_any(holders));
        }
        if let Some(from) = filter.created_from {
            query = query.filter(users::created_at.ge(At(from)));
        }
        if let Some(before) = filter.created_before {
            query = query.filter(users::created_at.lt(At(before)));
        }
        if let Some((at, id)) = after {
            query = query.filter(
                users::created_at
                    .gt(At(at))
                    .or(users::created_at.eq(At(at)).and(users::id.gt(Id::from(id)))),
            );
        }
        query.load(c)
    })?;
    let users = with_roles(conn, rows).await?;
    Ok(Page::cut(users, size, |user| (user.created_at, user.id)))
}

/// The first text after all that start with `prefix`; none if nothing is.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // Over the surrogates, which are no characters.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

async fn with_roles(conn: &mut Conn, rows: Vec<Row>) -> Result<Vec<User>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Id> = rows.iter().map(|row| row.id).collect();
    let held: Vec<(Id, Id, String)> = on!(conn, |c| user_roles::table
        .inner_join(roles::table)
        .filter(user_roles::user_id.eq_any(ids))
        .select((user_roles::user_id, roles::id, roles::name))
        .load(c))?;
    let mut roles: HashMap<Id, Vec<RoleName>> = HashMap::new();
    for (user, role, name) in held {
        roles
            .entry(user)
            .or_default()
            .push(parse("roles", "name", role, &name)?);
    }
    rows.into_iter()
        .map(|row| {
            let roles = roles.remove(&row.id).unwrap_or_default();
            row.into_user(roles)
        })
        .collect()
}

/// Changes an account that is not deleted.
pub async fn update(
    conn: &mut Conn,
    id: UserId,
    columns: &UserColumns,
    now: Timestamp,
) -> Result<Saved> {
    let saved = on!(conn, |c| diesel::update(live(id))
        .set((
            users::email.eq(columns.email.as_str()),
            users::email_verified.eq(columns.email_verified),
            users::username.eq(columns.username.as_ref().map(Username::as_str)),
            users::display_name.eq(columns.display_name.as_str()),
            users::metadata.eq(Labels(columns.metadata.labels().clone())),
            users::updated_at.eq(At(now)),
        ))
        .kept()
        .execute(c))
    .unless_conflict()?;
    Ok(match saved {
        None => Saved::Conflict,
        Some(0) => Saved::Gone,
        Some(_) => Saved::Done,
    })
}

/// Disables an active account, whose tokens and sessions die, or enables a
/// disabled one, which brings none back. None if it is not in `from`. Deleting
/// is [`erase`].
pub async fn set_status(
    conn: &mut Conn,
    id: UserId,
    from: UserStatus,
    to: UserStatus,
    now: Timestamp,
) -> Result<Option<Epochs>> {
    let raise = match to {
        UserStatus::Active => 0,
        UserStatus::Disabled => 1,
        UserStatus::Deleted => return Err(Error::internal("accounts are deleted by erase()")),
    };
    let epochs: Option<(i64, i64)> = if raise == 0 {
        on!(conn, |c| diesel::update(
            live(id).filter(users::status.eq(from.as_str()))
        )
        .set((users::status.eq(to.as_str()), users::updated_at.eq(At(now))))
        .returning((users::epoch, users::min_session_epoch))
        .kept()
        .get_result(c))
    } else {
        on!(conn, |c| diesel::update(
            live(id).filter(users::status.eq(from.as_str()))
        )
        .set((
            users::status.eq(to.as_str()),
            users::epoch.eq(users::epoch + 1),
            users::min_session_epoch.eq(users::epoch + 1),
            users::updated_at.eq(At(now)),
        ))
        .returning((users::epoch, users::min_session_epoch))
        .kept()
        .get_result(c))
    }
    .optional()?;
    Ok(epochs.map(Epochs::from))
}

/// Leaves a tombstone: erases the personal data of the account, of its sessions,
/// of its API keys, of the audit events that it caused and of kept replies. None if there is no such account or
/// it is one already. Several statements: call it in a transaction.
pub async fn erase(conn: &mut Conn, id: UserId, now: Timestamp) -> Result<Option<Epochs>> {
    let epochs: Option<(i64, i64)> = on!(conn, |c| diesel::update(live(id))
        .set((
            users::email.eq(None::<String>),
            users::email_verified.eq(false),
            users::username.eq(None::<String>),
            users::display_name.eq(""),
            users::password.eq(None::<String>),
            users::status.eq(UserStatus::Deleted.as_str()),
            users::metadata.eq(Labels(std::collections::BTreeMap::new())),
            users::epoch.eq(users::epoch + 1),
            users::min_session_epoch.eq(users::epoch + 1),
            users::updated_at.eq(At(now)),
        ))
        .returning((users::epoch, users::min_session_epoch))
        .kept()
        .get_result(c))
    .optional()?;
    if epochs.is_none() {
        return Ok(None);
    }
    let user = Id::from(id);
    on!(conn, |c| diesel::delete(
        user_roles::table.filter(user_roles::user_id.eq(user))
    )
    .execute(c))?;
    on!(conn, |c| diesel::update(
        sessions::table.filter(sessions::user_id.eq(user))
    )
    .set((
        sessions::device_name.eq(""),
        sessions::user_agent.eq(""),
        sessions::address.eq(None::<String>),
    ))
    .kept()
    .execute(c))?;
    super::api_keys::erase(conn, id, now).await?;
    on!(conn, |c| diesel::delete(
        audit_origins::table.filter(audit_origins::user_id.eq(user))
    )
    .execute(c))?;
    on!(conn, |c| diesel::update(
        idempotency::table.filter(idempotency::subject.eq(user))
    )
    .set(idempotency::reply.eq(&[][..]))
    .kept()
    .execute(c))?;
    Ok(epochs.map(Epochs::from))
}

/// Raises the epoch: the account's tokens die, its sessions live on. Returns
/// the new one; none if there is no such account.
pub async fn bump_epoch(conn: &mut Conn, id: UserId, now: Timestamp) -> Result<Option<i64>> {
    on!(conn, |c| diesel::update(live(id))
        .set((
            users::epoch.eq(users::epoch + 1),
            users::updated_at.eq(At(now))
        ))
        .returning(users::epoch)
        .kept()
        .get_result(c))
    .optional()
}

/// The same for everyone who holds a role. The rows are locked in the order of
/// their ids, so that two roles with the same holders cannot be changed into a
/// deadlock.
pub async fn bump_epoch_of_role(
    conn: &mut Conn,
    role: RoleId,
    now: Timestamp,
) -> Result<Vec<(UserId, i64)>> {
    let mut raised = Vec::new();
    // No account has the nil id.
    let mut last = Id(uuid::Uuid::nil());
    loop {
        let holders = users::table
            .inner_join(user_roles::table)
            .filter(user_roles::role_id.eq(Id::from(role)))
            .filter(users::id.gt(last))
            .order(users::id.asc())
            .limit(CHUNK)
            .select(users::id);
        let chunk: Vec<Id> = on!(
            conn,
            sqlite | c | holders.load(c),
            // An UPDATE alone would lock them in any order.
            postgres | c | holders.for_no_key_update().load(c)
        )?;
        let Some(end) = chunk.last() else {
            return Ok(raised);
        };
        last = *end;
        let epochs: Vec<(Id, i64)> = on!(conn, |c| diesel::update(
            users::table.filter(users::id.eq_any(chunk))
        )
        .set((
            users::epoch.eq(users::epoch + 1),
            users::updated_at.eq(At(now))
        ))
        .returning((users::id, users::epoch))
        .get_results(c))?;
        raised.extend(epochs.into_iter().map(|(id, epoch)| (id.into(), epoch)));
    }
}

/// Locks the row until the transaction ends, so that what is read of the
/// account from now on stays true until then. False if there is no such
/// account or it is deleted.
pub async fn lock(conn: &mut Conn, id: UserId) -> Result<bool> {
    let locked = on!(conn, |c| diesel::update(live(id))
        .set(users::epoch.eq(users::epoch))
        .kept()
        .execute(c))?;
    Ok(locked == 1)
}

/// An account that is not deleted.
#[diesel::dsl::auto_type(no_type_alias)]
fn live(id: UserId) -> _ {
    let id: Id = Id(id.0);
    let deleted: &'static str = UserStatus::Deleted.as_str();
    users::table
        .filter(users::id.eq(id))
        .filter(users::status.ne(deleted))
}
