//! Sealing: a 16-bit page becomes codes, with vectors.
//!
//! The bytes are those of [`Affine`]'s scalar encoder: the same subtraction, division
//! and rounding of each element (DESIGN rule 5). Codes are put together as floats: half
//! a word has 16 bits, which a float holds exactly.

use super::attention::affine;
use super::simd::{Kernel, Level, Simd, dispatch};
use crate::codec::affine::Affine;
use crate::codec::fragment::span;
use crate::codec::{Codec, Side, TILE_TOKENS};

/// Encodes a tile whose rows stand in the 16-bit type `hot`.
pub(super) fn seal(
    level: Level,
    hot: Codec,
    from: &[u8],
    codec: Codec,
    side: Side,
    head_dim: usize,
    out: &mut [u8],
) {
    if let Some(affine) = affine(codec) {
        return dispatch(level, Seal { hot, from, codec: affine, side, head_dim, out });
    }
    let mut rows = vec![0f32; TILE_TOKENS * head_dim];
    hot.tile().decode(side, from, head_dim, &mut rows);
    codec.tile().encode(side, &rows, head_dim, out);
}

/// Encodes one tile.
struct Seal<'a> {
    hot: Codec,
    from: &'a [u8],
    codec: &'a Affine,
    side: Side,
    head_dim: usize,
    out: &'a mut [u8],
}

/// Scales and zeros of each group, as they are stored.
struct Groups {
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl Kernel for Seal<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (scales, zeros) = self.codec.offsets(self.head_dim);
        assert!(self.head_dim.is_multiple_of(self.codec.group.max(32)));
        assert!(self.from.len() >= 2 * TILE_TOKENS * self.head_dim && self.hot.is_16_bit());
        assert!(self.out.len() == zeros + (zeros - scales));
        let rows = self.rows(s);
        match self.side {
            Side::Key => {
                let groups = self.fit(self.key_extremes(s, &rows));
                self.encode_keys(s, &rows, &groups);
            }
            Side::Value => {
                let groups = self.fit(self.value_extremes(s, &rows));
                self.encode_values(s, &rows, &groups);
            }
        }
    }
}

