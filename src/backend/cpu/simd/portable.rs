//! Eight lanes in plain Rust, for any processor.

use super::vector::Simd;
use crate::codec::float::fp8_to_f32;
use half::{bf16, f16};

const LANES: usize = 8;

/// The level that needs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [u32; LANES];

#[inline(always)]
fn each(f: impl FnMut(usize) -> f32) -> F {
    std::array::from_fn(f)
}

/// # Safety
/// `p` points to `2·(i + 1)` readable bytes.
#[inline(always)]
unsafe fn half_at(p: *const u8, i: usize) -> u16 {
    // SAFETY: the caller's promise.
    u16::from_le(unsafe { p.add(2 * i).cast::<u16>().read_unaligned() })
}

// SAFETY of the memory functions: they touch just the elements that the trait
// names, which its callers guarantee to be valid.
impl Simd for Portable {
    const LANES: usize = LANES;
    const FRAGMENT_BLOCK: usize = 1;
    const TILE_COLUMNS: usize = 2;
    type F = F;
    type I = I;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn select_le(self, a: F, b: F, t: F, f: F) -> F {
        each(|i| if a[i] <= b[i] { t[i] } else { f[i] })
    }
    #[inline(always)]
    fn any_gt(self, a: F, b: F) -> bool {
        (0..LANES).any(|i| a[i] > b[i])
    }
    #[inline(always)]
    fn scale_by_power(self, x: F, n: F) -> F {
        // Two factors, since 2^-126 · 2^1 and 2^128 are at the border.
        each(|i| {
            let half = n[i] as i32 / 2;
            let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            x[i] * power(half) * power(n[i] as i32 - half)
        })
    }
    #[inline(always)]
    fn round(self, x: F) -> F {
        const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23
        each(|i| (x[i] + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn round_f16(self, x: F) -> F {
        x.map(|x| f16::from_f32(x).to_f32())
    }
    #[inline(always)]
    fn horizontal_sum(self, x: F) -> f32 {
        (0..4).map(|i| x[i] + x[i + 4]).sum()
    }
    #[inline(always)]
    fn horizontal_max(self, x: F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn sum_across_blocks(self, x: F) -> F {
        each(|i| x[i % 4] + x[i % 4 + 4])
    }
    #[inline(always)]
    fn horizontal_sum4(self, x: [F; 4]) -> [f32; 4] {
        x.map(|v| self.horizontal_sum(v))
    }

    #[inline(always)]
    fn shift_right(self, x: I, n: i32) -> I {
        x.map(|w| w >> n)
    }
    #[inline(always)]
    fn shift_left(self, x: I, n: i32) -> I {
        x.map(|w| w << n)
    }
    #[inline(always)]
    fn and(self, x: I, mask: u32) -> I {
        x.map(|w| w & mask)
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn to_float(self, x: I) -> F {
        x.map(|w| w as f32)
    }
    #[inline(always)]
    fn masked(self, x: I, mask: u32) -> F {
        x.map(|w| f32::from_bits(w & mask))
    }
    #[inline(always)]
    fn code2_low(self, x: I) -> F {
        x.map(|w| (w & 3) as f32)
    }
    #[inline(always)]
    fn code2_high(self, x: I) -> F {
        x.map(|w| ((w >> 2) & 3) as f32)
    }
    #[inline(always)]
    fn code4(self, x: I) -> F {
        x.map(|w| (w & 15) as f32)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: see the note above the block.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: F) {
        // SAFETY: see the note above the block.
        unsafe { p.cast::<F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load4(self, p: *const f32) -> F {
        // SAFETY: see the note above the block.
        let x = unsafe { p.cast::<[f32; 4]>().read_unaligned() };
        each(|i| x[i % 4])
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> I {
        // SAFETY: see the note above the block.
        let x = unsafe { p.cast::<I>().read_unaligned() };
        x.map(u32::from_le)
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> F {
        // SAFETY: see the note above the block.
        each(|i| f16::from_bits(unsafe { half_at(p, i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> F {
        // SAFETY: see the note above the block.
        each(|i| bf16::from_bits(unsafe { half_at(p, i) }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> F {
        // SAFETY: see the note above the block.
        each(|i| fp8_to_f32(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_f16_even_odd(self, p: *const u8) -> (F, F) {
        // SAFETY: see the note above the block.
        let at = |i| f16::from_bits(unsafe { half_at(p, i) }).to_f32();
        (each(|i| at(2 * i)), each(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    unsafe fn store_blocks(self, p: *mut f32, stride: usize, x: F) {
        for (b, block) in x.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: see the note above the block.
            unsafe { p.add(b * stride).cast::<[f32; 4]>().write_unaligned(*block) }
        }
    }
    #[inline(always)]
    unsafe fn store_rows(
        self,
        acc: &[F; 4],
        first: usize,
        units: [f32; 2],
        even: *mut f32,
        odd: *mut f32,
    ) {
        for (j, rows) in acc[..2].iter().enumerate() {
            let at = first + 4 * j;
            for (block, out) in rows.as_chunks::<4>().0.iter().zip([even, odd]) {
                let sum: f32 = block.iter().sum();
                // SAFETY: see the note above the block.
                unsafe { *out.add(at) = sum * units[j] }
            }
        }
    }
}
