//! Memory that outlives a hash, on huge pages where the kernel has them.

use std::{fmt, io};

use memmap2::{Advice, MmapMut};
use zerocopy::FromBytes;

use crate::{Params, block::Block};

/// What a huge page has on x86-64 and, as a rule, on AArch64.
const HUGE_PAGE: usize = 2 << 20;

/// Memory for hashes of up to so many blocks.
///
/// It is reserved at once and taken from the system page by page when the first
/// hash fills it; it goes back when this is dropped.
pub struct Memory {
    pages: MmapMut,
    /// Where the first huge page begins.
    start: usize,
    bytes: usize,
}

impl Memory {
    /// Reserves what these parameters need. Fails if the system has no such
    /// range of addresses to give.
    pub fn reserve(params: &Params) -> io::Result<Self> {
        let bytes = params.blocks() * size_of::<Block>();
        if bytes < HUGE_PAGE {
            let pages = MmapMut::map_anon(bytes)?;
            return Ok(Self {
                pages,
                start: 0,
                bytes,
            });
        }
        // Whole huge pages, wherever the mapping begins: what lies before the
        // first of them is never touched and so costs addresses only.
        let whole = bytes.next_multiple_of(HUGE_PAGE);
        let pages = MmapMut::map_anon(whole + HUGE_PAGE)?;
        // A kernel without huge pages refuses, and the memory is as good.
        #[cfg(target_os = "linux")]
        let _unsupported = pages.advise(Advice::HugePage);
        let start = pages.as_ptr().align_offset(HUGE_PAGE);
        Ok(Self {
            pages,
            start,
            bytes,
        })
    }

    /// Overwrites what hashes have left.
    pub fn wipe(&mut self) {
        self.blocks().fill(Block::ZERO);
    }

    /// The most blocks of 1 KiB that a hash may use.
    pub fn capacity(&self) -> usize {
        self.bytes / size_of::<Block>()
    }

    /// Whether nothing is in it: no hash has used it, or it was wiped.
    pub fn is_blank(&self) -> bool {
        self.pages.iter().all(|byte| *byte == 0)
    }

    pub(crate) fn blocks(&mut self) -> &mut [Block] {
        let bytes = &mut self.pages[self.start..self.start + self.bytes];
        // Pages are aligned and a block is any 1024 bytes, so it never fails.
        <[Block]>::mut_from_bytes(bytes).unwrap_or_default()
    }
}

/// Says how much, and never what.
impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