impl Seal<'_> {
    /// The tile as floats, row-major.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S) -> Vec<f32> {
        let mut rows = vec![0f32; TILE_TOKENS * self.head_dim];
        for (to, from) in rows.chunks_exact_mut(S::LANES).zip(self.from.chunks_exact(2 * S::LANES))
        {
            // SAFETY: both chunks are one vector.
            unsafe {
                let x = match self.hot {
                    Codec::Bf16 => s.load_bf16(from.as_ptr()),
                    _ => s.load_f16(from.as_ptr()),
                };
                s.store(to.as_mut_ptr(), x);
            }
        }
        rows
    }

    /// Least and greatest element of each group: channels of consecutive tokens.
    #[inline(always)]
    fn key_extremes<S: Simd>(&self, s: S, rows: &[f32]) -> [Vec<f32>; 2] {
        let (d, group) = (self.head_dim, self.codec.group);
        let mut extremes = [0; 2].map(|_| vec![0f32; TILE_TOKENS / group * d]);
        for (i, tokens) in rows.chunks_exact(group * d).enumerate() {
            for channel in (0..d).step_by(S::LANES) {
                let mut ends = empty(s);
                for row in tokens.chunks_exact(d) {
                    ends = widen(s, ends, &row[channel..][..S::LANES]);
                }
                for (end, to) in ends.into_iter().zip(&mut extremes) {
                    let to = &mut to[i * d + channel..][..S::LANES];
                    // SAFETY: the slice is one vector.
                    unsafe { s.store(to.as_mut_ptr(), end) }
                }
            }
        }
        extremes
    }

    /// Least and greatest element of each group: consecutive channels of a token.
    #[inline(always)]
    fn value_extremes<S: Simd>(&self, s: S, rows: &[f32]) -> [Vec<f32>; 2] {
        let (d, group) = (self.head_dim, self.codec.group);
        let mut extremes = [0; 2].map(|_| vec![0f32; d / group * TILE_TOKENS]);
        for (token, row) in rows.chunks_exact(d).enumerate() {
            for (i, xs) in row.chunks_exact(group).enumerate() {
                let mut ends = empty(s);
                for x in xs.chunks_exact(S::LANES) {
                    ends = widen(s, ends, x);
                }
                let at = i * TILE_TOKENS + token;
                extremes[0][at] = -s.horizontal_max(s.sub(s.splat(0.0), ends[0]));
                extremes[1][at] = s.horizontal_max(ends[1]);
            }
        }
        extremes
    }

    /// Writes the scale and the zero of each group.
    #[inline(always)]
    fn fit(&mut self, [min, max]: [Vec<f32>; 2]) -> Groups {
        let (scale_at, zero_at) = self.codec.offsets(self.head_dim);
        let mut groups = Groups { scales: min, zeros: max };
        for (i, (a, b)) in groups.scales.iter_mut().zip(&mut groups.zeros).enumerate() {
            let (scale, zero) = self.codec.fit(*a, *b);
            self.out[scale_at + 2 * i..][..2].copy_from_slice(&scale.to_le_bytes());
            self.out[zero_at + 2 * i..][..2].copy_from_slice(&zero.to_le_bytes());
            (*a, *b) = (scale.to_f32(), zero.to_f32());
        }
        groups
    }

    /// Codes of `LANES` elements.
    #[inline(always)]
    fn codes<S: Simd>(&self, s: S, x: S::F, scale: S::F, zero: S::F) -> S::F {
        let none = s.splat(0.0);
        let levels = s.splat(self.codec.levels());
        // A lane that is not a number takes the second operand.
        let x = s.max(s.div(s.sub(x, zero), scale), none);
        let code = s.round(s.select_le(x, levels, x, levels));
        s.select_le(scale, none, none, code)
    }

    /// Rows of fragments are tokens, so the codes of a word stand in one row of the
    /// tile, or eight rows on.
    #[inline(always)]
    fn encode_keys<S: Simd>(&mut self, s: S, rows: &[f32], groups: &Groups) {
        let (d, bits) = (self.head_dim, self.codec.bits);
        let place: [f32; 32] = std::array::from_fn(|k| register(bits, k / 8));
        let second = s.splat((1 << bits) as f32);
        for block in 0..TILE_TOKENS / 16 {
            let parameters = block * 16 / self.codec.group * d;
            for span_index in 0..d / span(bits) {
                let first = span_index * span(bits);
                let mut words = [0u32; 32];
                for (row, words) in words.chunks_exact_mut(4).enumerate() {
                    let mut sums = [0f32; 16];
                    for k in (0..span(bits)).step_by(S::LANES) {
                        let at = |token: usize| (block * 16 + token) * d + first + k;
                        let of = parameters + first + k;
                        let (low, high) = (&rows[at(row)..], &rows[at(row + 8)..]);
                        let (scale, zero) = (&groups.scales[of..], &groups.zeros[of..]);
                        let sum = &mut sums[k % 16..];
                        let all = [low.len(), high.len(), scale.len(), zero.len(), sum.len()];
                        assert!(all.iter().all(|&n| n >= S::LANES) && k + S::LANES <= 32);
                        // SAFETY: lengths were just checked.
                        unsafe {
                            let (scale, zero) = (s.load(scale.as_ptr()), s.load(zero.as_ptr()));
                            let low = self.codes(s, s.load(low.as_ptr()), scale, zero);
                            let high = self.codes(s, s.load(high.as_ptr()), scale, zero);
                            let both = s.fma(high, second, low);
                            let place = s.load(place.as_ptr().add(k));
                            let all = s.fma(both, place, s.load(sum.as_ptr()));
                            s.store(sum.as_mut_ptr(), all);
                        }
                    }
                    for (t, word) in words.iter_mut().enumerate() {
                        *word =
                            join(sums[2 * t] + sums[2 * t + 8], sums[2 * t + 1] + sums[2 * t + 9]);
                    }
                }
                self.put(block * (d / span(bits)) + span_index, &words);
            }
        }
    }

    /// Rows of fragments are channels, so the codes of a word stand in one column of
    /// the tile, or eight columns on.
    #[inline(always)]
    fn encode_values<S: Simd>(&mut self, s: S, rows: &[f32], groups: &Groups) {
        let (d, bits) = (self.head_dim, self.codec.bits);
        let second = (1 << bits) as f32;
        for span_index in 0..TILE_TOKENS / span(bits) {
            for block in 0..d / 16 {
                let parameters = block * 16 / self.codec.group * TILE_TOKENS;
                let mut words = [0u32; 32];
                for t in 0..4 {
                    // Tokens with even and with odd index.
                    let mut sums = [[0f32; 16]; 2];
                    for (odd, sums) in sums.iter_mut().enumerate() {
                        for (v, sums) in sums.chunks_exact_mut(S::LANES).enumerate() {
                            let mut sum = s.splat(0.0);
                            for m in 0..span(bits) / 8 {
                                let token = span_index * span(bits) + 8 * m + 2 * t + odd;
                                let x = &rows[token * d + block * 16 + v * S::LANES..][..S::LANES];
                                let scale = s.splat(groups.scales[parameters + token]);
                                let zero = s.splat(groups.zeros[parameters + token]);
                                // SAFETY: the slice is one vector.
                                let x = unsafe { s.load(x.as_ptr()) };
                                let codes = self.codes(s, x, scale, zero);
                                sum = s.fma(codes, s.splat(register(bits, m)), sum);
                            }
                            // SAFETY: the chunk is one vector.
                            unsafe { s.store(sums.as_mut_ptr(), sum) }
                        }
                    }
                    let half = |sums: &[f32; 16], row| sums[row] + sums[row + 8] * second;
                    for row in 0..8 {
                        words[4 * row + t] = join(half(&sums[0], row), half(&sums[1], row));
                    }
                }
                self.put(span_index * (d / 16) + block, &words);
            }
        }
    }

    #[inline(always)]
    fn put(&mut self, fragment: usize, words: &[u32; 32]) {
        let bytes = self.out[fragment * 128..][..128].as_chunks_mut::<4>().0;
        bytes.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
    }
}

