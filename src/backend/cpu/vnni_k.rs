//! Matrix products in superblocks of 256 columns, Q4_K and Q6_K, with AVX-512 VNNI.
//!
//! As in [`super::vnni`], sixteen rows are interleaved, and nothing is kept twice. For each
//! superblock:
//!
//! ```text
//! both  codes: 32 × 64 bytes; byte (row, j) of chunk c = column 8c + j (low), 8c + 4 + j (high)
//! Q4_K  scales: 8 × u8 × 16 rows; minima: likewise; d: f16 × 16 rows; dmin: f16 × 16 rows
//! Q6_K  upper two bits: 16 × 64 bytes; byte (row, j) of chunk c = columns 16c + 4p + j at bit 2p
//!       scales: 16 × i8 × 16 rows; d: f16 × 16 rows; 32 bytes of nothing
//! ```
//!
//! That is 4.6 and 6.6 bits a weight, what the file has. Activations are rounded to 8 bits
//! in blocks of 256, as llama.cpp does (Q8_K), and sums are added up in the order of
//! candle's products, which have the same bits (a test says so).

// Register blocks are written by index.
#![allow(clippy::needless_range_loop)]

use super::pool::{Shared, parallel_for};
use super::tensor::CpuBuffer;
use super::vnni::{PREFETCH, ROWS, Sums, X_ROWS, by_tiles, largest, magnitude};
use crate::codec::WeightType;
use crate::error::{Error, Result};
use core::arch::x86_64::*;
use half::f16;
use memmap2::MmapMut;

/// Columns of a superblock.
const BLOCK: usize = 256;
/// Columns that share a sum of activations.
const SUM: usize = 16;
/// Bytes of the lower four bits of sixteen rows.
const CODES: usize = 32 * 64;
/// Bytes of the upper two bits.
const UPPER: usize = 16 * 64;

/// Whether this processor and type have this product.
pub(super) fn supports(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::Q4K | WeightType::Q6K)
        && super::Level::Avx512.available()
        && is_x86_feature_detected!("avx512vnni")
}

/// A weight matrix `[rows, cols]`, interleaved.
pub(super) struct PackedSuperblocks {
    rows: usize,
    blocks: usize,
    six_bits: bool,
    /// Row group by row group, superblock by superblock.
    bytes: MmapMut,
}

impl PackedSuperblocks {
    /// Interleaves superblocks of a [supported](supports) type.
    pub(super) fn new(dtype: WeightType, rows: usize, cols: usize, blocks: &[u8]) -> Result<Self> {
        let six_bits = dtype == WeightType::Q6K;
        let (n, size, groups) = (cols / BLOCK, dtype.block_bytes(), rows.div_ceil(ROWS));
        let length = groups * n * block_bytes(six_bits);
        let bytes = MmapMut::map_anon(length.max(1));
        let bytes = bytes.map_err(|e| Error::io("memory for weights", e))?;
        let mut packed = Self { rows, blocks: n, six_bits, bytes };
        // Fewer address translations; a kernel that cannot is no worse off.
        #[cfg(target_os = "linux")]
        let _ = packed.bytes.advise(memmap2::Advice::HugePage);
        let stride = n * block_bytes(six_bits);
        let shared = Shared::new(&mut packed.bytes[..]);
        parallel_for(groups, |group| {
            // SAFETY: groups do not overlap.
            let to = unsafe { shared.slice(group * stride, stride) };
            for row in 0..ROWS.min(rows - group * ROWS) {
                let from = &blocks[(group * ROWS + row) * n * size..][..n * size];
                let to = to.chunks_exact_mut(block_bytes(six_bits));
                for (from, to) in from.chunks_exact(size).zip(to) {
                    if six_bits { pack6(from, row, to) } else { pack4(from, row, to) }
                }
            }
        });
        Ok(packed)
    }

    /// Bytes kept resident.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes of a group of rows.
    fn group(&self, group: usize) -> &[u8] {
        let size = self.blocks * block_bytes(self.six_bits);
        &self.bytes[group * size..][..size]
    }

