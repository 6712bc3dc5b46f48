//! Matrix products in the file's own 4- and 8-bit blocks, with AVX-512 VNNI.
//!
//! Decoding reads every weight once a token, so its speed is the bytes that the
//! weights take. candle's packed product takes 8.5 bits a weight for every type
//! that it must repack to Q8_0, pads the inner dimension to a multiple of 256 (a
//! third more for a width of 576) and keeps both copies; here Q4_0, Q4_1 and
//! Q8_0 stay at their 5, 5 and 8.5 bits and nothing is kept twice. What each
//! choice measured is in `docs/notes/cpu-dense.md`.
//!
//! Sixteen rows are interleaved, one a vector lane. For each block of 32 columns:
//!
//! ```text
//! 4 bits  codes: 4 × 64 bytes; byte (row, j) of chunk c = column 8c + j (low), 8c + 4 + j (high)
//!         scales: f16 × 16 rows; minima: f16 × 16 rows
//! 8 bits  two blocks together, so that chunks stay aligned to cache lines:
//!         codes: 2 × 8 × 64 bytes; byte (row, j) of chunk c = column 4c + j, plus 128
//!         scales: 2 × f16 × 16 rows
//! ```
//!
//! Everything is read in one straight line, which is what prefetchers follow.
//!
//! Activations are rounded to 8 bits in blocks of 32, as llama.cpp does (Q8_1):
//! `Σ w·x = d·dx·Σ code·xq + m·dx·Σ xq`. Each output depends on its own row of x
//! alone, so results do not depend on the batch.

// Register blocks are written by index.
#![allow(clippy::needless_range_loop)]

use super::pool::{Shared, parallel_for, parallel_shares};
use super::tensor::CpuBuffer;
use crate::codec::WeightType;
use crate::error::{Error, Result};
use core::arch::x86_64::*;
use half::f16;
use memmap2::MmapMut;

/// Rows of the weights that one tile interleaves.
pub(super) const ROWS: usize = 16;
/// Columns of a block.
const BLOCK: usize = 32;
/// Rows of x that one register block holds.
pub(super) const X_ROWS: usize = 8;

/// How far ahead of its reading the first rows of x ask for weights, in bytes.
/// From DRAM, one row on two Zen 4 cores: 18–20 GB/s without, 31 with.
pub(super) const PREFETCH: usize = 1024;

/// Whether this processor and type have this product.
pub(super) fn supports(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q8_0)
        && super::Level::Avx512.available()
        && is_x86_feature_detected!("avx512vnni")
}

/// A weight matrix `[rows, cols]`, interleaved.
pub(super) struct PackedBlocks {
    rows: usize,
    blocks: usize,
    four_bits: bool,
    /// Row group by row group, block by block.
    /// Pages of its own, so that chunks of codes are aligned to cache lines.
    bytes: MmapMut,
}

impl PackedBlocks {
    /// Interleaves blocks of a [supported](supports) type.
    pub(super) fn new(dtype: WeightType, rows: usize, cols: usize, blocks: &[u8]) -> Result<Self> {
        let four_bits = dtype != WeightType::Q8_0;
        let n = cols / BLOCK;
        let groups = rows.div_ceil(ROWS);
        let memory = |e| Error::io("memory for weights", e);
        let mut packed =
            Self { rows, blocks: n, four_bits, bytes: MmapMut::map_anon(1).map_err(memory)? };
        let length = groups * packed.group_bytes();
        packed.bytes = MmapMut::map_anon(length.max(1)).map_err(memory)?;
        // Fewer address translations; a kernel that cannot is no worse off.
        #[cfg(target_os = "linux")]
        let _ = packed.bytes.advise(memmap2::Advice::HugePage);
        let (size, stride) = (dtype.block_bytes(), packed.group_bytes());
        let shared = Shared::new(&mut packed.bytes[..]);
        parallel_for(groups, |group| {
            // SAFETY: groups do not overlap.
            let to = unsafe { shared.slice(group * stride, stride) };
            for row in 0..ROWS.min(rows - group * ROWS) {
                let from = &blocks[(group * ROWS + row) * n * size..][..n * size];
                for (b, block) in from.chunks_exact(size).enumerate() {
                    let (codes, parameters) = place(four_bits, b);
                    pack_block(dtype, block, row, to, codes, parameters);
                }
            }
        });
        Ok(packed)
    }

