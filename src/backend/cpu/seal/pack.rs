//! Codes of a tile, in the words of its fragments ([`crate::codec::fragment`]).
//!
//! Words are put together as floats: half a word has 16 bits, which a float holds
//! exactly, so a code is multiplied by the power of two of its place and added.

// Register pairs, words and rows are numbers.
#![allow(clippy::needless_range_loop)]

use super::fit::Groups;
use super::job::Seal;
use crate::backend::cpu::simd::Simd;
use crate::codec::TILE_TOKENS;
use crate::codec::fragment::{register_place, span, unit_words};

/// What the codes of registers `2m` and `2m + 1` count in half of each word of a unit.
type Weights = [[[f32; 2]; 8]; 3];

static WEIGHTS: [Weights; 3] = [weights(2), weights(3), weights(4)];

const fn weights(bits: usize) -> Weights {
    let mut weights = [[[0.0; 2]; 8]; 3];
    let mut register = 0;
    while register < span(bits) / 4 {
        let (word, bit, split) = register_place(bits, register);
        if !split {
            weights[word][register / 2][register % 2] = (1u32 << bit) as f32;
        }
        register += 1;
    }
    weights
}

impl Seal<'_> {
    /// Codes of `LANES` elements.
    #[inline(always)]
    pub(super) fn codes<S: Simd>(&self, s: S, x: S::F, scale: S::F, zero: S::F) -> S::F {
        let none = s.splat(0.0);
        let levels = s.splat(self.codec.levels());
        // A lane that is not a number takes the second operand.
        let x = s.max(s.div(s.sub(x, zero), scale), none);
        let code = s.round(s.select_le(x, levels, x, levels));
        s.select_le(scale, none, none, code)
    }

    /// The code of one element.
    fn code(&self, x: f32, scale: f32, zero: f32) -> u32 {
        self.codec.code(x, scale, zero) as u32
    }

    /// Rows of fragments are tokens, so the codes of a word stand in one row of the
    /// tile, or eight rows on.
    #[inline(always)]
    pub(super) fn encode_keys<S: Simd>(&mut self, s: S, rows: &[f32], groups: &Groups) {
        let (d, bits) = (self.head_dim, self.codec.bits);
        let weights = &WEIGHTS[bits - 2];
        // By k, for the two rows of a register pair.
        let places: [[[f32; 64]; 2]; 3] = std::array::from_fn(|word| {
            [0, 1].map(|high| std::array::from_fn(|k| weights[word][k / 8][high]))
        });
        for block in 0..TILE_TOKENS / 16 {
            let parameters = block * 16 / self.codec.group * d;
            for span_index in 0..d / span(bits) {
                let first = span_index * span(bits);
                let mut words = [[0u32; 32]; 3];
                for row in 0..8 {
                    let at = |token: usize| (block * 16 + token) * d + first;
                    let mut sums = [[0f32; 16]; 3];
                    for k in (0..span(bits)).step_by(S::LANES) {
                        let of = parameters + first + k;
                        let (low, high) = (&rows[at(row) + k..], &rows[at(row + 8) + k..]);
                        let (scale, zero) = (&groups.scales[of..], &groups.zeros[of..]);
                        let all = [low.len(), high.len(), scale.len(), zero.len()];
                        assert!(all.iter().all(|&n| n >= S::LANES) && k + S::LANES <= 64);
                        // SAFETY: lengths were just checked; 16 is a multiple of LANES.
                        unsafe {
                            let (scale, zero) = (s.load(scale.as_ptr()), s.load(zero.as_ptr()));
                            let low = self.codes(s, s.load(low.as_ptr()), scale, zero);
                            let high = self.codes(s, s.load(high.as_ptr()), scale, zero);
                            for word in 0..unit_words(bits) {
                                let sum = sums[word].as_mut_ptr().add(k % 16);
                                let place =
                                    |high: usize| s.load(places[word][high].as_ptr().add(k));
                                let both = s.fma(high, place(1), s.load(sum));
                                s.store(sum, s.fma(low, place(0), both));
                            }
                        }
                    }
                    for (words, sums) in words.iter_mut().zip(&sums) {
                        for t in 0..4 {
                            let half = |odd: usize| sums[2 * t + odd] + sums[2 * t + odd + 8];
                            words[4 * row + t] = join(half(0), half(1));
                        }
                    }
                    if bits == 3 {
                        for k in 56..64 {
                            let of = parameters + first + k;
                            let (scale, zero) = (groups.scales[of], groups.zeros[of]);
                            let code = self.code(rows[at(row + 8) + k], scale, zero);
                            split(&mut words, 4 * row + k % 8 / 2, k % 2, code);
                        }
                    }
                }
                self.put(block * (d / span(bits)) + span_index, &words);
            }
        }
    }

    /// Rows of fragments are channels, so the codes of a word stand in one column of
    /// the tile, or eight columns on.
    #[inline(always)]
    pub(super) fn encode_values<S: Simd>(&mut self, s: S, rows: &[f32], groups: &Groups) {
        let (d, bits) = (self.head_dim, self.codec.bits);
        let weights = &WEIGHTS[bits - 2];
        // By register pair, for 16 channels.
        let places: [[[f32; 16]; 8]; 3] =
            weights.map(|word| word.map(|pair| std::array::from_fn(|row| pair[row / 8])));
        for span_index in 0..TILE_TOKENS / span(bits) {
            for block in 0..d / 16 {
                let parameters = block * 16 / self.codec.group * TILE_TOKENS;
                let mut words = [[0u32; 32]; 3];
                for t in 0..4 {
                    // Tokens with even and with odd index.
                    let mut sums = [[[0f32; 16]; 2]; 3];
                    for odd in 0..2 {
                        for v in (0..16).step_by(S::LANES) {
                            let mut sum = [s.splat(0.0); 3];
                            for m in 0..span(bits) / 8 {
                                let token = span_index * span(bits) + 8 * m + 2 * t + odd;
                                let x = &rows[token * d + block * 16 + v..][..S::LANES];
                                let scale = s.splat(groups.scales[parameters + token]);
                                let zero = s.splat(groups.zeros[parameters + token]);
                                // SAFETY: the slice is one vector; the places of 16
                                // channels are whole vectors.
                                unsafe {
                                    let codes = self.codes(s, s.load(x.as_ptr()), scale, zero);
                                    for word in 0..unit_words(bits) {
                                        let place = s.load(places[word][m].as_ptr().add(v));
                                        sum[word] = s.fma(codes, place, sum[word]);
                                    }
                                }
                            }
                            for (sums, sum) in sums.iter_mut().zip(sum) {
                                // SAFETY: 16 is a multiple of LANES.
                                unsafe { s.store(sums[odd].as_mut_ptr().add(v), sum) }
                            }
                        }
                    }
                    for (words, sums) in words.iter_mut().zip(&sums) {
                        for row in 0..8 {
                            let half = |odd: usize| sums[odd][row] + sums[odd][row + 8];
                            words[4 * row + t] = join(half(0), half(1));
                        }
                    }
                    if bits == 3 {
                        for (row, odd) in (0..8).flat_map(|row| [(row, 0), (row, 1)]) {
                            let token = span_index * 64 + 56 + 2 * t + odd;
                            let of = parameters + token;
                            let (scale, zero) = (groups.scales[of], groups.zeros[of]);
                            let x = rows[token * d + block * 16 + 8 + row];
                            split(&mut words, 4 * row + t, odd, self.code(x, scale, zero));
                        }
                    }
                }
                self.put(span_index * (d / 16) + block, &words);
            }
        }
    }

    /// Writes the words of a unit.
    #[inline(always)]
    fn put(&mut self, unit: usize, words: &[[u32; 32]; 3]) {
        let fragments = unit_words(self.codec.bits);
        let bytes = &mut self.out[unit * fragments * 128..][..fragments * 128];
        let bytes = bytes.as_chunks_mut::<4>().0;
        bytes.iter_mut().zip(words.as_flattened()).for_each(|(to, word)| *to = word.to_le_bytes());
    }
}

/// Puts the code of a split register into a thread's words.
#[inline(always)]
fn split(words: &mut [[u32; 32]; 3], thread: usize, odd: usize, code: u32) {
    for (i, word) in words.iter_mut().enumerate() {
        word[thread] |= (code >> i & 1) << (15 + 16 * odd);
    }
}

/// A word of its even and its odd half.
#[inline(always)]
fn join(even: f32, odd: f32) -> u32 {
    even as u32 | (odd as u32) << 16
}
