//! Products with a tile of affine low-bit codes, read in place.
//!
//! A sealed tile is a matrix of `rows × k` codes in fragments of 16 × span
//! ([`crate::codec::fragment`]): tokens × channels for keys, channels × tokens
//! for values. `group` consecutive rows share one vector of scales and one of
//! zeros along k, so for a vector x
//!
//! ```text
//! Σ_k (code·scale_k + zero_k)·x_k  =  Σ_k code·(scale_k·x_k)  +  Σ_k zero_k·x_k
//!                                            folded once           bias, once
//! ```
//!
//! and the inner loop is: extract a code, multiply, add. The four threads `t` of
//! a fragment row hold elements `2t` of k at even and `2t + 1` at odd fields, so
//! vectors along k are kept in *even-odd order*: of each 32 elements first those
//! with even, then those with odd index.
//!
//! A code is extracted in one of two ways. Any processor shifts and looks the lowest
//! bits up. One that takes subnormal numbers at full speed multiplies codes where
//! they are (`IN_PLACE`): the bits of a word above its lowest `p`, masked and read as a
//! float, are `code·2^(p − 149)`. The folded vector makes up for `p` and a unit at the
//! end for the rest, all by powers of two, so products are as exact as with the
//! other way.

use super::prefetch::prefetch_part;
use crate::backend::cpu::simd::Simd;
use crate::codec::affine::Affine;
use crate::codec::fragment::{span, tile_words};
use crate::codec::{Side, TILE_TOKENS};

/// Channels of a head that the kernels can hold.
pub(super) const MAX_HEAD_DIM: usize = 256;

/// Lanes of the biases of a tile: a vector of up to 16 for 32 rows or more.
pub(super) const MAX_BIASES: usize = MAX_HEAD_DIM / 32 * 16;

/// Elements of a folded vector: k of each row group of a tile.
pub(super) const MAX_FOLD: usize = MAX_HEAD_DIM / 32 * TILE_TOKENS;

/// Folded vectors for codes in place are larger by 2^80 above bit 0. So they overflow
/// from 2^48 on, and products lose bits below 2^-57: scales lie within 2^±24.
const LIFT: i32 = 80;

/// Bits that the second half of a word's fields is shifted by, so that all are
/// within a float's 23 bits of fraction.
const SHIFTED: usize = 16;

/// The lowest bit of pair `n` of a word, which stands in the word shifted right by
/// [`SHIFTED`] if the second value says so.
const fn bit(bits: usize, n: usize) -> (usize, bool) {
    let at = 2 * bits * n;
    // Both codes of the pair below bit 23.
    if at + 2 * bits <= 23 { (at, false) } else { (at - SHIFTED, true) }
}

/// `2^n`, a normal number.
const fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// What scales are multiplied by for codes in place, for each 32 elements of k.
const fn lifts(bits: usize) -> [f32; 32] {
    let mut lifts = [0.0; 32];
    let mut span_index = 0;
    while span_index < 32 / span(bits) {
        let mut n = 0;
        while n < fields(bits) {
            let mut t = 0;
            while t < 4 {
                lifts[field(bits, span_index, n) + t] = power(LIFT - bit(bits, n).0 as i32);
                t += 1;
            }
            n += 1;
        }
        span_index += 1;
    }
    lifts
}

/// [`lifts`] of 2 bits and of 4 bits.
static LIFTS: [[f32; 32]; 2] = [lifts(2), lifts(4)];

/// What sums of products stand for, in rows g and in rows g + 8: those have their
/// codes `bits` bits higher.
#[inline(always)]
const fn units(in_place: bool, bits: usize) -> [f32; 2] {
    if in_place { [power(149 - LIFT), power(149 - LIFT - bits as i32)] } else { [1.0; 2] }
}

/// Index, in even-odd order, of element `i`.
pub(super) const fn even_odd(i: usize) -> usize {
    i / 32 * 32 + i % 2 * 16 + i % 32 / 2
}