    /// Bytes kept resident.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes of sixteen rows.
    fn group_bytes(&self) -> usize {
        if self.four_bits { self.blocks * 320 } else { self.blocks.div_ceil(2) * 1088 }
    }

    /// The bytes of a group of rows.
    fn group(&self, group: usize) -> &[u8] {
        let size = self.group_bytes();
        &self.bytes[group * size..][..size]
    }

    /// One row as f32.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.group(row / ROWS);
        let lane = row % ROWS;
        for (column, x) in out.iter_mut().enumerate() {
            let (b, k) = (column / BLOCK, column % BLOCK);
            let (codes, parameters) = place(self.four_bits, b);
            let half = |at: usize| {
                let at = parameters + 2 * at;
                f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
            };
            let codes = &bytes[codes..];
            *x = if self.four_bits {
                let byte = codes[k / 8 * 64 + lane * 4 + k % 4];
                let code = if k % 8 < 4 { byte & 15 } else { byte >> 4 };
                f32::from(code) * half(lane) + half(ROWS + lane)
            } else {
                let byte = codes[k / 4 * 64 + lane * 4 + k % 4];
                (f32::from(byte) - 128.0) * half(lane)
            };
        }
    }

    /// `y = x · selfᵀ`; the first `blocks · 32` floats of each row of x are read.
    pub(super) fn matmul(&self, x: &CpuBuffer, y: &mut CpuBuffer) {
        let quantized = Quantized::new(x, self.blocks);
        let few = x.rows() <= X_ROWS;
        by_tiles(self.rows, x.rows(), y, |group, first, n, sums| {
            let tile = Tile { bytes: self.group(group), x: &quantized, first, blocks: self.blocks };
            // SAFETY: a `PackedBlocks` exists only where `supports` said so.
            unsafe {
                match (self.four_bits, n == X_ROWS && !few) {
                    (true, true) => tile.product::<true, X_ROWS, false>(sums),
                    (false, true) => tile.product::<false, X_ROWS, false>(sums),
                    (true, false) => tile.few::<true>(n, sums),
                    (false, false) => tile.few::<false>(n, sums),
                }
            }
        });
    }
}

/// x goes in stripes of so many rows, which stay in a core's cache, a few groups of weights at
/// a time.
pub(super) const STRIPE: usize = 32 * X_ROWS;

/// The products of a tile: `[rows of x][rows of the weights]`.
pub(super) type Sums = [[f32; ROWS]; X_ROWS];

/// Fills `y`, of `rows` columns, tile by tile: `product` is given a group of weights, the
/// first of some rows of x, and how many.
pub(super) fn by_tiles(
    rows: usize,
    m: usize,
    y: &mut CpuBuffer,
    product: impl Fn(usize, usize, usize, &mut Sums) + Sync,
) {
    let groups = rows.div_ceil(ROWS);
    let stride = groups * ROWS;
    let mut out = y.take();
    out.resize(m * stride, 0.0);
    let shared = Shared::new(&mut out);
    let stripes = m.div_ceil(STRIPE);
    let tiles = |item: usize| {
        let (stripe, group) = (item / groups, item % groups);
        let end = ((stripe + 1) * STRIPE).min(m);
        for first in (stripe * STRIPE..end).step_by(X_ROWS) {
            let n = X_ROWS.min(end - first);
            let mut sums = [[0f32; ROWS]; X_ROWS];
            product(group, first, n, &mut sums);
            for (i, sums) in sums[..n].iter().enumerate() {
                let at = (first + i) * stride + group * ROWS;
                // SAFETY: tiles do not overlap.
                unsafe { shared.slice(at, ROWS) }.copy_from_slice(sums);
            }
        }
    };
    if m <= X_ROWS {
        parallel_shares(groups, tiles);
    } else {
        parallel_for(groups * stripes, tiles);
    }
    y.replace(out, m, rows, stride);
}

