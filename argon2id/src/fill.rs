//! The order in which blocks are made, and of which (RFC 9106, section 3.4).

use std::thread;

use crate::{Params, SLICES, VARIANT, block::Block, kernel::prefetch};

/// Blocks until others that wait for the processor may have it: less than a tenth of a
/// millisecond. A scheduler lets a thread go on for some milliseconds, and whoever
/// shares the core with it answers so much later.
const YIELD: usize = 256;

/// Addresses in a block of them.
const ADDRESSES: usize = 128;

/// A quarter of a lane, in one pass.
pub(crate) struct Segment<'a> {
    params: &'a Params,
    pass: u32,
    slice: usize,
    lane: usize,
}

/// What is known of the block after the one that is being made.
pub(crate) struct Next<'a> {
    segment: &'a Segment<'a>,
    memory: &'a [Block],
    /// Where in the segment it will be.
    index: usize,
    /// Its pseudo-random number, if that does not depend on memory.
    random: Option<u64>,
    /// What the first word of the present block is still combined with.
    overwritten: u64,
}

impl<'a> Segment<'a> {
    pub(crate) fn new(params: &'a Params, pass: u32, slice: usize, lane: usize) -> Self {
        Self {
            params,
            pass,
            slice,
            lane,
        }
    }

    /// Where the lane stands in memory.
    fn lane_start(&self) -> usize {
        self.lane * self.params.lane_length()
    }

    /// Argon2id chooses as Argon2i does in the first half of the first pass: by
    /// a counter, so that what is read says nothing about the password.
    fn is_independent(&self) -> bool {
        self.pass == 0 && self.slice < SLICES / 2
    }

    /// Which block is read to make the one at this index, by its pseudo-random
    /// number (section 3.4.2).
    #[inline(always)]
    fn reference(&self, index: usize, random: u64) -> usize {
        let lane_length = self.params.lane_length();
        let segment_length = self.params.segment_length();
        let is_first = self.pass == 0 && self.slice == 0;
        let lane = match self.params.parallelism() {
            1 => 0,
            _ if is_first => self.lane,
            lanes => ((random >> 32) as u32 % lanes) as usize,
        };
        // Finished segments that may be read, and where the oldest begins.
        let (finished, oldest) = match (self.pass, self.slice) {
            (0, slice) => (slice * segment_length, 0),
            (_, slice) if slice == SLICES - 1 => (lane_length - segment_length, 0),
            (_, slice) => (lane_length - segment_length, (slice + 1) * segment_length),
        };
        let area = if lane == self.lane {
            finished + index - 1
        } else {
            finished - usize::from(index == 0)
        };
        let x = random & 0xffff_ffff;
        let y = (x * x) >> 32;
        let z = (area as u64 * y) >> 32;
        let mut position = oldest + area - 1 - z as usize;
        if position >= lane_length {
            position -= lane_length;
        }
        lane * lane_length + position
    }

    /// Makes the blocks of this segment. `compress` is G of section 3.5: it puts
    /// what it makes of two blocks in the place of the first, and tells [`Next`]
    /// the first word of that as soon as it can; `compress_alone` is the same
    /// where there is no next one.
    ///
    /// Inlined, so that it is compiled for the instructions that these use.
    #[inline(always)]
    pub(crate) fn fill(
        &self,
        memory: &mut [Block],
        compress: impl Fn(&mut Block, &Block, &Next),
        compress_alone: impl Fn(&mut Block, &Block),
    ) {
        let length = self.params.segment_length();
        let start = self.lane_start() + self.slice * length;
        // The first two blocks of a lane are made of the input.
        let first = if self.pass == 0 && self.slice == 0 {
            2
        } else {
            0
        };
        let before = match (self.slice, first) {
            (0, 0) => start + self.params.lane_length() - 1,
            _ => start + first - 1,
        };
        let mut block = memory[before];
        let mut addresses = Addresses::new(self, memory.len());
        for index in first..length {
            let independent = self.is_independent();
            if independent && (index % ADDRESSES == 0 || index == first) {
                addresses.renew(&compress_alone);
            }
            let random = if independent {
                addresses.block.0[index % ADDRESSES]
            } else {
                block.0[0]
            };
            let place = start + index;
            let overwritten = if self.pass == 0 {
                0
            } else {
                memory[place].0[0]
            };
            let next = Next {
                segment: self,
                memory,
                index: index + 1,
                random: independent.then(|| addresses.block.0[(index + 1) % ADDRESSES]),
                overwritten,
            };
            compress(&mut block, &memory[self.reference(index, random)], &next);
            if self.pass > 0 {
                block ^= &memory[place];
            }
            memory[place] = block;
            if index % YIELD == YIELD - 1 {
                thread::yield_now();
            }
        }
    }
}

impl Next<'_> {
    /// Has the block fetched that will be read next, now that the first word of
    /// the present one is known but for what it will be combined with.
    #[inline(always)]
    pub(crate) fn fetch(&self, first_word: u64) {
        if self.index < self.segment.params.segment_length() {
            let random = self.random.unwrap_or(first_word ^ self.overwritten);
            prefetch(&self.memory[self.segment.reference(self.index, random)]);
        }
    }
}

/// The pseudo-random numbers of Argon2i (section 3.4.1.2).
struct Addresses {
    input: Block,
    block: Block,
}

impl Addresses {
    fn new(segment: &Segment, blocks: usize) -> Self {
        let mut input = Block::ZERO;
        let about = [
            u64::from(segment.pass),
            segment.lane as u64,
            segment.slice as u64,
            blocks as u64,
            u64::from(segment.params.iterations()),
            u64::from(VARIANT),
        ];
        input.0[..about.len()].copy_from_slice(&about);
        Self {
            input,
            block: Block::ZERO,
        }
    }

    #[inline(always)]
    fn renew(&mut self, compress: impl Fn(&mut Block, &Block)) {
        self.input.0[6] += 1;
        self.block = self.input;
        for _ in 0..2 {
            compress(&mut self.block, &Block::ZERO);
        }
    }
}
