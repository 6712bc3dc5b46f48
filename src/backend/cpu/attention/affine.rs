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

use super::codes::{LIFTS, Words, each_field, field, fields, units};
use super::prefetch::prefetch_part;
use crate::backend::cpu::simd::Simd;
use crate::codec::affine::Affine;
use crate::codec::fragment::{span, tile_words, unit_words};
use crate::codec::{Side, TILE_TOKENS};

/// Channels of a head that the kernels can hold.
pub(super) const MAX_HEAD_DIM: usize = crate::backend::MAX_HEAD_DIM;

/// Lanes of the biases of a tile: a vector of up to 16 for 32 rows or more.
pub(super) const MAX_BIASES: usize = MAX_HEAD_DIM / 32 * 16;

/// Elements of a folded vector: k of each row group of a tile.
pub(super) const MAX_FOLD: usize = MAX_HEAD_DIM / 32 * TILE_TOKENS;

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
        assert!(codec.fits(head_dim) && codec.group.is_multiple_of(32));
        let (rows, k) = match side {
            Side::Key => (TILE_TOKENS, head_dim),
            Side::Value => (head_dim, TILE_TOKENS),
        };
        Self { bytes, bits: codec.bits, group: codec.group, rows, k, side, scales, zeros }
    }

    /// The words of the unit at a block of 16 rows and a span along k.
    #[inline(always)]
    fn unit(&self, row_block: usize, span_index: usize) -> *const u8 {
        let index = match self.side {
            Side::Key => row_block * (self.k / span(self.bits)) + span_index,
            Side::Value => span_index * (self.rows / 16) + row_block,
        };
        let bytes = unit_words(self.bits) * 128;
        debug_assert!((index + 1) * bytes <= self.scales);
        // SAFETY: the units of a tile end where the scales begin.
        unsafe { self.bytes.as_ptr().add(index * bytes) }
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
                    if IN_PLACE || self.bits == 3 {
                        let lifts = &LIFTS[usize::from(IN_PLACE)][self.bits - 2];
                        let lifts = lifts.as_ptr().add(even % 64);
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
                match self.bits {
                    2 => self.decode_block::<S, 2>(s, block, &scale, &zero, out),
                    3 => self.decode_block::<S, 3>(s, block, &scale, &zero, out),
                    _ => self.decode_block::<S, 4>(s, block, &scale, &zero, out),
                }
            }
        }
    }

    /// Decodes a block of 16 rows with its row group's parameters.
    #[inline(always)]
    fn decode_block<S: Simd, const BITS: usize>(
        &self,
        s: S,
        block: usize,
        scale: &[f32; MAX_HEAD_DIM],
        zero: &[f32; MAX_HEAD_DIM],
        out: &mut [f32],
    ) {
        assert!(out.len() >= (block + 1) * 16 * self.k && self.k <= MAX_HEAD_DIM);
        let lifts = &LIFTS[0][BITS - 2];
        let [low_unit, high_unit] = units(false, BITS).map(|unit| s.splat(unit));
        for v in 0..32 / S::LANES {
            for span_index in 0..self.k / span(BITS) {
                // SAFETY: the words of these threads; the rows of this block and the
                // elements of this span lie within `out`, whose length was checked.
                unsafe {
                    let words = self.unit(block, span_index).add(4 * v * S::LANES);
                    let words = Words::<S, BITS>::load(s, words);
                    let row = block * 16 + v * S::LANES / 4;
                    let p = out.as_mut_ptr().add(row * self.k);
                    for (half, words) in [words, words.odd(s)].into_iter().enumerate() {
                        each_field!(BITS, n, {
                            let at = field(BITS, span_index, half, n);
                            let mut codes = words.codes::<false>(s, n);
                            if BITS == 3 {
                                let lift = s.splat(lifts[at % 64]);
                                let [low, high] = codes;
                                codes = [
                                    s.mul(low, s.mul(lift, low_unit)),
                                    s.mul(high, s.mul(lift, high_unit)),
                                ];
                            }
                            let factor = s.load4(scale.as_ptr().add(at));
                            let offset = s.load4(zero.as_ptr().add(at));
                            for (code, rows) in codes.into_iter().zip([0, 8]) {
                                let x = s.fma(code, factor, offset);
                                s.store_blocks(p.add(at + rows * self.k), self.k, x);
                            }
                        });
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
        match self.bits {
            2 => self.block_product_of::<S, 2, G, IN_PLACE>(s, block, first, fold, acc),
            3 => self.block_product_of::<S, 3, G, IN_PLACE>(s, block, first, fold, acc),
            _ => self.block_product_of::<S, 4, G, IN_PLACE>(s, block, first, fold, acc),
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
            let unit = self.unit(block, span_index);
            // SAFETY: a fragment has 32 words; the fields of a span lie within
            // the k elements of the row group's part of fold.
            unsafe {
                let mut words = [Words::<S, BITS>::load(s, unit.add(4 * first * S::LANES)); 2];
                if S::FRAGMENT_BLOCK == 2 {
                    words[1] = Words::load(s, unit.add(4 * (first + 1) * S::LANES));
                }
                for half in 0..2 {
                    if half == 1 {
                        words = words.map(|w| w.odd(s));
                    }
                    each_field!(BITS, n, {
                        let at = field(BITS, span_index, half, n);
                        let mut codes = [s.splat(0.0); 4];
                        for v in 0..S::FRAGMENT_BLOCK {
                            [codes[2 * v], codes[2 * v + 1]] = words[v].codes::<IN_PLACE>(s, n);
                        }
                        for g in 0..G {
                            let f = s.load4(fold[g].as_ptr().add(folded + at));
                            for j in 0..2 * S::FRAGMENT_BLOCK {
                                sums[g][j] = s.fma(codes[j], f, sums[g][j]);
                            }
                        }
                    });
                }
            }
        }
        *acc = sums;
    }
}
