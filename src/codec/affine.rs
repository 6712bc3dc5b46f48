//! KIVI: groups of codes that share a scale and a zero (Liu et al. 2024,
//! "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", §3).
//!
//! Keys, after RoPE, are grouped per channel over consecutive tokens; values
//! per token over consecutive channels. With `b` bits and `g` elements a group:
//!
//! ```text
//! scale = f16((max − min) / (2^b − 1))     zero = f16(min)
//! code  = clamp(rint((x − zero) / scale), 0, 2^b − 1)      x̂ = code·scale + zero
//! ```
//!
//! All of it in f32 with the *rounded* scale and zero, without contraction, so
//! codes agree bit for bit on every device; a scale that rounds to 0 gives
//! code 0 (KIVI itself divides by zero there).
//!
//! Bytes of a tile of `d` channels, all little-endian:
//!
//! ```text
//! keys    | codes: tile_words(b, d) × u32 | scale f16 [64/g][d]  | zero f16 [64/g][d]  |
//! values  | codes: tile_words(b, d) × u32 | scale f16 [d/g][64]  | zero f16 [d/g][64]  |
//! ```
//!
//! The order of the codes is in [`fragment`](super::fragment). At `g` = 32 this
//! is `b + 1` bits an element.

use super::fragment::{place, tile_words};
use super::{Side, TILE_TOKENS, TileCodec};
use half::f16;

/// Asymmetric uniform codes of `bits` bits in groups of `group` elements.
pub struct Affine {
    /// Bits of a code: 2 or 4.
    pub bits: usize,
    /// Elements that share a scale and a zero: 32 or 64.
    pub group: usize,
}

/// KIVI's 4-bit codec at its own group of 32.
pub static KIVI4: Affine = Affine { bits: 4, group: 32 };
/// KIVI's 2-bit codec at its own group of 32.
pub static KIVI2: Affine = Affine { bits: 2, group: 32 };

/// Rounds to the nearest integer, ties to even, for `0 ≤ x < 2^22`.
fn rint(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23
    (x + MAGIC) - MAGIC
}

impl Affine {
    /// Byte offsets of the scales and of the zeros in a tile.
    pub fn offsets(&self, head_dim: usize) -> (usize, usize) {
        let scales = tile_words(self.bits, head_dim) * 4;
        (scales, scales + TILE_TOKENS * head_dim / self.group * 2)
    }

    /// The greatest code.
    pub(crate) fn levels(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// (scale, zero) of a group from its extremes, rounded to f16. Adding +0 turns
    /// −0 to +0: which of the two `f32::min` returns is not defined.
    pub(crate) fn fit(&self, min: f32, max: f32) -> (f16, f16) {
        let (min, max) = (min + 0.0, max + 0.0);
        (f16::from_f32((max - min) / self.levels()), f16::from_f32(min))
    }

    /// Index of the scale of `(token, channel)`.
    fn group_of(&self, side: Side, head_dim: usize, token: usize, channel: usize) -> usize {
        match side {
            Side::Key => token / self.group * head_dim + channel,
            Side::Value => channel / self.group * TILE_TOKENS + token,
        }
    }

    fn check(&self, rows: usize, bytes: usize, head_dim: usize) {
        assert!(head_dim.is_multiple_of(self.group.max(32)), "head_dim {head_dim}");
        assert_eq!(rows, TILE_TOKENS * head_dim, "rows of a tile");
        assert_eq!(bytes, self.tile_bytes(head_dim), "bytes of a tile");
    }
}

impl TileCodec for Affine {
    fn tile_bytes(&self, head_dim: usize) -> usize {
        let (scales, zeros) = self.offsets(head_dim);
        zeros + (zeros - scales)
    }

    fn encode(&self, side: Side, rows: &[f32], head_dim: usize, out: &mut [u8]) {
        self.check(rows.len(), out.len(), head_dim);
        let d = head_dim;
        let groups = TILE_TOKENS * d / self.group;
        let (mut min, mut max) = (vec![f32::INFINITY; groups], vec![f32::NEG_INFINITY; groups]);
        for (token, row) in rows.chunks_exact(d).enumerate() {
            for (channel, &x) in row.iter().enumerate() {
                let g = self.group_of(side, d, token, channel);
                min[g] = min[g].min(x);
                max[g] = max[g].max(x);
            }
        }

        let (scale_at, zero_at) = self.offsets(d);
        let (mut scale, mut zero) = (vec![0f32; groups], vec![0f32; groups]);
        for g in 0..groups {
            let (s, z) = self.fit(min[g], max[g]);
            out[scale_at + 2 * g..][..2].copy_from_slice(&s.to_le_bytes());
            out[zero_at + 2 * g..][..2].copy_from_slice(&z.to_le_bytes());
            (scale[g], zero[g]) = (s.to_f32(), z.to_f32());
        }

        let codes = &mut out[..scale_at];
        codes.fill(0);
        for (token, row) in rows.chunks_exact(d).enumerate() {
            for (channel, &x) in row.iter().enumerate() {
                let g = self.group_of(side, d, token, channel);
                let code = if scale[g] == 0.0 {
                    0
                } else {
                    // Clamping first is the same: the bounds are integers.
                    rint(((x - zero[g]) / scale[g]).clamp(0.0, self.levels())) as u32
                };
                let (word, bit) = place(side, self.bits, d, token, channel);
                // A code never straddles a byte.
                codes[4 * word + bit / 8] |= (code << (bit % 8)) as u8;
            }
        }
    }