/// What a code counts in half a word if it stands in register `2m`
/// ([`fragment`](crate::codec::fragment)).
#[inline(always)]
fn register(bits: usize, m: usize) -> f32 {
    (1u32 << (2 * bits * m)) as f32
}

/// A word of its even and its odd half.
#[inline(always)]
fn join(even: f32, odd: f32) -> u32 {
    even as u32 | (odd as u32) << 16
}

#[inline(always)]
fn empty<S: Simd>(s: S) -> [S::F; 2] {
    [s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY)]
}

/// Least and greatest elements with those of one more vector; what is not a number
/// does not count.
#[inline(always)]
fn widen<S: Simd>(s: S, [min, max]: [S::F; 2], x: &[f32]) -> [S::F; 2] {
    assert!(x.len() == S::LANES);
    // SAFETY: x is one vector.
    let x = unsafe { s.load(x.as_ptr()) };
    [s.select_le(x, min, x, min), s.max(x, max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Bit for bit what the scalar codec gives.
    #[test]
    fn every_level_writes_the_bytes_of_the_codec() {
        let noise = |i: usize| {
            ((i as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let inputs: [(&str, &dyn Fn(usize) -> f32); 9] = [
            ("random", &noise),
            ("channels of many sizes", &|i| noise(i) * 4f32.powi((i % 11) as i32 - 5)),
            ("constant", &|_| 0.7),
            ("zeros of both signs", &|i| if i % 3 == 0 { -0.0 } else { 0.0 }),
            ("halfway between codes", &|i| (i.wrapping_mul(7_919) % 31) as f32 / 10.0),
            ("subnormal", &|i| noise(i) * 3e-6),
            ("subnormal scales", &|i| 1.0 + noise(i) * 1e-3),
            ("the range of f16", &|i| noise(i) * 65504.0),
            ("beyond it", &|i| if i % 97 == 5 { f32::NAN } else { noise(i) * 3e38 }),
        ];
        for (what, input) in inputs {
            for d in [32, 64, 96, 128, 256] {
                for hot in [Codec::F16, Codec::Bf16] {
                    let bytes: Vec<u8> = (0..TILE_TOKENS * d)
                        .flat_map(|i| match hot {
                            Codec::F16 => f16::from_f32(input(i)).to_le_bytes(),
                            _ => bf16::from_f32(input(i)).to_le_bytes(),
                        })
                        .collect();
                    for codec in Codec::ALL {
                        for side in [Side::Key, Side::Value] {
                            let tile = codec.tile();
                            let mut rows = vec![0f32; TILE_TOKENS * d];
                            hot.tile().decode(side, &bytes, d, &mut rows);
                            let mut want = vec![0xaa; tile.tile_bytes(d)];
                            tile.encode(side, &rows, d, &mut want);
                            for level in Level::ALL.into_iter().filter(|l| l.available()) {
                                let mut got = vec![0x55; want.len()];
                                seal(level, hot, &bytes, codec, side, d, &mut got);
                                let level = level.name();
                                assert!(got == want, "{what} {d} {hot} {codec} {side:?} {level}");
                            }
                        }
                    }
                }
            }
        }
    }
}
