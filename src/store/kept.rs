//! Statements that a connection prepares once.
//!
//! diesel keeps prepared what it knows to have the same text each time. It does
//! not know that of an UPDATE, which may leave columns out, nor on PostgreSQL of an
//! INSERT, which may ask for defaults: it prepares these anew, which takes one more
//! round trip there, and on SQLite more than the work itself. A statement that is
//! [kept](Keep::kept) is found again by its text.
//!
//! For statements with a few texts at most: a connection keeps all of them.

use diesel::{
    QueryResult,
    backend::Backend,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
};

/// A statement that is kept prepared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept<Q>(Q);

/// What can be kept.
pub(super) trait Keep: Sized {
    /// Has the connection keep it.
    fn kept(self) -> Kept<Self> {
        Kept(self)
    }
}

impl<Q> Keep for Q {}

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Kept<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _backend: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

/// No id of its own, as its text may differ where its type does not.
impl<Q> QueryId for Kept<Q> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: Query> Query for Kept<Q> {
    type SqlType = Q::SqlType;
}

/// For the few that run within a closure of one database.
impl<Q, Conn> diesel::RunQueryDsl<Conn> for Kept<Q> {}
