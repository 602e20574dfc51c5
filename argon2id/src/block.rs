//! The unit that Argon2's memory consists of.

use std::ops::BitXorAssign;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroize;

/// Words of a block.
pub(crate) const WORDS: usize = 128;

/// 1 KiB, on a cache line's border.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [u64; WORDS]);

impl Block {
    pub(crate) const ZERO: Self = Self([0; WORDS]);

    /// From bytes as RFC 9106 has them to words of this machine, or back.
    pub(crate) fn little_endian(&mut self) {
        for word in &mut self.0 {
            *word = word.to_le();
        }
    }
}

impl BitXorAssign<&Self> for Block {
    #[inline(always)]
    fn bitxor_assign(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word ^= other;
        }
    }
}

impl Zeroize for Block {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}
