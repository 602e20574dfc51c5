//! The function that makes a block of two others (G of RFC 9106, section 3.5),
//! for the instructions of this machine. All the crate's unsafe code is here.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::fmt;

use crate::{block::Block, fill::Segment};

/// Which instructions hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Instructions);

/// A variant exists only if this machine has the instructions: [`Kernel::all`]
/// alone makes them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// What this machine has, the fastest first.
    pub fn all() -> impl Iterator<Item = Self> {
        let found = [
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"))
                .then_some(Instructions::Avx512),
            #[cfg(target_arch = "x86_64")]
            is_x86_feature_detected!("avx2").then_some(Instructions::Avx2),
            Some(Instructions::Portable),
        ];
        found.into_iter().flatten().map(Self)
    }

    /// The fastest of this machine.
    pub fn best() -> Self {
        Self::all().next().unwrap_or(Self(Instructions::Portable))
    }

    pub(crate) fn fill(self, segment: &Segment, memory: &mut [Block]) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "instructions that not every machine has")]
            Instructions::Avx512 => {
                // SAFETY: the variant says that this machine has the instructions.
                unsafe { avx512::fill(segment, memory) }
            }
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "instructions that not every machine has")]
            Instructions::Avx2 => {
                // SAFETY: the variant says that this machine has the instructions.
                unsafe { avx2::fill(segment, memory) }
            }
            Instructions::Portable => segment.fill(
                memory,
                |block, other, next| portable::compress(block, other, |word| next.fetch(word)),
                |block, other| portable::compress(block, other, |_| ()),
            ),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "AVX2",
            Instructions::Portable => "portable",
        })
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Asks for a block from main memory without waiting for it.
#[inline(always)]
pub(crate) fn prefetch(block: &Block) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in block.0.chunks_exact(8) {
            #[expect(unsafe_code, reason = "the instruction takes an address")]
            // SAFETY: a hint reads nothing, whatever the address, and this one is good.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _nothing_stable_to_ask_with = block;
}