    /// One row as f32.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let lane = row % ROWS;
        let blocks = self.group(row / ROWS).chunks_exact(block_bytes(self.six_bits));
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
            let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
            for (k, x) in out.iter_mut().enumerate() {
                let byte = bytes[k / 8 * 64 + lane * 4 + k % 4];
                let low = if k % 8 < 4 { byte & 15 } else { byte >> 4 };
                *x = if self.six_bits {
                    let upper = bytes[CODES + k / 16 * 64 + lane * 4 + k % 4];
                    let code = low | (upper >> (k % 16 / 4 * 2) & 3) << 4;
                    let scale = bytes[CODES + UPPER + k / 16 * ROWS + lane] as i8;
                    half(CODES + UPPER + 256 + 2 * lane)
                        * f32::from(scale)
                        * (f32::from(code) - 32.0)
                } else {
                    let at = CODES + k / 32 * ROWS + lane;
                    let (scale, min) = (f32::from(bytes[at]), f32::from(bytes[at + 128]));
                    half(CODES + 256 + 2 * lane) * scale * f32::from(low)
                        - half(CODES + 288 + 2 * lane) * min
                };
            }
        }
    }

    /// `y = x · selfᵀ`.
    pub(super) fn matmul(&self, x: &CpuBuffer, y: &mut CpuBuffer) {
        let quantized = Quantized::new(x, self.blocks);
        by_tiles(self.rows, x.rows(), y, |group, first, n, sums| {
            let tile = Tile { bytes: self.group(group), x: &quantized, first };
            // SAFETY: a `PackedSuperblocks` exists only where `supports` said so.
            unsafe {
                match (self.six_bits, n) {
                    (false, X_ROWS) => tile.product4::<X_ROWS>(sums),
                    (true, X_ROWS) => tile.product6::<X_ROWS>(sums),
                    (six_bits, _) => tile.rest(six_bits, n, sums),
                }
            }
        });
    }
}

/// Bytes of a superblock of sixteen rows.
const fn block_bytes(six_bits: bool) -> usize {
    if six_bits { CODES + UPPER + 256 + 64 } else { CODES + 256 + 64 }
}

/// Spreads a superblock of Q4_K over its lane.
fn pack4(block: &[u8], row: usize, to: &mut [u8]) {
    let (head, codes) = block.split_at(16);
    let scales = &head[4..];
    for i in 0..8 {
        // Six bits each, of which the last four scales' upper two lie with the first four.
        let (scale, min) = if i < 4 {
            (scales[i] & 63, scales[i + 4] & 63)
        } else {
            let (low, scale, min) = (scales[i + 4], scales[i - 4] >> 6, scales[i] >> 6);
            (low & 15 | scale << 4, low >> 4 | min << 4)
        };
        to[CODES + i * ROWS + row] = scale;
        to[CODES + 128 + i * ROWS + row] = min;
    }
    to[CODES + 256 + 2 * row..][..2].copy_from_slice(&head[..2]);
    to[CODES + 288 + 2 * row..][..2].copy_from_slice(&head[2..4]);
    for k in 0..BLOCK {
        // Runs of 64 columns: the first 32 in the low halves, the others in the high ones.
        let byte = codes[k / 64 * 32 + k % 32];
        set_low(to, row, k, if k % 64 < 32 { byte & 15 } else { byte >> 4 });
    }
}

