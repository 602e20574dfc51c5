//! Records that are in no chain: they wait for their place, or are of a version
//! that had none, or somebody put them there.

use uuid::Uuid;

use super::{Fault, PAGE, Stop, Walk, What, unreadable};
use crate::{
    domain::id,
    error::{Error, Reason, Result},
    store::audit::chain as log,
};

/// Ids of one query.
const UNSEALED_PAGE: i64 = 10_000;

impl Walk<'_> {
    /// All of them.
    pub(super) async fn outside(&mut self) -> Result<(), Stop> {
        self.misplaced().await?;
        self.unchained().await?;
        self.unsealed().await
    }

    /// Records that have no place yet.
    async fn unchained(&mut self) -> Result<(), Stop> {
        let mut after = Uuid::nil();
        loop {
            let mut conn = self.core.store.read(self.call).await?;
            let page = match log::unchained_after(&mut conn, after, PAGE).await {
                Err(error) if error.reason() == Reason::Internal => {
                    log::unchained_after(&mut conn, after, 1).await
                }
                page => page,
            };
            drop(conn);
            let page = page.map_err(|error| unreadable(error, None, None))?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.record.id;
            self.ask_who_is_erased(&page).await?;
            for event in page {
                if let Some(what) = self.wrong_with(&event) {
                    return Err(Fault::of_record(what, None, None, Some(event.record.id)).into());
                }
                self.report.unchained += 1;
            }
        }
    }

    /// Records at places that nobody gives.
    async fn misplaced(&self) -> Result<(), Stop> {
        let mut conn = self.core.store.read(self.call).await?;
        let found = log::before_the_first(&mut conn).await;
        match found.map_err(|error| unreadable(error, None, None))? {
            None => Ok(()),
            id => Err(Fault::of_record(What::RecordMoved, None, None, id).into()),
        }
    }

    /// Records without a MAC.
    async fn unsealed(&mut self) -> Result<(), Stop> {
        let mut from = Uuid::nil();
        loop {
            let mut conn = self.core.store.read(self.call).await?;
            let page = log::unsealed_from(&mut conn, from, UNSEALED_PAGE).await;
            drop(conn);
            let page = page.map_err(|error| unreadable(error, None, None))?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            self.report.unsealed += i64::try_from(page.len()).map_err(Error::internal)?;
            self.report.last_unsealed = id::time_of(*last);
            let Some(next) = last.as_u128().checked_add(1) else {
                return Ok(());
            };
            from = Uuid::from_u128(next);
        }
    }
}
