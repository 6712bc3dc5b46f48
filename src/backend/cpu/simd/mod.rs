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
mod level;
mod portable;
mod vector;

pub use level::Level;
pub(crate) use level::fast_subnormals;
pub(crate) use vector::{Kernel, Simd};

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