/// Spreads a superblock of Q6_K over its lane.
fn pack6(block: &[u8], row: usize, to: &mut [u8]) {
    let (low, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    for (i, &scale) in rest[..16].iter().enumerate() {
        to[CODES + UPPER + i * ROWS + row] = scale;
    }
    to[CODES + UPPER + 256 + 2 * row..][..2].copy_from_slice(&rest[16..18]);
    for k in 0..BLOCK {
        // Runs of 128 columns: four quarters in the halves of two rows of 32 bytes.
        let (run, quarter) = (k / 128, k % 128 / 32);
        let byte = low[run * 64 + quarter % 2 * 32 + k % 32];
        set_low(to, row, k, if quarter < 2 { byte & 15 } else { byte >> 4 });
        let bits = upper[run * 32 + k % 32] >> (2 * quarter) & 3;
        to[CODES + k / 16 * 64 + row * 4 + k % 4] |= bits << (k % 16 / 4 * 2);
    }
}

/// Writes the lower four bits of column `k`, which were 0.
fn set_low(to: &mut [u8], row: usize, k: usize, code: u8) {
    to[k / 8 * 64 + row * 4 + k % 4] |= code << if k % 8 < 4 { 0 } else { 4 };
}

/// Rows of x in 8 bits.
struct Quantized {
    /// `[rows][blocks][256]`.
    codes: Vec<i8>,
    parameters: Vec<Parameters>,
    blocks: usize,
}

/// What a superblock of x has beside its codes.
#[derive(Clone, Copy, Default)]
struct Parameters {
    scale: f32,
    /// Sums of sixteen codes each.
    sums: [i32; BLOCK / SUM],
}

impl Quantized {
    fn new(x: &CpuBuffer, blocks: usize) -> Self {
        let (rows, cols) = (x.rows(), blocks * BLOCK);
        let mut codes = vec![0i8; rows * cols];
        let mut parameters = vec![Parameters::default(); rows * blocks];
        let shared = (Shared::new(&mut codes), Shared::new(&mut parameters));
        parallel_for(rows.div_ceil(X_ROWS), |part| {
            for row in part * X_ROWS..((part + 1) * X_ROWS).min(rows) {
                // SAFETY: rows do not overlap; AVX-512 is there, see `matmul`.
                unsafe {
                    let codes = shared.0.slice(row * cols, cols);
                    let parameters = shared.1.slice(row * blocks, blocks);
                    quantize(&x.as_slice()[row * x.stride()..][..cols], codes, parameters);
                }
            }
        });
        Self { codes, parameters, blocks }
    }
}

/// Rounds one row to 8 bits in blocks of 256, so that the number furthest from 0 becomes
/// −127; halves are rounded away from 0. A block with NaN or an infinity has the scale NaN.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantize(x: &[f32], codes: &mut [i8], parameters: &mut [Parameters]) {
    let blocks = x.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK)).zip(parameters);
    for ((x, codes), parameters) in blocks {
        // SAFETY: a block has sixteen vectors of floats, and of sixteen bytes.
        unsafe {
            let load = |i: usize| _mm512_loadu_ps(x.as_ptr().add(16 * i));
            let mut most = magnitude(load(0));
            for i in 1..16 {
                most = _mm512_max_epu32(most, magnitude(load(i)));
            }
            let most = largest(most);
            *parameters = Parameters::default();
            if most.is_nan() {
                parameters.scale = most;
            }
            // The first of them, if there is one on both sides of 0.
            let Some(&furthest) = x.iter().find(|x| x.abs() == most && most != 0.0) else {
                codes.fill(0);
                continue;
            };
            let inverse = -127.0 / furthest;
            for i in 0..16 {
                let v = _mm512_mul_ps(load(i), _mm512_set1_ps(inverse));
                // The largest number below one half, with the sign of v: what is cut off
                // then is rounded.
                let sign = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(i32::MIN));
                let half = _mm512_castps_si512(_mm512_set1_ps(0.5f32.next_down()));
                let half = _mm512_castsi512_ps(_mm512_or_si512(half, sign));
                let rounded = _mm512_cvttps_epi32(_mm512_add_ps(v, half));
                let to = codes.as_mut_ptr().add(16 * i);
                _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(rounded));
                parameters.sums[i] = _mm512_reduce_add_epi32(rounded);
            }
            parameters.scale = 1.0 / inverse;
        }
    }
}

/// Sixteen rows of weights against some rows of x.
struct Tile<'a> {
    bytes: &'a [u8],
    x: &'a Quantized,
    /// First row of x.
    first: usize,
}

