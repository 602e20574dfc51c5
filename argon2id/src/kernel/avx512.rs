//! Sixteen vectors of eight words: a block fits into the registers.

use std::{
    arch::x86_64::{
        __m512i, _mm_cvtsi128_si64, _mm512_add_epi64, _mm512_alignr_epi8, _mm512_castsi512_si128,
        _mm512_load_si512, _mm512_mul_epu32, _mm512_permutex_epi64, _mm512_ror_epi64,
        _mm512_shuffle_i64x2, _mm512_store_si512, _mm512_xor_si512,
    },
    array, mem,
};

use crate::{block::Block, fill::Segment};

/// Rows and columns are computed in fours: a vector has the same four words of
/// two rows, or the same two words of four columns. First are the words that the
/// RFC calls v0 to v3, of all four, then v4 to v7, v8 to v11 and v12 to v15.
type Four = [__m512i; 8];

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn fill(segment: &Segment, memory: &mut [Block]) {
    segment.fill(
        memory,
        |block, other, next| compress(block, other, |word| next.fetch(word)),
        |block, other| compress(block, other, |_| ()),
    );
}

/// G of section 3.5. Tells the first word of the result as soon as it is known.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn compress(block: &mut Block, other: &Block, first_word: impl FnOnce(u64)) {
    let sum: [__m512i; 16] = array::from_fn(|i| _mm512_xor_si512(load(block, i), load(other, i)));
    let mut z = sum;
    for k in [0, 8] {
        // Row n is in vectors 2n and 2n + 1.
        let [r0, s0, r1, s1, r2, s2, r3, s3] = array::from_fn(|i| z[k + i]);
        let mut four = [
            low_halves(r0, r1),
            low_halves(r2, r3),
            high_halves(r0, r1),
            high_halves(r2, r3),
            low_halves(s0, s1),
            low_halves(s2, s3),
            high_halves(s0, s1),
            high_halves(s2, s3),
        ];
        permute_rows(&mut four);
        let [a0, a1, b0, b1, c0, c1, d0, d1] = four;
        z[k] = low_halves(a0, b0);
        z[k + 1] = low_halves(c0, d0);
        z[k + 2] = high_halves(a0, b0);
        z[k + 3] = high_halves(c0, d0);
        z[k + 4] = low_halves(a1, b1);
        z[k + 5] = low_halves(c1, d1);
        z[k + 6] = high_halves(a1, b1);
        z[k + 7] = high_halves(c1, d1);
    }
    let mut left = array::from_fn(|row| z[2 * row]);
    permute_columns(&mut left);
    let first = _mm512_castsi512_si128(_mm512_xor_si512(left[0], sum[0]));
    first_word(_mm_cvtsi128_si64(first).cast_unsigned());
    let mut right = array::from_fn(|row| z[2 * row + 1]);
    permute_columns(&mut right);
    for (row, (left, right)) in left.into_iter().zip(right).enumerate() {
        z[2 * row] = left;
        z[2 * row + 1] = right;
    }
    for (i, (z, sum)) in z.into_iter().zip(sum).enumerate() {
        store(block, i, _mm512_xor_si512(z, sum));
    }
}

/// P of section 3.6 on four rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn permute_rows(four: &mut Four) {
    mix(four);
    let [_, _, b0, b1, c0, c1, d0, d1] = four;
    for (b, c, d) in [(b0, c0, d0), (b1, c1, d1)] {
        *b = _mm512_permutex_epi64::<0b00_11_10_01>(*b);
        *c = _mm512_permutex_epi64::<0b01_00_11_10>(*c);
        *d = _mm512_permutex_epi64::<0b10_01_00_11>(*d);
    }
    mix(four);
    let [_, _, b0, b1, c0, c1, d0, d1] = four;
    for (b, c, d) in [(b0, c0, d0), (b1, c1, d1)] {
        *b = _mm512_permutex_epi64::<0b10_01_00_11>(*b);
        *c = _mm512_permutex_epi64::<0b01_00_11_10>(*c);
        *d = _mm512_permutex_epi64::<0b00_11_10_01>(*d);
    }
}

/// P of section 3.6 on four columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn permute_columns(four: &mut Four) {
    mix(four);
    let [_, _, b0, b1, c0, c1, d0, d1] = four;
    (*b0, *b1) = (straddle(*b0, *b1), straddle(*b1, *b0));
    mem::swap(c0, c1);
    (*d0, *d1) = (straddle(*d1, *d0), straddle(*d0, *d1));
    mix(four);
    let [_, _, b0, b1, c0, c1, d0, d1] = four;
    (*b0, *b1) = (straddle(*b1, *b0), straddle(*b0, *b1));
    mem::swap(c0, c1);
    (*d0, *d1) = (straddle(*d0, *d1), straddle(*d1, *d0));
}

/// GB of section 3.6 on all that stands in the same place.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn mix(four: &mut Four) {
    let [a0, a1, b0, b1, c0, c1, d0, d1] = four;
    half_mix::<32, 24>(a0, b0, c0, d0);
    half_mix::<32, 24>(a1, b1, c1, d1);
    half_mix::<16, 63>(a0, b0, c0, d0);
    half_mix::<16, 63>(a1, b1, c1, d1);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn half_mix<const D: i32, const B: i32>(
    a: &mut __m512i,
    b: &mut __m512i,
    c: &mut __m512i,
    d: &mut __m512i,
) {
    *a = add(*a, *b);
    *d = _mm512_ror_epi64::<D>(_mm512_xor_si512(*d, *a));
    *c = add(*c, *d);
    *b = _mm512_ror_epi64::<B>(_mm512_xor_si512(*b, *c));
}

/// a + b + 2 · trunc(a) · trunc(b).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    let product = _mm512_mul_epu32(a, b);
    _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(product, product))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn low_halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high_halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b)
}

/// In each pair of words: the second of `a` and the first of `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn straddle(a: __m512i, b: __m512i) -> __m512i {
    _mm512_alignr_epi8::<8>(b, a)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[expect(unsafe_code, reason = "the instruction takes an address")]
fn load(block: &Block, i: usize) -> __m512i {
    let words: &[u64; 8] = &block.0.as_chunks().0[i];
    // SAFETY: eight words can be read, and as a block begins on a border of 64
    // bytes each eight of its words do.
    unsafe { _mm512_load_si512((&raw const *words).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[expect(unsafe_code, reason = "the instruction takes an address")]
fn store(block: &mut Block, i: usize, vector: __m512i) {
    let words: &mut [u64; 8] = &mut block.0.as_chunks_mut().0[i];
    // SAFETY: as in `load`, and they may be written.
    unsafe { _mm512_store_si512((&raw mut *words).cast(), vector) }
}
