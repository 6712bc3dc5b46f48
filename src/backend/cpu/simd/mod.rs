//! One vector vocabulary, three instruction sets.
//!
//! Kernels are written once over [`Simd`] and run through [`dispatch`], which
//! compiles them anew under each instruction set's target features. A value of
//! an implementing type is the proof that the processor has those features, so
//! the arithmetic is safe to call; only memory access is `unsafe`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::error::{Error, Result};
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that kernels are compiled for, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No more than the target's baseline.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// Every level, whether or not this processor has it.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// Whether this processor runs the level.
    pub fn available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The highest level of this processor.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            Level::ALL.into_iter().rev().find(|l| l.available()).unwrap_or(Level::Portable)
        })
    }

    /// The name used on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let level = Level::ALL.into_iter().find(|l| l.name() == s);
        match level {
            Some(l) if l.available() => Ok(l),
            Some(_) => Err(Error::config("simd", format!("this processor has no {s}"))),
            None => Err(Error::config("simd", format!("\"{s}\" is not portable, avx2 or avx512"))),
        }
    }
}

/// Whether this thread multiplies subnormal numbers at `level` exactly and as fast as
/// others. AMD's processors with AVX-512 do, while Intel's take a hundred cycles more;
/// and a host may have told the processor to take them for 0.
pub(crate) fn fast_subnormals(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::{asm, x86_64::__cpuid};
        static AMD: OnceLock<bool> = OnceLock::new();
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let amd = || {
            let vendor = __cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        };
        let mut control = 0u32;
        // SAFETY: SSE is part of the architecture; four bytes are written to `control`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack, preserves_flags)) }
        level == Level::Avx512 && control & DENORMALS_ARE_ZERO == 0 && *AMD.get_or_init(amd)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = level;
        false
    }
}

/// 2^120: moves e4m3's exponent bias (7) to f32's (127), subnormals included.
const FP8_REBIAS: f32 = f32::from_bits((120 + 127) << 23);

