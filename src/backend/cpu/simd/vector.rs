//! The vector vocabulary.

/// 2^120: moves e4m3's exponent bias (7) to f32's (127), subnormals included.
pub(super) const FP8_REBIAS: f32 = f32::from_bits((120 + 127) << 23);

/// A computation that runs at any level.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// The computation; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
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