/// A sealed tile as a matrix.
#[derive(Clone, Copy)]
pub(super) struct AffineTile<'a> {
    bytes: &'a [u8],
    bits: usize,
    group: usize,
    /// Rows: tokens of keys, channels of values.
    rows: usize,
    /// Elements along k: channels of keys, tokens of values.
    k: usize,
    side: Side,
    scales: usize,
    zeros: usize,
}

impl<'a> AffineTile<'a> {
    /// Views the bytes of one encoded tile.
    #[inline(always)]
    pub(super) fn new(codec: &Affine, side: Side, head_dim: usize, bytes: &'a [u8]) -> Self {
        let (scales, zeros) = codec.offsets(head_dim);
        assert!(bytes.len() == zeros + (zeros - scales) && head_dim <= MAX_HEAD_DIM);
        assert!(scales == 4 * tile_words(codec.bits, head_dim));
        assert!(head_dim.is_multiple_of(codec.group.max(32)) && codec.group.is_multiple_of(32));
        let (rows, k) = match side {
            Side::Key => (TILE_TOKENS, head_dim),
            Side::Value => (head_dim, TILE_TOKENS),
        };
        Self { bytes, bits: codec.bits, group: codec.group, rows, k, side, scales, zeros }
    }

    /// The words of the fragment at a block of 16 rows and a span along k.
    #[inline(always)]
    fn fragment(&self, row_block: usize, span_index: usize) -> *const u8 {
        let index = match self.side {
            Side::Key => row_block * (self.k / span(self.bits)) + span_index,
            Side::Value => span_index * (self.rows / 16) + row_block,
        };
        debug_assert!((index + 1) * 128 <= self.scales);
        // SAFETY: the fragments of a tile end where the scales begin.
        unsafe { self.bytes.as_ptr().add(index * 128) }
    }

    /// Pointers to the f16 scales and zeros of a row group.
    #[inline(always)]
    fn parameters(&self, row_group: usize) -> (*const u8, *const u8) {
        debug_assert!((row_group + 1) * self.k * 2 <= self.zeros - self.scales);
        let at = row_group * self.k * 2;
        // SAFETY: each row group has k scales and k zeros, checked in `new`.
        unsafe {
            let base = self.bytes.as_ptr();
            (base.add(self.scales + at), base.add(self.zeros + at))
        }
    }

    /// For each row group and head: `fold = scale·x`, and adds `zero·x` to a vector
    /// of biases, whose lanes are summed later. `x` is in even-odd order along k.
    #[inline(always)]
    pub(super) fn fold<S: Simd, const G: usize, const K: usize, const IN_PLACE: bool>(
        &self,
        s: S,
        x: [&[f32; K]; G],
        fold: &mut [[f32; MAX_FOLD]; G],
        biases: &mut [[f32; MAX_BIASES]; G],
    ) {
        assert!(self.k <= K && self.k <= MAX_HEAD_DIM);
        for row_group in 0..self.rows / self.group {
            let (scales, zeros) = self.parameters(row_group);
            let bias_at = row_group * S::LANES;
            let mut bias = [s.splat(0.0); G];
            for g in 0..G {
                // SAFETY: row groups have at least 32 of at most MAX_HEAD_DIM rows.
                bias[g] = unsafe { s.load(biases[g].as_ptr().add(bias_at)) };
            }
            for start in (0..self.k).step_by(2 * S::LANES) {
                // SAFETY: k is a multiple of 32 and within the length of x; all
                // row groups' k fit MAX_FOLD; scales and zeros have k elements.
                unsafe {
                    let (scale_even, scale_odd) = s.load_f16_even_odd(scales.add(2 * start));
                    let (zero_even, zero_odd) = s.load_f16_even_odd(zeros.add(2 * start));
                    let even = start / 32 * 32 + start % 32 / 2;
                    let (mut scale_even, mut scale_odd) = (scale_even, scale_odd);
                    if IN_PLACE {
                        let lifts = LIFTS[self.bits / 4].as_ptr().add(even % 32);
                        scale_even = s.mul(scale_even, s.load(lifts));
                        scale_odd = s.mul(scale_odd, s.load(lifts.add(16)));
                    }
                    for g in 0..G {
                        let from = x[g].as_ptr().add(even);
                        let to = fold[g].as_mut_ptr().add(row_group * self.k + even);
                        let (xe, xo) = (s.load(from), s.load(from.add(16)));
                        s.store(to, s.mul(xe, scale_even));
                        s.store(to.add(16), s.mul(xo, scale_odd));
                        bias[g] = s.fma(xe, zero_even, s.fma(xo, zero_odd, bias[g]));
                    }
                }
            }
            for g in 0..G {
                // SAFETY: as above.
                unsafe { s.store(biases[g].as_mut_ptr().add(bias_at), bias[g]) }
            }
        }
    }

