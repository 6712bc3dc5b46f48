//! From the words of a fragment to vectors of codes ([`crate::codec::fragment`]).
//!
//! A vector of words belongs to as many threads of the fragment. Each half of a word has
//! elements of k of one parity: the lower half even ones, the upper half odd ones. A
//! thread's *field* is two codes of a half with one place along k, of rows g and g + 8.
//!
//! A code is extracted in one of two ways. Any processor shifts and looks the lowest
//! bits up. One that takes subnormal numbers at full speed multiplies codes where
//! they are (`IN_PLACE`): the bits of a word above its lowest `p`, masked and read as a
//! float, are `code·2^(p − 149)`. What codes are multiplied by makes up for `p`
//! ([`LIFTS`]) and a unit at the end for the rest ([`units`]), all by powers of two, so
//! products are as exact as with the other way. Codes of 3 bits stay where they are in
//! both ways, and are converted from integers in the first.

use crate::backend::cpu::simd::Simd;
use crate::codec::fragment::{span, unit_words};

/// Factors for codes in place are larger by 2^80 above bit 0. So they overflow
/// from 2^48 on, and products lose bits below 2^-57: scales lie within 2^±24.
const LIFT: i32 = 80;

/// Fields of each half of a unit.
pub(super) const fn fields(bits: usize) -> usize {
    span(bits) / 8
}

/// The block for each field `n` of a half, as straight code: a plain loop over those of
/// 3 bits was compiled as one, and looked up where each stands.
macro_rules! each_field {
    ($bits:ident, $n:ident, $block:block) => {
        each_field!($bits, $n, $block, 0 1 2 3 4 5 6 7)
    };
    ($bits:ident, $n:ident, $block:block, $($i:literal)*) => {
        $(if $i < fields($bits) {
            let $n: usize = $i;
            $block
        })*
    };
}
pub(super) use each_field;

/// Index, in even-odd order, of element `i`.
pub(super) const fn even_odd(i: usize) -> usize {
    i / 32 * 32 + i % 2 * 16 + i % 32 / 2
}

/// The even-odd index of the first of the four k elements of field `n` of a half.
pub(super) const fn field(bits: usize, span_index: usize, half: usize, n: usize) -> usize {
    even_odd(span_index * span(bits) + 8 * n) + 16 * half
}

/// The bit of a field's code of row g, once its half is the lower one; that of row g + 8
/// stands `bits` higher.
const fn bit(bits: usize, n: usize) -> usize {
    match bits {
        3 => [0, 6, 12, 3, 9, 0, 6, 12][n],
        _ => 2 * bits * n,
    }
}

/// `2^n`, a normal number.
const fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

const fn lifts(bits: usize, in_place: bool) -> [f32; 64] {
    let mut lifts = [1.0; 64];
    let mut i = 0;
    while i < 16 {
        // Field i of the 64 elements, of both halves.
        let (span_index, n) = (i / 2 / fields(bits), i / 2 % fields(bits));
        let at = field(bits, span_index, i % 2, n);
        let mut t = 0;
        while t < 4 {
            lifts[at + t] = match (in_place, bits) {
                (true, _) => power(LIFT - bit(bits, n) as i32),
                (false, 3) => power(-(bit(bits, n) as i32)),
                (false, _) => 1.0,
            };
            t += 1;
        }
        i += 1;
    }
    lifts
}

/// What 64 elements of k in even-odd order are multiplied by first: `[in place][bits − 2]`.
pub(super) static LIFTS: [[[f32; 64]; 3]; 2] = [
    [lifts(2, false), lifts(3, false), lifts(4, false)],
    [lifts(2, true), lifts(3, true), lifts(4, true)],
];

/// What sums of products stand for, in rows g and in rows g + 8.
#[inline(always)]
pub(super) const fn units(in_place: bool, bits: usize) -> [f32; 2] {
    match (in_place, bits) {
        (true, _) => [power(149 - LIFT), power(149 - LIFT - bits as i32)],
        (false, 3) => [1.0, power(-3)],
        (false, _) => [1.0; 2],
    }
}

/// The words that a vector of threads has of one unit, one half in the lower 16 bits.
#[derive(Clone, Copy)]
pub(super) struct Words<S: Simd, const BITS: usize>([S::I; 3]);

impl<S: Simd, const BITS: usize> Words<S, BITS> {
    /// The words of the first `LANES` threads from `p` on; their even elements come first.
    ///
    /// # Safety
    /// `LANES` words can be read at each of the unit's fragments, which are 32 words apart.
    #[inline(always)]
    pub(super) unsafe fn load(s: S, p: *const u8) -> Self {
        // SAFETY: the caller's; a unit has one fragment or three.
        unsafe {
            let first = s.load_words(p);
            if unit_words(BITS) == 1 {
                return Self([first; 3]);
            }
            Self([first, s.load_words(p.add(128)), s.load_words(p.add(256))])
        }
    }

    /// The odd elements.
    #[inline(always)]
    pub(super) fn odd(self, s: S) -> Self {
        Self(self.0.map(|w| s.shift_right(w, 16)))
    }

    /// The codes of field `n`, rows g and g + 8, times what [`units`] and [`LIFTS`]
    /// make up for.
    #[inline(always)]
    pub(super) fn codes<const IN_PLACE: bool>(&self, s: S, n: usize) -> [S::F; 2] {
        let at = bit(BITS, n);
        if BITS == 3 || IN_PLACE {
            let [low, high] = if BITS == 3 { self.pair_of_3(s, n) } else { [self.0[0]; 2] };
            let mask = ((1 << BITS) - 1) << at;
            return [(low, mask), (high, mask << BITS)].map(|(w, mask)| {
                if IN_PLACE { s.masked(w, mask) } else { s.to_float(s.and(w, mask)) }
            });
        }
        let [low, high] = [at, at + BITS].map(|at| s.shift_right(self.0[0], at as i32));
        if BITS == 2 {
            [s.code2_low(low), s.code2_high(low)]
        } else {
            [s.code4(low), s.code4(high)]
        }
    }

    /// Words that hold field `n`'s codes of 3 bits at `bit(3, n)` and 3 bits above.
    #[inline(always)]
    fn pair_of_3(&self, s: S, n: usize) -> [S::I; 2] {
        let [a, b, c] = self.0;
        match n {
            0 | 1 => [a; 2],
            // Registers 4 and 5 stand in different words.
            2 => [a, s.shift_left(b, 15)],
            3 | 4 => [b; 2],
            5 | 6 => [c; 2],
            // Register 15 has a bit in each word.
            _ => {
                let bits = [
                    s.and(a, 1 << 15),
                    s.and(s.shift_left(b, 1), 1 << 16),
                    s.and(s.shift_left(c, 2), 1 << 17),
                ];
                [c, s.or(s.or(bits[0], bits[1]), bits[2])]
            }
        }
    }
}