/// Where the codes and the parameters of block `b` begin in their group.
#[inline(always)]
const fn place(four_bits: bool, b: usize) -> (usize, usize) {
    if four_bits {
        (b * 320, b * 320 + 256)
    } else {
        (b / 2 * 1088 + b % 2 * 512, b / 2 * 1088 + 1024 + b % 2 * 32)
    }
}

/// Spreads one block over its lane.
fn pack_block(
    dtype: WeightType,
    block: &[u8],
    row: usize,
    group: &mut [u8],
    codes: usize,
    parameters: usize,
) {
    let scale = [block[0], block[1]];
    group[parameters + 2 * row..][..2].copy_from_slice(&scale);
    if dtype == WeightType::Q8_0 {
        for (k, &byte) in block[2..].iter().enumerate() {
            group[codes + k / 4 * 64 + row * 4 + k % 4] = byte.wrapping_add(128);
        }
        return;
    }
    // Q4_0 is d·(code − 8): the minimum −8d is exact in f16.
    let (min, nibbles) = match dtype {
        WeightType::Q4_1 => ([block[2], block[3]], &block[4..]),
        _ => (f16::from_f32(f16::from_le_bytes(scale).to_f32() * -8.0).to_le_bytes(), &block[2..]),
    };
    group[parameters + 2 * (ROWS + row)..][..2].copy_from_slice(&min);
    for k in 0..BLOCK {
        // ggml keeps columns 0–15 in the low and 16–31 in the high halves.
        let code = if k < 16 { nibbles[k] & 15 } else { nibbles[k - 16] >> 4 };
        let shift = if k % 8 < 4 { 0 } else { 4 };
        group[codes + k / 8 * 64 + row * 4 + k % 4] |= code << shift;
    }
}

/// Rows of x in 8 bits.
struct Quantized {
    /// `[rows][blocks][32]`.
    codes: Vec<i8>,
    /// Scale, and scale times the sum of the codes, of each block.
    scales: Vec<[f32; 2]>,
}

impl Quantized {
    fn new(x: &CpuBuffer, blocks: usize) -> Self {
        let rows = x.rows();
        let mut codes = vec![0i8; rows * blocks * BLOCK];
        let mut scales = vec![[0f32; 2]; rows * blocks];
        let shared = (Shared::new(&mut codes), Shared::new(&mut scales));
        parallel_for(rows.div_ceil(X_ROWS), |part| {
            for row in part * X_ROWS..((part + 1) * X_ROWS).min(rows) {
                // SAFETY: rows do not overlap; AVX-512 is there, see `matmul`.
                unsafe {
                    let codes = shared.0.slice(row * blocks * BLOCK, blocks * BLOCK);
                    let scales = shared.1.slice(row * blocks, blocks);
                    quantize(&x.as_slice()[row * x.stride()..][..blocks * BLOCK], codes, scales);
                }
            }
        });
        Self { codes, scales }
    }
}

/// Rounds one row to 8 bits in blocks of 32: scale = max|x| / 127. That of a block with NaN
/// or an infinity is NaN: 8 bits would make a number of it.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantize(x: &[f32], codes: &mut [i8], scales: &mut [[f32; 2]]) {
    let blocks = x.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK)).zip(scales);
    for ((x, codes), scale) in blocks {
        // SAFETY: a chunk has two vectors of floats, two of sixteen bytes.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
            let max = largest(_mm512_max_epu32(magnitude(a), magnitude(b)));
            let inverse = _mm512_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
            let qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
            let qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(qa));
            _mm_storeu_si128(codes.as_mut_ptr().add(16).cast(), _mm512_cvtsepi32_epi8(qb));
            let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb)) as f32;
            *scale = [max / 127.0, max / 127.0 * sum];
        }
    }
}

/// The bits of |x|, which as integers are in the order of the numbers; NaN comes last.
///
/// # Safety
/// The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn magnitude(x: __m512) -> __m512i {
    _mm512_castps_si512(_mm512_abs_ps(x))
}

/// The largest of sixteen magnitudes; NaN if that is not finite.
///
/// # Safety
/// The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn largest(magnitudes: __m512i) -> f32 {
    let largest = f32::from_bits(_mm512_reduce_max_epu32(magnitudes));
    if largest.is_finite() { largest } else { f32::NAN }
}