    /// Row products for each head: `out[even_odd(row)] = Σ_k x̂[row, k]·x[k]`, from
    /// what [`fold`](Self::fold) made of `x`. Used for the scores of a key tile.
    /// Meanwhile asks for the bytes of `ahead`.
    #[inline(always)]
    pub(super) fn rows_product<S: Simd, const G: usize, const IN_PLACE: bool>(
        &self,
        s: S,
        fold: &[[f32; MAX_FOLD]; G],
        biases: &[[f32; MAX_BIASES]; G],
        out: &mut [[f32; TILE_TOKENS]; G],
        ahead: &[u8],
    ) {
        assert!(self.rows == TILE_TOKENS);
        let units = units(IN_PLACE, self.bits);
        for row_group in 0..self.rows / self.group {
            // Each row adds up four lanes, so that is how it gets its bias.
            let mut bias = [[s.splat(0.0); 2]; G];
            for g in 0..G {
                // SAFETY: as in `fold`.
                let lanes = unsafe { s.load(biases[g].as_ptr().add(row_group * S::LANES)) };
                let sum = s.sum_across_blocks(lanes);
                bias[g] = units.map(|unit| s.mul(sum, s.splat(1.0 / unit)));
            }
            for i in 0..self.group / 16 {
                let block = row_group * self.group / 16 + i;
                prefetch_part(ahead, block, self.rows / 16);
                for first in (0..32 / S::LANES).step_by(S::FRAGMENT_BLOCK) {
                    let mut acc = [[s.splat(0.0); 4]; G];
                    for g in 0..G {
                        acc[g] = [bias[g][0], bias[g][1], bias[g][0], bias[g][1]];
                    }
                    self.block_product::<S, G, IN_PLACE>(s, block, first, fold, &mut acc);
                    for g in 0..G {
                        let at = block / 2 * 32 + block % 2 * 8;
                        // SAFETY: eight rows each fit behind `at` and `at + 16`.
                        unsafe {
                            let even = out[g].as_mut_ptr().add(at);
                            s.store_rows(&acc[g], first, units, even, even.add(16));
                        }
                    }
                }
            }
        }
    }

    /// Adds row products for each head, without their biases, to accumulators that
    /// stay in fragment form (`4·rows` floats a head), from what
    /// [`fold`](Self::fold) made of `x`. Used for the output of a value tile.
    /// Meanwhile asks for the bytes of `ahead`.
    #[inline(always)]
    pub(super) fn accumulate_product<S: Simd, const G: usize, const IN_PLACE: bool>(
        &self,
        s: S,
        fold: &[[f32; MAX_FOLD]; G],
        accumulators: &mut [[f32; 4 * MAX_HEAD_DIM]; G],
        ahead: &[u8],
    ) {
        for block in 0..self.rows / 16 {
            prefetch_part(ahead, block, self.rows / 16);
            for first in (0..32 / S::LANES).step_by(S::FRAGMENT_BLOCK) {
                let at = block * 64 + first * 2 * S::LANES;
                let mut acc = [[s.splat(0.0); 4]; G];
                // SAFETY: a block of 16 rows has 64 accumulators.
                unsafe {
                    for g in 0..G {
                        let from = accumulators[g].as_ptr().add(at);
                        for j in 0..2 * S::FRAGMENT_BLOCK {
                            acc[g][j] = s.load(from.add(j * S::LANES));
                        }
                    }
                    self.block_product::<S, G, IN_PLACE>(s, block, first, fold, &mut acc);
                    for g in 0..G {
                        let to = accumulators[g].as_mut_ptr().add(at);
                        for j in 0..2 * S::FRAGMENT_BLOCK {
                            s.store(to.add(j * S::LANES), acc[g][j]);
                        }
                    }
                }
            }
        }
    }

