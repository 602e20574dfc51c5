//! How much a hash costs.

use crate::SLICES;

/// Memory, passes and lanes of a hash (RFC 9106, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    memory_kib: u32,
    iterations: u32,
    parallelism: u32,
}

impl Params {
    /// The least memory in KiB, for one lane.
    pub const LEAST_MEMORY_KIB: u32 = 8;
    /// The most lanes.
    pub const MOST_PARALLELISM: u32 = (1 << 24) - 1;

    /// The parameters, if RFC 9106 allows them: at least one pass, 1 to 2^24 - 1
    /// lanes, and at least 8 KiB for each.
    pub const fn new(memory_kib: u32, iterations: u32, parallelism: u32) -> Option<Self> {
        let lanes = parallelism >= 1 && parallelism <= Self::MOST_PARALLELISM;
        if lanes && iterations >= 1 && memory_kib / Self::LEAST_MEMORY_KIB >= parallelism {
            Some(Self {
                memory_kib,
                iterations,
                parallelism,
            })
        } else {
            None
        }
    }

    /// Memory in KiB, m.
    pub const fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// Passes over the memory, t.
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Lanes, p.
    pub const fn parallelism(&self) -> u32 {
        self.parallelism
    }

    /// Blocks of 1 KiB that are really used: the memory, rounded down so that
    /// each lane has four segments of the same length.
    pub const fn blocks(&self) -> usize {
        self.lane_length() * self.lanes()
    }

    pub(crate) const fn lanes(&self) -> usize {
        self.parallelism as usize
    }

    pub(crate) const fn lane_length(&self) -> usize {
        self.segment_length() * SLICES
    }

    pub(crate) const fn segment_length(&self) -> usize {
        self.memory_kib as usize / (SLICES * self.lanes())
    }
}
