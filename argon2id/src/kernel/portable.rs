//! As RFC 9106 writes it, one word after the other.

use crate::block::Block;

/// G of section 3.5. Tells the first word of the result as soon as it is known.
#[inline]
pub(crate) fn compress(block: &mut Block, other: &Block, first_word: impl FnOnce(u64)) {
    *block ^= other;
    let sum = *block;
    for row in block.0.as_chunks_mut().0 {
        permute(row);
    }
    permute_column(block, 0);
    first_word(block.0[0] ^ sum.0[0]);
    for column in 1..8 {
        permute_column(block, column);
    }
    *block ^= &sum;
}

/// P of section 3.6 on two words of each row.
#[inline]
fn permute_column(block: &mut Block, column: usize) {
    let at = |i| 16 * (i / 2) + 2 * column + i % 2;
    let mut v = std::array::from_fn(|i| block.0[at(i)]);
    permute(&mut v);
    for (i, word) in v.into_iter().enumerate() {
        block.0[at(i)] = word;
    }
}

/// P of section 3.6.
#[inline(always)]
fn permute(v: &mut [u64; 16]) {
    mix::<0, 4, 8, 12>(v);
    mix::<1, 5, 9, 13>(v);
    mix::<2, 6, 10, 14>(v);
    mix::<3, 7, 11, 15>(v);
    mix::<0, 5, 10, 15>(v);
    mix::<1, 6, 11, 12>(v);
    mix::<2, 7, 8, 13>(v);
    mix::<3, 4, 9, 14>(v);
}

/// GB of section 3.6.
#[inline(always)]
fn mix<const A: usize, const B: usize, const C: usize, const D: usize>(v: &mut [u64; 16]) {
    v[A] = add(v[A], v[B]);
    v[D] = (v[D] ^ v[A]).rotate_right(32);
    v[C] = add(v[C], v[D]);
    v[B] = (v[B] ^ v[C]).rotate_right(24);
    v[A] = add(v[A], v[B]);
    v[D] = (v[D] ^ v[A]).rotate_right(16);
    v[C] = add(v[C], v[D]);
    v[B] = (v[B] ^ v[C]).rotate_right(63);
}

/// a + b + 2 · trunc(a) · trunc(b).
#[inline(always)]
fn add(a: u64, b: u64) -> u64 {
    let product = (a & 0xffff_ffff).wrapping_mul(b & 0xffff_ffff);
    a.wrapping_add(b).wrapping_add(product << 1)
}