/// A computation that runs at any level.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// The computation; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs a kernel at `level`, which must be available (else the portable one).
#[inline]
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Out {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if level.available() => {
            // SAFETY: the features were just detected.
            unsafe { avx512::run(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if level.available() => {
            // SAFETY: the features were just detected.
            unsafe { avx2::run(kernel) }
        }
        _ => kernel.run(portable::Portable),
    }
}

/// Vectors of f32 and u32 with [`LANES`](Simd::LANES) lanes.
///
/// Memory functions read or write exactly the elements they name; the caller
/// guarantees that those are valid. No alignment is needed.
pub(crate) trait Simd: Copy {
    /// Lanes of one vector: 8 or 16.
    const LANES: usize;
    /// Vectors of a 32-word fragment that are processed together: as many as
    /// the register file holds for four query heads.
    const FRAGMENT_BLOCK: usize;
    /// Columns, in vectors, of the tile kernel's register block (rows: 4).
    const TILE_COLUMNS: usize;
    /// f32 lanes.
    type F: Copy;
    /// u32 lanes.
    type I: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a·b + c`, fused where the hardware does.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lane-wise `if a ≤ b { t } else { f }`.
    fn select_le(self, a: Self::F, b: Self::F, t: Self::F, f: Self::F) -> Self::F;
    /// Whether `a > b` in any lane.
    fn any_gt(self, a: Self::F, b: Self::F) -> bool;
    /// `2^n` times `x`, `n` integral and within the exponent's range.
    fn scale_by_power(self, x: Self::F, n: Self::F) -> Self::F;
    /// Rounds to the nearest integer.
    fn round(self, x: Self::F) -> Self::F;
    /// Rounds to the nearest f16.
    fn round_f16(self, x: Self::F) -> Self::F;
    fn horizontal_sum(self, x: Self::F) -> f32;
    fn horizontal_max(self, x: Self::F) -> f32;
    /// In each block of four lanes, the sums of the lanes with that place in
    /// their block.
    fn sum_across_blocks(self, x: Self::F) -> Self::F;
    /// The sums of four vectors.
    fn horizontal_sum4(self, x: [Self::F; 4]) -> [f32; 4];

    /// Logical shift right by fewer than 32 bits, a constant once inlined.
    fn shift_right(self, x: Self::I, n: i32) -> Self::I;
    /// Shift left, likewise.
    fn shift_left(self, x: Self::I, n: i32) -> Self::I;
    /// The bits that are set in `mask`.
    fn and(self, x: Self::I, mask: u32) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Integers below 2^24 as floats.
    fn to_float(self, x: Self::I) -> Self::F;
    /// The float whose bits are those of `x` that are set in `mask`.
    fn masked(self, x: Self::I, mask: u32) -> Self::F;
    /// Bits 0–1 as a float.
    fn code2_low(self, x: Self::I) -> Self::F;
    /// Bits 2–3 as a float.
    fn code2_high(self, x: Self::I) -> Self::F;
    /// Bits 0–3 as a float.
    fn code4(self, x: Self::I) -> Self::F;

    /// `LANES` floats.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// `LANES` floats.
    unsafe fn store(self, p: *mut f32, x: Self::F);
    /// Four floats, repeated over the vector.
    unsafe fn load4(self, p: *const f32) -> Self::F;
    /// `LANES` words.
    unsafe fn load_words(self, p: *const u8) -> Self::I;
    /// `LANES` f16.
    unsafe fn load_f16(self, p: *const u8) -> Self::F;
    /// `LANES` bf16.
    unsafe fn load_bf16(self, p: *const u8) -> Self::F;
    /// `LANES` finite e4m3 numbers.
    unsafe fn load_fp8(self, p: *const u8) -> Self::F;
    /// `2·LANES` f16: those with even and those with odd index.
    unsafe fn load_f16_even_odd(self, p: *const u8) -> (Self::F, Self::F);
    /// Writes each block of four lanes to `p`, `p + stride`, `p + 2·stride`, …
    unsafe fn store_blocks(self, p: *mut f32, stride: usize, x: Self::F);

    /// Sums each block of four lanes of a group of fragment accumulators and
    /// writes the sums of the fragment's rows: those with even index to `even`,
    /// those with odd index to `odd` (eight each).
    ///
    /// `acc[2·v]` holds rows `LANES/4·(first + v) ..` in `units[0]`, `acc[2·v + 1]` the
    /// rows eight further on in `units[1]`, for `v < FRAGMENT_BLOCK`.
    unsafe fn store_rows(
        self,
        acc: &[Self::F; 4],
        first: usize,
        units: [f32; 2],
        even: *mut f32,
        odd: *mut f32,
    );

    /// `2^x` to about 1 ulp; 0 below −126.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        // The minimax polynomial on |f| ≤ 1/2 that is 1 at 0: within 2.6e-9.
        const C: [f32; 7] = [
            1.559_468_7e-4,
            1.340_664_4e-3,
            9.617_693e-3,
            5.550_310_6e-2,
            2.402_265_3e-1,
            6.931_472_2e-1,
            1.0,
        ];
        let floor = self.splat(-126.0);
        let clamped = self.max(x, floor);
        let n = self.round(clamped);
        let f = self.sub(clamped, n);
        let mut y = self.splat(C[0]);
        for c in &C[1..] {
            y = self.fma(y, f, self.splat(*c));
        }
        self.select_le(floor, x, self.scale_by_power(y, n), self.splat(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    struct CheckAll;

    impl Kernel for CheckAll {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let lanes = S::LANES;
            let floats: Vec<f32> = (0..4 * lanes).map(|i| i as f32 * 0.37 - 5.0).collect();
            let mut out = [0f32; 64];
            // SAFETY: every buffer holds at least four vectors.
            unsafe {
                let f = floats.as_ptr();
                let (a, b) = (s.load(f), s.load(f.add(lanes)));
                s.store(out.as_mut_ptr(), s.fma(a, b, s.splat(1.0)));
                for i in 0..lanes {
                    let want = floats[i] * floats[lanes + i] + 1.0;
                    assert!((out[i] - want).abs() < 1e-5);
                }
                let quads: [S::F; 4] = std::array::from_fn(|i| s.load(f.add(i * lanes)));
                for (i, sum) in s.horizontal_sum4(quads).into_iter().enumerate() {
                    let want: f32 = floats[i * lanes..][..lanes].iter().sum();
                    assert!((sum - want).abs() < 1e-4);
                    assert!((s.horizontal_sum(quads[i]) - want).abs() < 1e-4);
                    assert_eq!(s.horizontal_max(quads[i]), floats[(i + 1) * lanes - 1]);
                }
                s.store(out.as_mut_ptr(), s.sum_across_blocks(a));
                for i in 0..lanes {
                    let want: f32 = (0..lanes / 4).map(|b| floats[4 * b + i % 4]).sum();
                    assert!((out[i] - want).abs() < 1e-5);
                }
                assert!(!s.any_gt(a, a) && s.any_gt(b, a));
                for i in 0..lanes {
                    let mut higher = floats[..lanes].to_vec();
                    higher[i] += 1.0;
                    assert!(s.any_gt(s.load(higher.as_ptr()), a) && !s.any_gt(a, a));
                    assert!(!s.any_gt(a, s.load(higher.as_ptr())));
                }
                s.store(out.as_mut_ptr(), s.load4(f.add(1)));
                (0..lanes).for_each(|i| assert_eq!(out[i], floats[1 + i % 4]));

                let words: Vec<u32> = (0..32).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
                let w = s.load_words(words.as_ptr().cast());
                let x = s.shift_right(w, 4);
                for (v, shift, mask) in [
                    (s.code2_low(x), 4, 3),
                    (s.code2_high(x), 6, 3),
                    (s.code4(x), 4, 15),
                    (s.code2_low(w), 0, 3),
                ] {
                    s.store(out.as_mut_ptr(), v);
                    (0..lanes)
                        .for_each(|i| assert_eq!(out[i], ((words[i] >> shift) & mask) as f32));
                }

                for (v, shift) in [(w, 0), (s.shift_right(w, 16), 16)] {
                    s.store(out.as_mut_ptr(), s.masked(v, 0x0500_0c00));
                    for i in 0..lanes {
                        assert_eq!(out[i].to_bits(), (words[i] >> shift) & 0x0500_0c00);
                    }
                }

                let both = s.or(s.and(w, 0x1f0), s.shift_left(s.and(w, 7), 12));
                s.store(out.as_mut_ptr(), s.to_float(both));
                for i in 0..lanes {
                    assert_eq!(out[i], ((words[i] & 0x1f0) | (words[i] & 7) << 12) as f32);
                }

                let halves: Vec<f16> =
                    (0..64).map(|i| f16::from_f32(i as f32 * 0.3 - 7.0)).collect();
                s.store(out.as_mut_ptr(), s.load_f16(halves.as_ptr().cast()));
                (0..lanes).for_each(|i| assert_eq!(out[i], halves[i].to_f32()));
                let (even, odd) = s.load_f16_even_odd(halves.as_ptr().cast());
                s.store(out.as_mut_ptr(), even);
                (0..lanes).for_each(|i| assert_eq!(out[i], halves[2 * i].to_f32()));
                s.store(out.as_mut_ptr(), odd);
                (0..lanes).for_each(|i| assert_eq!(out[i], halves[2 * i + 1].to_f32()));
                let brains: Vec<bf16> =
                    (0..64).map(|i| bf16::from_f32(i as f32 * 0.3 - 7.0)).collect();
                s.store(out.as_mut_ptr(), s.load_bf16(brains.as_ptr().cast()));
                (0..lanes).for_each(|i| assert_eq!(out[i], brains[i].to_f32()));
                for first in (0..256).step_by(lanes) {
                    let bytes: Vec<u8> = (first..first + lanes).map(|b| b as u8).collect();
                    s.store(out.as_mut_ptr(), s.load_fp8(bytes.as_ptr()));
                    for (i, &b) in bytes.iter().enumerate().filter(|(_, b)| *b & 0x7f != 0x7f) {
                        assert_eq!(out[i], crate::codec::float::fp8_to_f32(b), "{b:#x}");
                    }
                }

                let mut rows = vec![0f32; 7 * 64];
                s.store_blocks(rows.as_mut_ptr(), 7, a);
                (0..lanes).for_each(|i| assert_eq!(rows[i / 4 * 7 + i % 4], floats[i]));

                // A fragment of ones and row numbers: each row sums 4 lanes.
                let (mut even, mut odd) = ([0f32; 8], [0f32; 8]);
                let per = lanes / 4;
                for first in (0..8 / per).step_by(S::FRAGMENT_BLOCK) {
                    let acc: [S::F; 4] = std::array::from_fn(|j| {
                        let row0 = per * (first + j / 2) + 8 * (j % 2);
                        let lane: Vec<f32> =
                            (0..lanes).map(|l| (row0 + l / 4) as f32 + l as f32 % 4.0).collect();
                        s.load(lane.as_ptr())
                    });
                    s.store_rows(&acc, first, [2.0, 8.0], even.as_mut_ptr(), odd.as_mut_ptr());
                }
                for r in 0..16 {
                    let sum = if r % 2 == 0 { even[r / 2] } else { odd[r / 2] };
                    let unit = if r < 8 { 2.0 } else { 8.0 };
                    assert_eq!(sum, unit * (4.0 * r as f32 + 6.0));
                }

                for i in -1300..1279 {
                    let x = i as f32 * 0.1 - 0.003;
                    s.store(out.as_mut_ptr(), s.exp2(s.splat(x)));
                    let want = if x < -126.0 { 0.0 } else { f64::from(x).exp2() };
                    assert!((f64::from(out[0]) - want).abs() <= 3e-7 * want, "{x}: {}", out[0]);
                }
                s.store(out.as_mut_ptr(), s.exp2(s.splat(f32::NEG_INFINITY)));
                assert_eq!(out[0], 0.0);
            }
        }
    }

    #[test]
    fn every_level_computes_the_same_vocabulary() {
        for level in Level::ALL.into_iter().filter(|l| l.available()) {
            dispatch(level, CheckAll);
        }
    }

    #[test]
    fn unknown_levels_are_named() {
        let error = "sse9".parse::<Level>().unwrap_err().to_string();
        assert!(error.contains("sse9"), "{error}");
    }
}