impl Tile<'_> {
    /// Fewer than `X_ROWS` rows, one at a time.
    ///
    /// # Safety
    /// As [`product4`](Self::product4).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn rest(&self, six_bits: bool, n: usize, sums: &mut Sums) {
        for (i, sums) in sums[..n].iter_mut().enumerate() {
            let tile = Tile { first: self.first + i, ..*self };
            let mut one = [[0f32; ROWS]; X_ROWS];
            // SAFETY: the caller's promise.
            unsafe {
                if six_bits { tile.product6::<1>(&mut one) } else { tile.product4::<1>(&mut one) }
            }
            *sums = one[0];
        }
    }

    /// Codes and parameters of `M` rows of x, and how many superblocks they have.
    fn checked<const M: usize>(&self, six_bits: bool) -> (&[i8], &[Parameters], usize) {
        let n = self.x.blocks;
        assert!(self.bytes.len() >= n * block_bytes(six_bits));
        let codes = &self.x.codes[self.first * n * BLOCK..][..M * n * BLOCK];
        (codes, &self.x.parameters[self.first * n..][..M * n], n)
    }

    /// The products of `M` rows of x with Q4_K.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI, F16C and FMA.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn product4<const M: usize>(&self, sums: &mut Sums) {
        let (x, parameters, n) = self.checked::<M>(false);
        let nibble = _mm512_set1_epi8(15);
        let mut acc = [_mm512_setzero_ps(); M];
        // SAFETY: `checked` has seen that superblocks and rows of x lie within their slices.
        unsafe {
            for b in 0..n {
                let block = self.bytes.as_ptr().add(b * block_bytes(false));
                let d = _mm512_cvtph_ps(_mm256_loadu_si256(block.add(CODES + 256).cast()));
                let dmin = _mm512_cvtph_ps(_mm256_loadu_si256(block.add(CODES + 288).cast()));
                for sub in 0..8 {
                    let codes = block.add(sub * 256);
                    if M == 1 {
                        prefetch(codes, if sub < 5 { 5 } else { 4 });
                    }
                    let byte = |at: usize| {
                        let bytes = _mm_loadu_si128(block.add(CODES + at + sub * ROWS).cast());
                        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
                    };
                    let scale = _mm512_mul_ps(d, byte(0));
                    let min = _mm512_mul_ps(dmin, byte(128));
                    let mut w = [_mm512_setzero_si512(); 8];
                    for c in 0..4 {
                        let both = _mm512_loadu_si512(codes.add(64 * c).cast());
                        w[2 * c] = _mm512_and_si512(both, nibble);
                        w[2 * c + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
                    }
                    for i in 0..M {
                        let four = x.as_ptr().add((i * n + b) * BLOCK + sub * 32).cast::<i32>();
                        let mut sum = _mm512_setzero_si512();
                        for (j, w) in w.iter().enumerate() {
                            let four = _mm512_set1_epi32(four.add(j).read_unaligned());
                            sum = _mm512_dpbusd_epi32(sum, *w, four);
                        }
                        let p = parameters.get_unchecked(i * n + b);
                        let x_sum = (p.sums[2 * sub] + p.sums[2 * sub + 1]) as f32;
                        let factor = _mm512_mul_ps(scale, _mm512_set1_ps(p.scale));
                        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, acc[i]);
                        acc[i] = _mm512_fnmadd_ps(min, _mm512_set1_ps(p.scale * x_sum), acc[i]);
                    }
                }
            }
            for i in 0..M {
                _mm512_storeu_ps(sums[i].as_mut_ptr(), acc[i]);
            }
        }
    }

    /// The products of `M` rows of x with Q6_K.
    ///
    /// # Safety
    /// As [`product4`](Self::product4).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,f16c,fma")]
    unsafe fn product6<const M: usize>(&self, sums: &mut Sums) {
        let (x, parameters, n) = self.checked::<M>(true);
        let (nibble, pair) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        let mut acc = [_mm512_setzero_ps(); M];
        // SAFETY: `checked` has seen that superblocks and rows of x lie within their slices.
        unsafe {
            for b in 0..n {
                let block = self.bytes.as_ptr().add(b * block_bytes(true));
                let scales = block.add(CODES + UPPER);
                let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(256).cast()));
                for sub in 0..16 {
                    let codes = block.add(sub * 128);
                    if M == 1 {
                        prefetch(codes, 2);
                        prefetch(block.add(CODES + sub * 64), if sub < 5 { 2 } else { 1 });
                    }
                    let a = _mm512_loadu_si512(codes.cast());
                    let c = _mm512_loadu_si512(codes.add(64).cast());
                    let u = _mm512_loadu_si512(block.add(CODES + sub * 64).cast());
                    // Lower four bits, and the upper two moved to bits 4 and 5.
                    let join = |low, upper| {
                        _mm512_or_si512(
                            _mm512_and_si512(low, nibble),
                            _mm512_and_si512(upper, pair),
                        )
                    };
                    let w = [
                        join(a, _mm512_slli_epi16::<4>(u)),
                        join(_mm512_srli_epi16::<4>(a), _mm512_slli_epi16::<2>(u)),
                        join(c, u),
                        join(_mm512_srli_epi16::<4>(c), _mm512_srli_epi16::<2>(u)),
                    ];
                    let bytes = _mm_loadu_si128(scales.add(sub * ROWS).cast());
                    let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
                    for i in 0..M {
                        let p = parameters.get_unchecked(i * n + b);
                        let four = x.as_ptr().add((i * n + b) * BLOCK + sub * 16).cast::<i32>();
                        // A code is 32 more than what it stands for.
                        let mut sum = _mm512_set1_epi32(-32 * p.sums[sub]);
                        for (j, w) in w.iter().enumerate() {
                            let four = _mm512_set1_epi32(four.add(j).read_unaligned());
                            sum = _mm512_dpbusd_epi32(sum, *w, four);
                        }
                        let factor = _mm512_mul_ps(scale, _mm512_set1_ps(p.scale));
                        acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, acc[i]);
                    }
                }
            }
            for i in 0..M {
                _mm512_storeu_ps(sums[i].as_mut_ptr(), acc[i]);
            }
        }
    }
}

/// Asks for lines that will be read soon. Past the end it is no access.
#[inline(always)]
fn prefetch(at: *const u8, lines: usize) {
    for line in 0..lines {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH + 64 * line).cast()) };
    }
}