    /// Reduces the accumulators of [`accumulate_product`](Self::accumulate_product)
    /// to `out[row] += Σ`, biases included.
    #[inline(always)]
    pub(super) fn reduce_accumulators<S: Simd, const IN_PLACE: bool>(
        s: S,
        codec: &Affine,
        accumulators: &[f32; 4 * MAX_HEAD_DIM],
        biases: &[f32; MAX_BIASES],
        out: &mut [f32],
    ) {
        for (block, rows) in out.chunks_exact_mut(16).enumerate() {
            let (mut even, mut odd) = ([0f32; 8], [0f32; 8]);
            for first in (0..32 / S::LANES).step_by(S::FRAGMENT_BLOCK) {
                let mut acc = [s.splat(0.0); 4];
                // SAFETY: a block of 16 rows has 64 accumulators, and at most
                // MAX_HEAD_DIM / 16 blocks are asked for (the slice index checks).
                unsafe {
                    let block = accumulators[block * 64..][..64].as_ptr();
                    for (j, a) in acc[..2 * S::FRAGMENT_BLOCK].iter_mut().enumerate() {
                        *a = s.load(block.add((first * 2 + j) * S::LANES));
                    }
                    let units = units(IN_PLACE, codec.bits);
                    s.store_rows(&acc, first, units, even.as_mut_ptr(), odd.as_mut_ptr());
                }
            }
            let bias = &biases[block * 16 / codec.group * S::LANES..][..S::LANES];
            // SAFETY: the slice is one vector.
            let bias = s.horizontal_sum(unsafe { s.load(bias.as_ptr()) });
            for (i, row) in rows.iter_mut().enumerate() {
                *row += bias + if i % 2 == 0 { even[i / 2] } else { odd[i / 2] };
            }
        }
    }

