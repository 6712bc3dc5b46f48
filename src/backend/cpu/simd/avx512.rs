//! Sixteen lanes with AVX-512 F, BW, DQ and VL.

use super::vector::{FP8_REBIAS, Kernel, Simd};
use core::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Runs a kernel compiled for AVX-512.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

// SAFETY of every block: an `Avx512` exists only inside `run`, so the processor
// has the instructions; memory functions touch just the elements that the trait
// names, which its callers guarantee to be valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const FRAGMENT_BLOCK: usize = 2;
    const TILE_COLUMNS: usize = 6;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn select_le(self, a: __m512, b: __m512, t: __m512, f: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b), f, t) }
    }
    #[inline(always)]
    fn any_gt(self, a: __m512, b: __m512) -> bool {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0 }
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<0>(x) }
    }
    #[inline(always)]
    fn round_f16(self, x: __m512) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    fn horizontal_sum(self, x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    fn horizontal_max(self, x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    fn sum_across_blocks(self, x: __m512) -> __m512 {
        unsafe {
            let y = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
            _mm512_add_ps(y, _mm512_shuffle_f32x4::<0b10_11_00_01>(y, y))
        }
    }
    #[inline(always)]
    fn horizontal_sum4(self, x: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let x = sum_blocks(x);
            let y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let sum = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps::<1>(y));
            core::mem::transmute::<__m128, [f32; 4]>(sum)
        }
    }

    #[inline(always)]
    fn shift_right(self, x: __m512i, n: i32) -> __m512i {
        unsafe { _mm512_srl_epi32(x, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn shift_left(self, x: __m512i, n: i32) -> __m512i {
        unsafe { _mm512_sll_epi32(x, _mm_cvtsi32_si128(n)) }
    }
    #[inline(always)]
    fn and(self, x: __m512i, mask: u32) -> __m512i {
        unsafe { _mm512_and_si512(x, _mm512_set1_epi32(mask as i32)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn masked(self, x: __m512i, mask: u32) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(mask as i32))) }
    }
    #[inline(always)]
    fn code2_low(self, x: __m512i) -> __m512 {
        // The in-lane permutation looks at two bits of its control.
        unsafe { _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_setr_ps(0., 1., 2., 3.)), x) }
    }
    #[inline(always)]
    fn code2_high(self, x: __m512i) -> __m512 {
        // The full permutation looks at four: its table ignores the lower two.
        unsafe {
            let table =
                _mm512_setr_ps(0., 0., 0., 0., 1., 1., 1., 1., 2., 2., 2., 2., 3., 3., 3., 3.);
            _mm512_permutexvar_ps(x, table)
        }
    }
    #[inline(always)]
    fn code4(self, x: __m512i) -> __m512 {
        unsafe {
            let table = _mm512_setr_ps(
                0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
            );
            _mm512_permutexvar_ps(x, table)
        }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load4(self, p: *const f32) -> __m512 {
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> __m512 {
        unsafe {
            let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(x, _mm512_set1_epi32(0x80)));
            let rest = _mm512_slli_epi32::<20>(_mm512_and_si512(x, _mm512_set1_epi32(0x7f)));
            let bits = _mm512_castsi512_ps(_mm512_or_si512(sign, rest));
            _mm512_mul_ps(bits, _mm512_set1_ps(FP8_REBIAS))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_even_odd(self, p: *const u8) -> (__m512, __m512) {
        unsafe {
            // The even halves below, the odd ones above.
            let i = _mm512_set_epi16(
                31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24, 22, 20,
                18, 16, 14, 12, 10, 8, 6, 4, 2, 0,
            );
            let x = _mm512_permutexvar_epi16(i, _mm512_loadu_si512(p.cast()));
            let odd = _mm512_extracti64x4_epi64::<1>(x);
            (_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn store_blocks(self, p: *mut f32, stride: usize, x: __m512) {
        unsafe {
            _mm_storeu_ps(p, _mm512_castps512_ps128(x));
            _mm_storeu_ps(p.add(stride), _mm512_extractf32x4_ps::<1>(x));
            _mm_storeu_ps(p.add(2 * stride), _mm512_extractf32x4_ps::<2>(x));
            _mm_storeu_ps(p.add(3 * stride), _mm512_extractf32x4_ps::<3>(x));
        }
    }
    #[inline(always)]
    unsafe fn store_rows(
        self,
        acc: &[__m512; 4],
        _first: usize,
        [g, g8]: [f32; 2],
        even: *mut f32,
        odd: *mut f32,
    ) {
        unsafe {
            // Lane 4k + j is row k of vector j: rows k, k + 8, k + 4, k + 12.
            let units = _mm512_setr_ps(g, g8, g, g8, g, g8, g, g8, g, g8, g, g8, g, g8, g, g8);
            let sums = _mm512_mul_ps(sum_blocks(*acc), units);
            let order = _mm512_setr_epi32(0, 8, 2, 10, 1, 9, 3, 11, 4, 12, 6, 14, 5, 13, 7, 15);
            let rows = _mm512_permutexvar_ps(order, sums);
            _mm256_storeu_ps(even, _mm512_castps512_ps256(rows));
            _mm256_storeu_ps(odd, _mm512_extractf32x8_ps::<1>(rows));
        }
    }
}

/// Lane `4k + j` of the result is the sum of block `k` of vector `j`.
#[inline(always)]
unsafe fn sum_blocks([a, b, c, d]: [__m512; 4]) -> __m512 {
    // SAFETY: called with the features present only.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        _mm512_add_ps(
            _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
        )
    }
}
