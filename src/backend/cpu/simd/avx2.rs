//! Eight lanes with AVX2, FMA and F16C.

use super::vector::{FP8_REBIAS, Kernel, Simd};
use core::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Runs a kernel compiled for AVX2.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

// SAFETY of every block: an `Avx2` exists only inside `run`, so the processor
// has the instructions; memory functions touch just the elements that the trait
// names, which its callers guarantee to be valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const FRAGMENT_BLOCK: usize = 1;
    const TILE_COLUMNS: usize = 2;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn select_le(self, a: __m256, b: __m256, t: __m256, f: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(f, t, _mm256_cmp_ps::<_CMP_LE_OQ>(a, b)) }
    }
    #[inline(always)]
    fn any_gt(self, a: __m256, b: __m256) -> bool {
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b)) != 0 }
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m256, n: __m256) -> __m256 {
        // Two factors, since 2^-126 · 2^1 and 2^128 are at the border.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let rest = _mm256_sub_epi32(n, half);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias));
            _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
        }
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn round_f16(self, x: __m256) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    fn horizontal_sum(self, x: __m256) -> f32 {
        self.horizontal_sum4([x; 4])[0]
    }
    #[inline(always)]
    fn horizontal_max(self, x: __m256) -> f32 {
        unsafe {
            let y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let y = _mm_max_ps(y, _mm_movehl_ps(y, y));
            _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)))
        }
    }
    #[inline(always)]
    fn sum_across_blocks(self, x: __m256) -> __m256 {
        unsafe { _mm256_add_ps(x, _mm256_permute2f128_ps::<1>(x, x)) }
    }
    #[inline(always)]
    fn horizontal_sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        unsafe {
            let x = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            core::mem::transmute::<__m128, [f32; 4]>(sum)
        }
    }

    #[inline(always)]
    fn shift_right(self, x: __m256i, n: i32) -> __m256i {
        unsafe { _mm256_srl_epi32(x, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn shift_left(self, x: __m256i, n: i32) -> __m256i {
        unsafe { _mm256_sll_epi32(x, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn and(self, x: __m256i, mask: u32) -> __m256i {
        unsafe { _mm256_and_si256(x, _mm256_set1_epi32(mask as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn to_float(self, x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn masked(self, x: __m256i, mask: u32) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(mask as i32))) }
    }
    #[inline(always)]
    fn code2_low(self, x: __m256i) -> __m256 {
        // The in-lane permutation looks at two bits of its control.
        unsafe { _mm256_permutevar_ps(_mm256_setr_ps(0., 1., 2., 3., 0., 1., 2., 3.), x) }
    }
    #[inline(always)]
    fn code2_high(self, x: __m256i) -> __m256 {
        unsafe { self.code2_low(_mm256_srli_epi32::<2>(x)) }
    }
    #[inline(always)]
    fn code4(self, x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(15))) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load4(self, p: *const f32) -> __m256 {
        unsafe { _mm256_broadcast_ps(&*p.cast::<__m128>()) }
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> __m256 {
        unsafe {
            let x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(x, _mm256_set1_epi32(0x80)));
            let rest = _mm256_slli_epi32::<20>(_mm256_and_si256(x, _mm256_set1_epi32(0x7f)));
            let bits = _mm256_castsi256_ps(_mm256_or_si256(sign, rest));
            _mm256_mul_ps(bits, _mm256_set1_ps(FP8_REBIAS))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_even_odd(self, p: *const u8) -> (__m256, __m256) {
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let even = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
            let odd = _mm256_srli_epi32::<16>(x);
            // [even 0–3, odd 0–3 | even 4–7, odd 4–7], then the middle swapped.
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(even, odd));
            (
                _mm256_cvtph_ps(_mm256_castsi256_si128(both)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_blocks(self, p: *mut f32, stride: usize, x: __m256) {
        unsafe {
            _mm_storeu_ps(p, _mm256_castps256_ps128(x));
            _mm_storeu_ps(p.add(stride), _mm256_extractf128_ps::<1>(x));
        }
    }
    #[inline(always)]
    unsafe fn store_rows(
        self,
        acc: &[__m256; 4],
        first: usize,
        [g, g8]: [f32; 2],
        even: *mut f32,
        odd: *mut f32,
    ) {
        unsafe {
            let pairs = _mm256_hadd_ps(acc[0], acc[1]);
            // Each 128-bit half: [row, row + 8, …], the halves being even and odd.
            let units = _mm256_setr_ps(g, g8, g, g8, g, g8, g, g8);
            let sums = _mm256_mul_ps(_mm256_hadd_ps(pairs, pairs), units);
            for (half, out) in
                [(_mm256_castps256_ps128(sums), even), (_mm256_extractf128_ps::<1>(sums), odd)]
            {
                _mm_store_ss(out.add(first), half);
                _mm_store_ss(out.add(first + 4), _mm_movehdup_ps(half));
            }
        }
    }
}