/// Sixteen rows of weights against some rows of x.
struct Tile<'a> {
    bytes: &'a [u8],
    x: &'a Quantized,
    /// First row of x.
    first: usize,
    blocks: usize,
}

impl Tile<'_> {
    /// The products of up to `X_ROWS` rows of x; how many there are changes no bit of any.
    ///
    /// # Safety
    /// As [`product`](Self::product).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn few<const FOUR: bool>(&self, n: usize, sums: &mut Sums) {
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => self.product::<FOUR, 1, true>(sums),
                2 => self.product::<FOUR, 2, true>(sums),
                3 => self.product::<FOUR, 3, true>(sums),
                4 => self.product::<FOUR, 4, true>(sums),
                5 => self.product::<FOUR, 5, true>(sums),
                6 => self.product::<FOUR, 6, true>(sums),
                7 => self.product::<FOUR, 7, true>(sums),
                _ => self.product::<FOUR, X_ROWS, true>(sums),
            }
        }
    }

    /// The products of `M` rows of x; `ASKS` says whether the weights come from memory, and so are
    /// asked for ahead.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI, F16C and FMA; x has `M`
    /// rows from `first` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn product<const FOUR: bool, const M: usize, const ASKS: bool>(&self, sums: &mut Sums) {
        let row = self.blocks * BLOCK;
        let end = if FOUR { self.blocks * 320 } else { self.blocks.div_ceil(2) * 1088 };
        assert!(self.bytes.len() >= end);
        assert!(self.x.codes.len() >= (self.first + M) * row);
        assert!(self.x.scales.len() >= (self.first + M) * self.blocks);
        // SAFETY: the blocks lie within the slices whose lengths were checked.
        unsafe {
            let x = self.x.codes.as_ptr().add(self.first * row);
            let scales = self.x.scales.as_ptr().add(self.first * self.blocks);
            let nibble = _mm512_set1_epi8(15);
            let mut acc = [_mm512_setzero_ps(); M];
            for b in 0..self.blocks {
                let (codes, parameters) = place(FOUR, b);
                let codes = self.bytes.as_ptr().add(codes);
                let parameters = self.bytes.as_ptr().add(parameters);
                if ASKS {
                    // A few rows are as fast as memory, if memory is asked early enough.
                    // A prefetch past the end is no access.
                    for line in 0..if FOUR { 5 } else { 9 } {
                        let ahead = codes.wrapping_add(PREFETCH + 64 * line);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                }
                let d = _mm512_cvtph_ps(_mm256_loadu_si256(parameters.cast()));
                // What a block adds for each unit of dx·Σ xq.
                let offset = if FOUR {
                    _mm512_cvtph_ps(_mm256_loadu_si256(parameters.add(32).cast()))
                } else {
                    _mm512_mul_ps(d, _mm512_set1_ps(-128.0))
                };
                let mut w = [_mm512_setzero_si512(); 8];
                if FOUR {
                    for c in 0..4 {
                        let both = _mm512_loadu_si512(codes.add(64 * c).cast());
                        w[2 * c] = _mm512_and_si512(both, nibble);
                        w[2 * c + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
                    }
                } else {
                    for (c, w) in w.iter_mut().enumerate() {
                        *w = _mm512_loadu_si512(codes.add(64 * c).cast());
                    }
                }
                for i in 0..M {
                    let xq = x.add(i * row + b * BLOCK).cast::<i32>();
                    let mut sum = _mm512_setzero_si512();
                    for (j, w) in w.iter().enumerate() {
                        let four = _mm512_set1_epi32(xq.add(j).read_unaligned());
                        sum = _mm512_dpbusd_epi32(sum, *w, four);
                    }
                    let [dx, dx_sum] = *scales.add(i * self.blocks + b);
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(dx));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, acc[i]);
                    acc[i] = _mm512_fmadd_ps(offset, _mm512_set1_ps(dx_sum), acc[i]);
                }
            }
            for i in 0..M {
                _mm512_storeu_ps(sums[i].as_mut_ptr(), acc[i]);
            }
        }
    }
}