    /// Decodes the tile to `out[row][even_odd(k)]`, row-major.
    #[inline(always)]
    pub(super) fn decode<S: Simd>(&self, s: S, out: &mut [f32]) {
        assert!(out.len() >= self.rows * self.k);
        let mut scale = [0f32; MAX_HEAD_DIM];
        let mut zero = [0f32; MAX_HEAD_DIM];
        for row_group in 0..self.rows / self.group {
            let (scales, zeros) = self.parameters(row_group);
            for start in (0..self.k).step_by(2 * S::LANES) {
                let even = start / 32 * 32 + start % 32 / 2;
                // SAFETY: as in `fold`.
                unsafe {
                    for (from, to) in [(scales, &mut scale), (zeros, &mut zero)] {
                        let (e, o) = s.load_f16_even_odd(from.add(2 * start));
                        s.store(to.as_mut_ptr().add(even), e);
                        s.store(to.as_mut_ptr().add(even + 16), o);
                    }
                }
            }
            for i in 0..self.group / 16 {
                let block = row_group * self.group / 16 + i;
                for v in 0..32 / S::LANES {
                    for span_index in 0..self.k / span(self.bits) {
                        // SAFETY: the rows of this block and the elements of this
                        // span lie within `out`, whose length was checked.
                        unsafe {
                            let words = self.fragment(block, span_index).add(4 * v * S::LANES);
                            let mut w = s.load_words(words);
                            let row = block * 16 + v * S::LANES / 4;
                            let p = out.as_mut_ptr().add(row * self.k);
                            for n in 0..fields(self.bits) {
                                let at = field(self.bits, span_index, n);
                                let (low, high);
                                (low, high, w) = next_codes(s, self.bits, w);
                                let factor = s.load4(scale.as_ptr().add(at));
                                let offset = s.load4(zero.as_ptr().add(at));
                                let x = s.fma(low, factor, offset);
                                s.store_blocks(p.add(at), self.k, x);
                                let x = s.fma(high, factor, offset);
                                s.store_blocks(p.add(at + 8 * self.k), self.k, x);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The products of one block of 16 rows with each head's folded vector,
    /// for `FRAGMENT_BLOCK` vectors of threads from `first` on.
    #[inline(always)]
    fn block_product<S: Simd, const G: usize, const IN_PLACE: bool>(
        &self,
        s: S,
        block: usize,
        first: usize,
        fold: &[[f32; MAX_FOLD]; G],
        acc: &mut [[S::F; 4]; G],
    ) {
        if self.bits == 2 {
            self.block_product_of::<S, 2, G, IN_PLACE>(s, block, first, fold, acc);
        } else {
            self.block_product_of::<S, 4, G, IN_PLACE>(s, block, first, fold, acc);
        }
    }

    #[inline(always)]
    fn block_product_of<S: Simd, const BITS: usize, const G: usize, const IN_PLACE: bool>(
        &self,
        s: S,
        block: usize,
        first: usize,
        fold: &[[f32; MAX_FOLD]; G],
        acc: &mut [[S::F; 4]; G],
    ) {
        let mut sums = *acc;
        // The folded vector of the block's row group.
        let folded = block * 16 / self.group * self.k;
        for span_index in 0..self.k / span(BITS) {
            let fragment = self.fragment(block, span_index);
            // SAFETY: a fragment has 32 words; the fields of a span lie within
            // the k elements of the row group's part of fold.
            unsafe {
                let mut w = [s.load_words(fragment.add(4 * first * S::LANES)); 2];
                if S::FRAGMENT_BLOCK == 2 {
                    w[1] = s.load_words(fragment.add(4 * (first + 1) * S::LANES));
                }
                let shifted = w.map(|w| s.shift_right_16(w));
                for n in 0..fields(BITS) {
                    let at = field(BITS, span_index, n);
                    let mut codes = [s.splat(0.0); 4];
                    for v in 0..S::FRAGMENT_BLOCK {
                        if IN_PLACE {
                            let (bit, upper) = bit(BITS, n);
                            let word = if upper { shifted[v] } else { w[v] };
                            let mask = ((1 << BITS) - 1) << bit;
                            codes[2 * v] = s.masked(word, mask);
                            codes[2 * v + 1] = s.masked(word, mask << BITS);
                        } else {
                            (codes[2 * v], codes[2 * v + 1], w[v]) = next_codes(s, BITS, w[v]);
                        }
                    }
                    for g in 0..G {
                        let f = s.load4(fold[g].as_ptr().add(folded + at));
                        for j in 0..2 * S::FRAGMENT_BLOCK {
                            sums[g][j] = s.fma(codes[j], f, sums[g][j]);
                        }
                    }
                }
            }
        }
        *acc = sums;
    }
}

/// Pairs of registers (rows g and g + 8) in a word.
#[inline(always)]
const fn fields(bits: usize) -> usize {
    16 / bits
}

/// The even-odd index of the first of the four k elements of pair `n`, counted
/// in the order of the bits.
#[inline(always)]
const fn field(bits: usize, span_index: usize, n: usize) -> usize {
    if bits == 2 {
        span_index * 32 + n / 4 * 16 + n % 4 * 4
    } else {
        span_index / 2 * 32 + n / 2 * 16 + span_index % 2 * 8 + n % 2 * 4
    }
}

/// The codes of rows g and g + 8 in the lowest bits, and the word without them.
#[inline(always)]
fn next_codes<S: Simd>(s: S, bits: usize, w: S::I) -> (S::F, S::F, S::I) {
    if bits == 2 {
        (s.code2_low(w), s.code2_high(w), s.shift_right_4(w))
    } else {
        let high = s.shift_right_4(w);
        (s.code4(w), s.code4(high), s.shift_right_4(high))
    }
}