    fn decode(&self, side: Side, bytes: &[u8], head_dim: usize, rows: &mut [f32]) {
        self.check(rows.len(), bytes.len(), head_dim);
        let d = head_dim;
        let (scale_at, zero_at) = self.offsets(d);
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let mask = (1u8 << self.bits) - 1;
        for (token, row) in rows.chunks_exact_mut(d).enumerate() {
            for (channel, x) in row.iter_mut().enumerate() {
                let g = self.group_of(side, d, token, channel);
                let (word, bit) = place(side, self.bits, d, token, channel);
                let code = (bytes[4 * word + bit / 8] >> (bit % 8)) & mask;
                *x = f32::from(code) * half(scale_at + 2 * g) + half(zero_at + 2 * g);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(d: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        (0..TILE_TOKENS * d)
            .map(|i| {
                s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (s >> 8) as f32 / (1 << 24) as f32 - 0.5;
                f16::from_f32(noise * (1.0 + (i % 7) as f32)).to_f32()
            })
            .collect()
    }

    /// KIVI's formula written in f64 for one group, straight from the paper.
    fn reference_group(xs: &[f32], bits: u32) -> Vec<f64> {
        let levels = f64::from((1u32 << bits) - 1);
        let min = xs.iter().copied().fold(f32::INFINITY, f32::min);
        let max = xs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = f64::from(f16::from_f32((max - min) / levels as f32).to_f32());
        let zero = f64::from(f16::from_f32(min).to_f32());
        xs.iter()
            .map(|&x| {
                let code = ((f64::from(x) - zero) / scale).round_ties_even().clamp(0.0, levels);
                code * scale + zero
            })
            .collect()
    }

    #[test]
    fn decoded_values_follow_the_paper() {
        for codec in [&KIVI2, &KIVI4, &Affine { bits: 2, group: 64 }] {
            for d in [64, 128, 256] {
                let x = rows(d, d as u32);
                for side in [Side::Key, Side::Value] {
                    let mut bytes = vec![0xaa; codec.tile_bytes(d)];
                    let mut back = vec![0f32; x.len()];
                    codec.encode(side, &x, d, &mut bytes);
                    codec.decode(side, &bytes, d, &mut back);
                    let g = codec.group;
                    for group in 0..x.len() / g {
                        // Flat indices of this group's elements.
                        let at: Vec<usize> = match side {
                            Side::Key => {
                                (0..g).map(|i| (group / d * g + i) * d + group % d).collect()
                            }
                            Side::Value => (0..g).map(|i| group * g + i).collect(),
                        };
                        let xs: Vec<f32> = at.iter().map(|&i| x[i]).collect();
                        let want = reference_group(&xs, codec.bits as u32);
                        for (&i, w) in at.iter().zip(want) {
                            assert!((f64::from(back[i]) - w).abs() < 1e-5, "{side:?} {d} {i}");
                        }
                    }
                }
            }
        }
    }

    /// The order in which zeros of both signs appear does not show in the bytes.
    #[test]
    fn zeros_of_either_sign_give_the_same_bytes() {
        let d = 64;
        let bytes = |zero: [f32; 2]| {
            let x: Vec<f32> = (0..TILE_TOKENS * d).map(|i| zero[(i / d + i) % 2]).collect();
            [Side::Key, Side::Value].map(|side| {
                let mut bytes = vec![0xff; KIVI2.tile_bytes(d)];
                KIVI2.encode(side, &x, d, &mut bytes);
                bytes
            })
        };
        let plain = bytes([0.0, 0.0]);
        assert!(plain.iter().flatten().all(|&b| b == 0));
        for signs in [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]] {
            assert_eq!(bytes(signs), plain, "{signs:?}");
        }
    }

    #[test]
    fn a_constant_group_has_code_zero_and_no_nan() {
        let d = 64;
        let x = vec![0.7; TILE_TOKENS * d];
        for side in [Side::Key, Side::Value] {
            let mut bytes = vec![0xff; KIVI2.tile_bytes(d)];
            KIVI2.encode(side, &x, d, &mut bytes);
            let (codes, _) = KIVI2.offsets(d);
            assert!(bytes[..codes].iter().all(|&b| b == 0));
            let mut back = vec![0f32; x.len()];
            KIVI2.decode(side, &bytes, d, &mut back);
            let kept = f16::from_f32(0.7).to_f32();
            assert!(back.iter().all(|&b| b == kept));
        }
    }
}
