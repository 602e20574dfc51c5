//! Paging: page tokens are authenticated, and bound to the caller, the list
//! and its filter.

use super::{Core, authority};
use crate::{
    domain::{Call, Page, PageSize},
    error::{Reason, Result},
};

/// Which page is asked for.
#[derive(Debug)]
pub struct PageRequest {
    /// How many rows.
    pub size: PageSize,
    /// Empty for the first page.
    pub token: String,
    /// List and filter in one form: a token fits no other.
    pub scope: Vec<u8>,
}

/// One page and the token of the next.
#[derive(Debug)]
pub struct Listing<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Empty on the last page.
    pub next_page_token: String,
}

impl PageRequest {
    fn scope(&self, call: &Call) -> Vec<u8> {
        let caller = authority::caller_id(call).unwrap_or_default();
        [&caller.as_bytes()[..], &self.scope].concat()
    }

    /// Where the page starts: the key of the last row before it.
    pub(super) fn cursor<const N: usize>(
        &self,
        core: &Core,
        call: &Call,
    ) -> Result<Option<[u8; N]>> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let cursor = core
            .keyring
            .keys()?
            .request
            .open_page_token(&self.scope(call), &self.token)?;
        cursor
            .try_into()
            .map(Some)
            .map_err(|_| Reason::PageTokenInvalid.into())
    }

    /// Like [`PageRequest::cursor`], where the key is a text.
    pub(super) fn text_cursor(&self, core: &Core, call: &Call) -> Result<Option<String>> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let cursor = core
            .keyring
            .keys()?
            .request
            .open_page_token(&self.scope(call), &self.token)?;
        String::from_utf8(cursor)
            .map(Some)
            .map_err(|_| Reason::PageTokenInvalid.into())
    }

    /// Turns a page of rows into an answer.
    pub(super) fn listing<T, K>(
        &self,
        core: &Core,
        call: &Call,
        page: Page<T, K>,
        cursor: impl FnOnce(K) -> Vec<u8>,
    ) -> Result<Listing<T>> {
        let next_page_token = match page.next {
            Some(key) => {
                core.keyring
                    .keys()?
                    .request
                    .page_token(core.now(), &self.scope(call), &cursor(key))
            }
            None => String::new(),
        };
        Ok(Listing {
            items: page.items,
            next_page_token,
        })
    }
}

/// A keyset cursor of a moment and an id.
pub(super) mod moment {
    use jiff::Timestamp;
    use uuid::Uuid;

    use crate::error::{Reason, Result};

    pub(crate) fn write(at: Timestamp, id: Uuid) -> Vec<u8> {
        [&at.as_microsecond().to_be_bytes()[..], id.as_bytes()].concat()
    }

    pub(crate) fn read(bytes: [u8; 24]) -> Result<(Timestamp, Uuid)> {
        let (at, id) = bytes.split_at(8);
        let at = at
            .try_into()
            .map(i64::from_be_bytes)
            .ok()
            .map(Timestamp::from_microsecond);
        match (at, Uuid::from_slice(id)) {
            (Some(Ok(at)), Ok(id)) => Ok((at, id)),
            _ => Err(Reason::PageTokenInvalid.into()),
        }
    }
}
