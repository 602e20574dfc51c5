//! Argon2id (RFC 9106, version 0x13) as a server wants it: in memory that is
//! kept from one hash to the next, on huge pages, and by the widest vectors
//! that the processor has.
//!
//! A login costs its hash and little else, so what a hash costs decides how
//! many people a core can log in. Three things make the difference to a plain
//! implementation, and none of them changes a result:
//!
//! - **Memory that stays** ([`Memory`]). Fresh memory is zeroed by the kernel page
//!   by page, which takes longer than filling it.
//! - **AVX-512 or AVX2**, chosen at run time ([`Kernel`]), with portable code for
//!   other machines.
//! - **Looking ahead.** Which block is needed next is known from the first word of
//!   the one that is being made. It is made first, and the other block is asked for
//!   while the rest is computed, so that its way from main memory costs nothing.
//!
//! And one lets others live: a hash yields the processor after each 256 blocks, so that
//! who shares a core with it does not wait for the scheduler's time slice.
//!
//! Bounded by memory, an attacker with the same machine gains as much.
//!
//! Argon2 lanes (`p`) are computed in turn on the calling thread. There is no
//! Argon2d, no Argon2i, and the result has 32 bytes.

mod block;
mod fill;
mod kernel;
mod memory;
mod params;
#[cfg(test)]
mod tests;

use std::{fmt, io};

use blake2::{Blake2b256, Blake2b512, Digest};
use thiserror::Error as ThisError;
use zerocopy::IntoBytes;
use zeroize::Zeroize;

use block::Block;
use fill::Segment;

pub use kernel::Kernel;
pub use memory::Memory;
pub use params::Params;

/// Bytes of a result.
pub const OUTPUT: usize = 32;

/// Segments of a lane, after each of which lanes may look at one another.
const SLICES: usize = 4;
/// The version that RFC 9106 describes.
const VERSION: u32 = 0x13;
/// Argon2id's number among Argon2's variants.
const VARIANT: u32 = 2;

/// The example of RFC 9106, section 5.3.
const EXAMPLE: (Params, Input<'_>, [u8; OUTPUT]) = (
    match Params::new(32, 3, 4) {
        Some(params) => params,
        None => unreachable!(),
    },
    Input {
        password: &[1; 32],
        salt: &[2; 16],
        secret: &[3; 8],
        associated_data: &[4; 12],
    },
    [
        0x0d, 0x64, 0x0d, 0xf5, 0x8d, 0x78, 0x76, 0x6c, 0x08, 0xc0, 0x37, 0xa3, 0x4a, 0x8b, 0x53,
        0xc9, 0xd0, 0x1e, 0xf0, 0x45, 0x2d, 0x75, 0xb6, 0x5e, 0xb5, 0x25, 0x20, 0xe9, 0x6b, 0x01,
        0xe6, 0x59,
    ],
);

/// What is hashed.
#[derive(Clone, Copy, Default)]
pub struct Input<'a> {
    /// The password, P.
    pub password: &'a [u8],
    /// The salt, S; 16 random bytes are right.
    pub salt: &'a [u8],
    /// A secret of the server, K; may be empty.
    pub secret: &'a [u8],
    /// Associated data, X; may be empty.
    pub associated_data: &'a [u8],
}

/// Says nothing of what is in it.
impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").finish_non_exhaustive()
    }
}

/// Why there is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The memory was reserved for less than these parameters need.
    #[error("these parameters of Argon2id need {needed} blocks of memory and {given} were given")]
    MemoryTooSmall {
        /// Blocks of 1 KiB that are needed.
        needed: usize,
        /// Blocks of 1 KiB that there are.
        given: usize,
    },
    /// A part of the input has 4 GiB or more.
    #[error("an input of Argon2id has 4 GiB or more")]
    InputTooLong,
}

/// Hashes. The memory keeps what was computed in it until [`Memory::wipe`] or
/// the next hash.
pub fn hash(params: &Params, input: &Input, memory: &mut Memory) -> Result<[u8; OUTPUT], Error> {
    hash_by(Kernel::best(), params, input, memory)
}

/// Hashes by the instructions that are asked for. The result is the same.
pub fn hash_by(
    kernel: Kernel,
    params: &Params,
    input: &Input,
    memory: &mut Memory,
) -> Result<[u8; OUTPUT], Error> {
    let given = memory.blocks().len();
    let needed = params.blocks();
    let memory = memory.blocks().get_mut(..needed);
    let memory = memory.ok_or(Error::MemoryTooSmall { needed, given })?;

    let mut seed = seed(params, input)?;
    for (lane, blocks) in (0_u32..).zip(memory.chunks_exact_mut(params.lane_length())) {
        for (column, block) in (0_u32..2).zip(blocks) {
            expand(&seed, column, lane, block);
        }
    }
    seed.zeroize();
    for pass in 0..params.iterations() {
        for slice in 0..SLICES {
            for lane in 0..params.lanes() {
                kernel.fill(&Segment::new(params, pass, slice, lane), memory);
            }
        }
    }
    Ok(finish(params, memory))
}

/// Whether these instructions give what RFC 9106 gives for its example: a test for
/// the start of a service, some microseconds long. Hashes that are wrong would
/// lock everybody out, and be found out only on another machine.
pub fn agrees_with_rfc_9106(kernel: Kernel) -> io::Result<bool> {
    let (params, input, expected) = EXAMPLE;
    let output = hash_by(kernel, &params, &input, &mut Memory::reserve(&params)?);
    Ok(output == Ok(expected))
}

/// H0 of section 3.2: everything that the result depends on.
fn seed(params: &Params, input: &Input) -> Result<[u8; 64], Error> {
    let mut digest = Blake2b512::new()
        .chain_update(params.parallelism().to_le_bytes())
        .chain_update(32_u32.to_le_bytes())
        .chain_update(params.memory_kib().to_le_bytes())
        .chain_update(params.iterations().to_le_bytes())
        .chain_update(VERSION.to_le_bytes())
        .chain_update(VARIANT.to_le_bytes());
    for part in [
        input.password,
        input.salt,
        input.secret,
        input.associated_data,
    ] {
        let length = u32::try_from(part.len()).map_err(|_| Error::InputTooLong)?;
        digest.update(length.to_le_bytes());
        digest.update(part);
    }
    Ok(digest.finalize().into())
}

/// H' of section 3.3 for the 1024 bytes of a block that a lane begins with.
fn expand(seed: &[u8; 64], column: u32, lane: u32, block: &mut Block) {
    let mut link: [u8; 64] = Blake2b512::new()
        .chain_update(1024_u32.to_le_bytes())
        .chain_update(seed)
        .chain_update(column.to_le_bytes())
        .chain_update(lane.to_le_bytes())
        .finalize()
        .into();
    // Half of each link but the last, of which all is taken.
    let (halves, last) = block.as_mut_bytes().split_at_mut(960);
    for half in halves.chunks_exact_mut(32) {
        half.copy_from_slice(&link[..32]);
        link = Blake2b512::digest(link).into();
    }
    last.copy_from_slice(&link);
    link.zeroize();
    block.little_endian();
}

/// The last blocks of all lanes together, through H'.
fn finish(params: &Params, memory: &[Block]) -> [u8; OUTPUT] {
    let mut last = Block::ZERO;
    for lane in memory.chunks_exact(params.lane_length()) {
        if let Some(block) = lane.last() {
            last ^= block;
        }
    }
    last.little_endian();
    let output = Blake2b256::new()
        .chain_update(32_u32.to_le_bytes())
        .chain_update(last.as_bytes())
        .finalize();
    last.zeroize();
    output.into()
}
