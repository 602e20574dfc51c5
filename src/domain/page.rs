//! Paging by keyset (AIP-158).

use super::Invalid;

/// How many rows a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(u16);

/// One page and where the next one starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T, K> {
    /// The rows.
    pub items: Vec<T>,
    /// Key of the last row, if there are more after it.
    pub next: Option<K>,
}

impl PageSize {
    /// Without a wish.
    pub const DEFAULT: u16 = 50;
    /// At the most; a larger wish is cut.
    pub const MOST: u16 = 1_000;

    /// Reads a request's `page_size`: 0 means the default, negative is
    /// refused, too large is cut.
    pub fn new(wish: i32) -> Result<Self, Invalid> {
        match u16::try_from(wish) {
            Ok(0) => Ok(Self(Self::DEFAULT)),
            Ok(n) => Ok(Self(n.min(Self::MOST))),
            Err(_) if wish > 0 => Ok(Self(Self::MOST)),
            Err(_) => Err(Invalid::new("must not be negative")),
        }
    }

    /// How many rows to read to know whether there are more.
    pub fn limit(self) -> i64 {
        i64::from(self.0) + 1
    }
}

impl<T, K> Page<T, K> {
    /// Cuts rows that were read with [`PageSize::limit`].
    pub fn cut(mut items: Vec<T>, size: PageSize, key: impl Fn(&T) -> K) -> Self {
        let more = items.len() > usize::from(size.0);
        items.truncate(usize::from(size.0));
        let next = if more { items.last().map(key) } else { None };
        Self { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(PageSize::new(0).unwrap().limit(), 51);
        assert_eq!(PageSize::new(7).unwrap().limit(), 8);
        assert_eq!(PageSize::new(i32::MAX).unwrap().limit(), 1_001);
        assert!(PageSize::new(-1).is_err());
    }

    #[test]
    fn the_last_page_has_no_next() {
        let size = PageSize::new(2).unwrap();
        assert_eq!(Page::cut(vec![1, 2, 3], size, |n| *n).next, Some(2));
        assert_eq!(Page::cut(vec![1, 2], size, |n| *n).next, None);
    }
}
