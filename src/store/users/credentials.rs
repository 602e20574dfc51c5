//! What logins are checked against, and how it changes.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{Epochs, live};
use crate::{
    domain::{
        Identifier, StoredPassword, UserId, UserStatus,
        throttle::{Counter, ThrottleKey},
    },
    error::{Error, Result},
    store::{
        conn::{Conn, on},
        failure::Outcome,
        kept::Keep as _,
        login_throttle::Row as CounterRow,
        schema::{login_throttle, trust_head, users},
        types::{At, Id, parse},
    },
};

/// What a login is checked against.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Whose they are.
    pub user_id: UserId,
    /// Whether the account may log in.
    pub status: UserStatus,
    /// None: not by password.
    pub password: Option<StoredPassword>,
    /// The epoch that a session opened with these must name.
    pub epoch: i64,
    /// Sessions of smaller epochs are dead.
    pub min_session_epoch: i64,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = users)]
struct CredentialsRow {
    id: Id,
    status: String,
    password: Option<String>,
    epoch: i64,
    min_session_epoch: i64,
}

impl TryFrom<CredentialsRow> for Credentials {
    type Error = Error;

    fn try_from(row: CredentialsRow) -> Result<Self> {
        Ok(Self {
            user_id: row.id.into(),
            status: parse("users", "status", row.id, &row.status)?,
            password: row.password.map(StoredPassword::new),
            epoch: row.epoch,
            min_session_epoch: row.min_session_epoch,
        })
    }
}

/// What a login under this name is checked against.
pub async fn credentials(conn: &mut Conn, name: &Identifier) -> Result<Option<Credentials>> {
    let row: Option<CredentialsRow> = match name {
        Identifier::Email(email) => on!(conn, |c| users::table
            .filter(users::email.eq(email.as_str()))
            .select(CredentialsRow::as_select())
            .first(c)),
        Identifier::Username(username) => on!(conn, |c| users::table
            .filter(users::username.eq(username.as_str()))
            .select(CredentialsRow::as_select())
            .first(c)),
    }
    .optional()?;
    row.map(Credentials::try_from).transpose()
}

/// The same, with the failures that are counted by `key`; in one query, since
/// every login asks.
pub async fn for_login(
    conn: &mut Conn,
    name: &Identifier,
    key: &ThrottleKey,
) -> Result<(Option<Credentials>, Option<Counter>)> {
    // The head of the trust log is a row that is always there: a name that
    // nobody has is answered too.
    macro_rules! found {
        ($named:expr) => {
            on!(conn, |c| trust_head::table
                .left_join(users::table.on($named))
                .left_join(login_throttle::table.on(login_throttle::key.eq(key.0.to_vec())))
                .select((
                    Option::<CredentialsRow>::as_select(),
                    Option::<CounterRow>::as_select(),
                ))
                .first(c))
        };
    }
    let (account, counter): (Option<CredentialsRow>, Option<CounterRow>) = match name {
        Identifier::Email(email) => found!(users::email.eq(email.as_str().to_owned())),
        Identifier::Username(username) => found!(users::username.eq(username.as_str().to_owned())),
    }?;
    Ok((
        account.map(Credentials::try_from).transpose()?,
        counter.map(Counter::try_from).transpose()?,
    ))
}

/// By id.
pub async fn credentials_by_id(conn: &mut Conn, id: UserId) -> Result<Option<Credentials>> {
    let row: Option<CredentialsRow> = on!(conn, |c| users::table
        .find(Id::from(id))
        .select(CredentialsRow::as_select())
        .first(c))
    .optional()?;
    row.map(Credentials::try_from).transpose()
}

/// Sets the password of an account that is not deleted; its tokens and sessions
/// die. None if there is no such account.
pub async fn set_password(
    conn: &mut Conn,
    id: UserId,
    password: &StoredPassword,
    now: Timestamp,
) -> Result<Option<Epochs>> {
    let epochs: Option<(i64, i64)> = on!(conn, |c| diesel::update(live(id))
        .set((
            users::password.eq(password.as_str()),
            users::epoch.eq(users::epoch + 1),
            users::min_session_epoch.eq(users::epoch + 1),
            users::updated_at.eq(At(now)),
        ))
        .returning((users::epoch, users::min_session_epoch))
        .kept()
        .get_result(c))
    .optional()?;
    Ok(epochs.map(Epochs::from))
}

/// Replaces the stored form of the same password; nothing dies. False if it was
/// changed meanwhile.
pub async fn rehash(
    conn: &mut Conn,
    id: UserId,
    old: &StoredPassword,
    new: &StoredPassword,
) -> Result<bool> {
    let changed = on!(conn, |c| diesel::update(
        users::table
            .filter(users::id.eq(Id::from(id)))
            .filter(users::password.eq(old.as_str()))
    )
    .set(users::password.eq(new.as_str()))
    .kept()
    .execute(c))?;
    Ok(changed == 1)
}

/// The passwords of accounts that have one, by id, after this one.
pub async fn passwords(
    conn: &mut Conn,
    after: Option<UserId>,
    limit: i64,
) -> Result<Vec<(UserId, StoredPassword)>> {
    let after = Id::from(after.unwrap_or(UserId(uuid::Uuid::nil())));
    let rows: Vec<(Id, Option<String>)> = on!(conn, |c| users::table
        .filter(users::id.gt(after))
        .filter(users::password.is_not_null())
        .order(users::id.asc())
        .limit(limit)
        .select((users::id, users::password))
        .load(c))?;
    let found = rows.into_iter().filter_map(|(id, password)| {
        password.map(|password| (UserId::from(id), StoredPassword::new(password)))
    });
    Ok(found.collect())
}

/// How many passwords are stored with this at their beginning.
pub async fn stored_under(conn: &mut Conn, head: &str) -> Result<i64> {
    Ok(on!(conn, |c| users::table
        .filter(users::password.like(format!("{head}%")))
        .count()
        .get_result(c))?)
}
