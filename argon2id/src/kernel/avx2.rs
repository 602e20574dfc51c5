//! Thirty-two vectors of four words, two rows or columns at a time.

use std::{
    arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_alignr_epi8, _mm256_extract_epi64, _mm256_load_si256,
        _mm256_mul_epu32, _mm256_or_si256, _mm256_permute4x64_epi64, _mm256_setr_epi8,
        _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_srli_epi64, _mm256_store_si256,
        _mm256_xor_si256,
    },
    array, mem,
};

use crate::{block::Block, fill::Segment};

/// Two rows, a vector having four words of one, or two columns, a vector having
/// two words of each. First are the words that the RFC calls v0 to v3, of both,
/// then v4 to v7, v8 to v11 and v12 to v15.
type Two = [__m256i; 8];

#[target_feature(enable = "avx2")]
pub(super) fn fill(segment: &Segment, memory: &mut [Block]) {
    segment.fill(
        memory,
        |block, other, next| compress(block, other, |word| next.fetch(word)),
        |block, other| compress(block, other, |_| ()),
    );
}

/// G of section 3.5. Tells the first word of the result as soon as it is known.
#[inline]
#[target_feature(enable = "avx2")]
fn compress(block: &mut Block, other: &Block, first_word: impl FnOnce(u64)) {
    let sum: [__m256i; 32] = array::from_fn(|i| _mm256_xor_si256(load(block, i), load(other, i)));
    let mut y = sum;
    for k in [0, 8, 16, 24] {
        // The vectors of one row, then those of the other, as they are wanted.
        let mut two = [0, 4, 1, 5, 2, 6, 3, 7].map(|i| y[k + i]);
        permute_rows(&mut two);
        for (i, vector) in [0, 4, 1, 5, 2, 6, 3, 7].into_iter().zip(two) {
            y[k + i] = vector;
        }
    }
    permute_two_columns(&mut y, 0);
    let first = _mm256_extract_epi64::<0>(_mm256_xor_si256(y[0], sum[0]));
    first_word(first.cast_unsigned());
    for k in 1..4 {
        permute_two_columns(&mut y, k);
    }
    for (i, (y, sum)) in y.into_iter().zip(sum).enumerate() {
        store(block, i, _mm256_xor_si256(y, sum));
    }
}

/// P of section 3.6 on two rows.
#[inline]
#[target_feature(enable = "avx2")]
fn permute_rows(two: &mut Two) {
    mix(two);
    let [_, _, b0, b1, c0, c1, d0, d1] = two;
    for (b, c, d) in [(b0, c0, d0), (b1, c1, d1)] {
        *b = _mm256_permute4x64_epi64::<0b00_11_10_01>(*b);
        *c = _mm256_permute4x64_epi64::<0b01_00_11_10>(*c);
        *d = _mm256_permute4x64_epi64::<0b10_01_00_11>(*d);
    }
    mix(two);
    let [_, _, b0, b1, c0, c1, d0, d1] = two;
    for (b, c, d) in [(b0, c0, d0), (b1, c1, d1)] {
        *b = _mm256_permute4x64_epi64::<0b10_01_00_11>(*b);
        *c = _mm256_permute4x64_epi64::<0b01_00_11_10>(*c);
        *d = _mm256_permute4x64_epi64::<0b00_11_10_01>(*d);
    }
}

/// P of section 3.6 on two columns, of which each row has one vector.
#[inline]
#[target_feature(enable = "avx2")]
fn permute_two_columns(y: &mut [__m256i; 32], k: usize) {
    let mut two: Two = array::from_fn(|row| y[4 * row + k]);
    mix(&mut two);
    let [_, _, b0, b1, c0, c1, d0, d1] = &mut two;
    (*b0, *b1) = (straddle(*b0, *b1), straddle(*b1, *b0));
    mem::swap(c0, c1);
    (*d0, *d1) = (straddle(*d1, *d0), straddle(*d0, *d1));
    mix(&mut two);
    let [_, _, b0, b1, c0, c1, d0, d1] = &mut two;
    (*b0, *b1) = (straddle(*b1, *b0), straddle(*b0, *b1));
    mem::swap(c0, c1);
    (*d0, *d1) = (straddle(*d0, *d1), straddle(*d1, *d0));
    for (row, vector) in two.into_iter().enumerate() {
        y[4 * row + k] = vector;
    }
}

/// GB of section 3.6 on all that stands in the same place.
#[inline]
#[target_feature(enable = "avx2")]
fn mix(two: &mut Two) {
    let [a0, a1, b0, b1, c0, c1, d0, d1] = two;
    for (a, b, c, d) in [
        (&mut *a0, &mut *b0, &mut *c0, &mut *d0),
        (&mut *a1, &mut *b1, &mut *c1, &mut *d1),
    ] {
        *a = add(*a, *b);
        *d = right_32(_mm256_xor_si256(*d, *a));
        *c = add(*c, *d);
        *b = right_24(_mm256_xor_si256(*b, *c));
    }
    for (a, b, c, d) in [(a0, b0, c0, d0), (a1, b1, c1, d1)] {
        *a = add(*a, *b);
        *d = right_16(_mm256_xor_si256(*d, *a));
        *c = add(*c, *d);
        *b = right_63(_mm256_xor_si256(*b, *c));
    }
}

/// a + b + 2 · trunc(a) · trunc(b).
#[inline]
#[target_feature(enable = "avx2")]
fn add(a: __m256i, b: __m256i) -> __m256i {
    let product = _mm256_mul_epu32(a, b);
    _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(product, product))
}

#[inline]
#[target_feature(enable = "avx2")]
fn right_32(v: __m256i) -> __m256i {
    _mm256_shuffle_epi32::<0b10_11_00_01>(v)
}

#[inline]
#[target_feature(enable = "avx2")]
fn right_24(v: __m256i) -> __m256i {
    let from = _mm256_setr_epi8(
        3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10, //
        3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10,
    );
    _mm256_shuffle_epi8(v, from)
}

#[inline]
#[target_feature(enable = "avx2")]
fn right_16(v: __m256i) -> __m256i {
    let from = _mm256_setr_epi8(
        2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9, //
        2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9,
    );
    _mm256_shuffle_epi8(v, from)
}

#[inline]
#[target_feature(enable = "avx2")]
fn right_63(v: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi64::<63>(v), _mm256_add_epi64(v, v))
}

/// In each pair of words: the second of `a` and the first of `b`.
#[inline]
#[target_feature(enable = "avx2")]
fn straddle(a: __m256i, b: __m256i) -> __m256i {
    _mm256_alignr_epi8::<8>(b, a)
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "the instruction takes an address")]
fn load(block: &Block, i: usize) -> __m256i {
    let words: &[u64; 4] = &block.0.as_chunks().0[i];
    // SAFETY: four words can be read, and as a block begins on a border of 64
    // bytes each four of its words begin on one of 32.
    unsafe { _mm256_load_si256((&raw const *words).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "the instruction takes an address")]
fn store(block: &mut Block, i: usize, vector: __m256i) {
    let words: &mut [u64; 4] = &mut block.0.as_chunks_mut().0[i];
    // SAFETY: as in `load`, and they may be written.
    unsafe { _mm256_store_si256((&raw mut *words).cast(), vector) }
}
