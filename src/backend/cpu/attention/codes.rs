//! From the words of a fragment to vectors of codes ([`crate::codec::fragment`]).
//!
//! A vector of words belongs to as many threads of the fragment; a thread's *field* is
//! two codes with one place along k, of rows g and g + 8. Fields with an even k come
//! first, then those with an odd k, each in the order of k.
//!
//! A code is extracted in one of two ways. Any processor shifts and looks the lowest
//! bits up. One that takes subnormal numbers at full speed multiplies codes where
//! they are (`IN_PLACE`): the bits of a word above its lowest `p`, masked and read as a
//! float, are `code·2^(p − 149)`. What codes are multiplied by makes up for `p`
//! ([`LIFTS`]) and a unit at the end for the rest ([`units`]), all by powers of two, so
//! products are as exact as with the other way. Codes of 3 bits stay where they are in
//! both ways, and are converted from integers in the first.

use super::affine::even_odd;
use crate::backend::cpu::simd::Simd;
use crate::codec::fragment::{span, unit_words};

/// Factors for codes in place are larger by 2^80 above bit 0. So they overflow
/// from 2^48 on, and products lose bits below 2^-57: scales lie within 2^±24.
const LIFT: i32 = 80;

/// Fields of a unit.
pub(super) const fn fields(bits: usize) -> usize {
    span(bits) / 4
}

/// The even-odd index of the first of the four k elements of field `n`.
pub(super) const fn field(bits: usize, span_index: usize, n: usize) -> usize {
    let half = fields(bits) / 2;
    even_odd(span_index * span(bits) + n % half * 8) + n / half * 16
}

/// The bit of a field's code of row g, once its word is shifted; that of row g + 8
/// stands `bits` higher.
const fn bit(bits: usize, n: usize) -> usize {
    match bits {
        3 => [0, 6, 12, 3, 9, 0, 6, 12][n % 8],
        _ if in_lower_bits(bits, n) => 2 * bits * n,
        _ => 2 * bits * n - 16,
    }
}

/// Whether both codes of a field lie below bit 23 of the word as it is.
const fn in_lower_bits(bits: usize, n: usize) -> bool {
    2 * bits * (n + 1) <= 23
}

/// `2^n`, a normal number.
const fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

const fn lifts(bits: usize, in_place: bool) -> [f32; 64] {
    let mut lifts = [1.0; 64];
    let mut i = 0;
    while i < 64 / span(bits) * fields(bits) {
        let (span_index, n) = (i / fields(bits), i % fields(bits));
        let at = field(bits, span_index, n);
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

/// The words that a vector of threads has of one unit.
#[derive(Clone, Copy)]
pub(super) struct Words<S: Simd, const BITS: usize> {
    words: [S::I; 3],
    /// Shifted by half a word.
    upper: [S::I; 3],
}

impl<S: Simd, const BITS: usize> Words<S, BITS> {
    /// The words of the first `LANES` threads from `p` on.
    ///
    /// # Safety
    /// `LANES` words can be read at each of the unit's fragments, which are 32 words apart.
    #[inline(always)]
    pub(super) unsafe fn load(s: S, p: *const u8) -> Self {
        // SAFETY: the caller's; a unit has at least one fragment.
        let mut words = [unsafe { s.load_words(p) }; 3];
        for (i, word) in words.iter_mut().enumerate().take(unit_words(BITS)).skip(1) {
            // SAFETY: the caller's.
            *word = unsafe { s.load_words(p.add(128 * i)) };
        }
        Self { words, upper: words.map(|w| s.shift_right(w, 16)) }
    }

    /// The codes of field `n`, rows g and g + 8, times what [`units`] and [`LIFTS`]
    /// make up for.
    #[inline(always)]
    pub(super) fn codes<const IN_PLACE: bool>(&self, s: S, n: usize) -> [S::F; 2] {
        let w = self.words[0];
        match BITS {
            3 => {
                let [low, high] = self.pair_of_3(s, n);
                let low = (low, 7 << bit(3, n));
                let high = (high, 7 << (bit(3, n) + 3));
                if IN_PLACE {
                    [low, high].map(|(w, mask)| s.masked(w, mask))
                } else {
                    [low, high].map(|(w, mask)| s.to_float(s.and(w, mask)))
                }
            }
            _ if IN_PLACE => {
                let w = if in_lower_bits(BITS, n) { w } else { self.upper[0] };
                let mask = ((1 << BITS) - 1) << bit(BITS, n);
                [s.masked(w, mask), s.masked(w, mask << BITS)]
            }
            2 => {
                let w = s.shift_right(w, 4 * n as i32);
                [s.code2_low(w), s.code2_high(w)]
            }
            _ => [8 * n, 8 * n + 4].map(|at| s.code4(s.shift_right(w, at as i32))),
        }
    }

    /// Words that hold field `n`'s codes of 3 bits at `bit(3, n)` and 3 bits above.
    #[inline(always)]
    fn pair_of_3(&self, s: S, n: usize) -> [S::I; 2] {
        let (odd, pair) = (n / 8 == 1, n % 8);
        let [a, b, c] = if odd { self.upper } else { self.words };
        // From where it stands in the other half word, or below, to bit 15 or above.
        let lift = |i: usize, by: i32| {
            let w = self.words[i];
            if odd { s.shift_right(w, 16 - by) } else { s.shift_left(w, by) }
        };
        match pair {
            0 | 1 => [a; 2],
            // Registers 4 and 5 stand in different words.
            2 => [a, lift(1, 15)],
            3 | 4 => [b; 2],
            5 | 6 => [c; 2],
            // Register 15 has a bit in each word.
            _ => {
                let bits =
                    [s.and(a, 1 << 15), s.and(lift(1, 1), 1 << 16), s.and(lift(2, 2), 1 << 17)];
                [c, s.or(s.or(bits[0], bits[1]), bits[2])]
            }
        }
    }
}
