//! Groups of codes that share a scale and a zero.
//!
//! Keys, after RoPE, are grouped per channel over consecutive tokens; values
//! per token over consecutive channels. With `b` bits and `g` elements a group:
//!
//! ```text
//! code  = clamp(rint((x − zero) / scale), 0, 2^b − 1)      x̂ = code·scale + zero
//! ```
//!
//! with scale and zero in f16. All of it in f32 with the *rounded* scale and zero,
//! without contraction, so codes agree bit for bit on every device; a scale that rounds
//! to 0 gives code 0 (KIVI itself divides by zero there).
//!
//! **KIVI** (Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV
//! Cache", §3), `g` = 32: `scale = f16((max − min) / (2^b − 1))`, `zero = f16(min)`.
//!
//! **kf**, kvfold's own, `g` = 64: rows are rotated first ([`hadamard`]), so that no
//! channel stands out, and scale and zero are those that err least among narrower ranges
//! ([`clip`]). A key group is then one channel of the rotated tile. Decoded rows are
//! rotated back.
//!
//! Bytes of a tile of `d` channels, all little-endian:
//!
//! ```text
//! keys    | codes: tile_words(b, d) × u32 | scale f16 [64/g][d]  | zero f16 [64/g][d]  |
//! values  | codes: tile_words(b, d) × u32 | scale f16 [d/g][64]  | zero f16 [d/g][64]  |
//! ```
//!
//! Keys may be encoded with [`Feedback`]; that changes codes, not what they mean.
//!
//! The order of the codes is in [`fragment`](super::fragment). This is `b + 1` bits an
//! element at `g` = 32, `b + ½` at `g` = 64.

use super::clip;
use super::feedback::Feedback;
use super::fragment::{place, tile_words};
use super::hadamard;
use super::tile::{Side, TILE_TOKENS, TileCodec};
use half::f16;

/// Asymmetric uniform codes of `bits` bits in groups of `group` elements.
pub struct Affine {
    /// Bits of a code: 2, 3 or 4.
    pub bits: usize,
    /// Elements that share a scale and a zero: 32 or 64.
    pub group: usize,
    /// Whether rows are rotated and ranges searched (`kf`).
    pub rotated: bool,
}

/// KIVI's 4-bit codec at its own group of 32.
pub static KIVI4: Affine = Affine { bits: 4, group: 32, rotated: false };
/// KIVI's 2-bit codec at its own group of 32.
pub static KIVI2: Affine = Affine { bits: 2, group: 32, rotated: false };
/// kvfold's 4-bit codec.
pub static KF4: Affine = Affine { bits: 4, group: 64, rotated: true };
/// kvfold's 3-bit codec.
pub static KF3: Affine = Affine { bits: 3, group: 64, rotated: true };
/// kvfold's 2-bit codec.
pub static KF2: Affine = Affine { bits: 2, group: 64, rotated: true };

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

    /// Whether it has an encoding of heads of `head_dim` channels.
    pub fn fits(&self, head_dim: usize) -> bool {
        let whole = head_dim > 0 && head_dim.is_multiple_of(self.group);
        whole && (!self.rotated || hadamard::fits(head_dim))
    }

    /// The code of an element.
    pub(crate) fn code(&self, x: f32, scale: f32, zero: f32) -> f32 {
        clip::code(x, scale, zero, self.levels())
    }

    /// Scales and zeros of all groups of a tile.
    fn fit_groups(&self, side: Side, rows: &[f32], head_dim: usize) -> Vec<(f16, f16)> {
        let d = head_dim;
        let fit = |index: usize| {
            let at = move |i: usize| match side {
                Side::Key => (index / d * self.group + i) * d + index % d,
                Side::Value => index % TILE_TOKENS * d + index / TILE_TOKENS * self.group + i,
            };
            let group = (0..self.group).map(move |i| rows[at(i)]);
            if self.rotated {
                return clip::clip(group, self.levels());
            }
            let extremes = (f32::INFINITY, f32::NEG_INFINITY);
            let (min, max) = group.fold(extremes, |(min, max), x| (min.min(x), max.max(x)));
            self.fit(min, max)
        };
        (0..TILE_TOKENS * d / self.group).map(fit).collect()
    }

    /// Encodes a tile, keys of rotated codecs with feedback.
    pub(super) fn encode_with(
        &self,
        feedback: Option<&Feedback>,
        side: Side,
        rows: &[f32],
        head_dim: usize,
        out: &mut [u8],
    ) {
        self.check(rows.len(), out.len(), head_dim);
        let d = head_dim;
        let mut rotated = Vec::new();
        let rows = if self.rotated {
            rotated.extend_from_slice(rows);
            rotated.chunks_exact_mut(d).for_each(hadamard::rotate);
            rotated.iter_mut().for_each(|x| *x = clip::limit(*x));
            if let (Some(feedback), Side::Key) = (feedback, side) {
                assert_eq!(self.group, TILE_TOKENS, "a channel a group");
                feedback.aim(self.levels(), &mut rotated);
            }
            &rotated
        } else {
            rows
        };

        let (scale_at, zero_at) = self.offsets(d);
        let fits = self.fit_groups(side, rows, d);
        for (g, (scale, zero)) in fits.iter().enumerate() {
            out[scale_at + 2 * g..][..2].copy_from_slice(&scale.to_le_bytes());
            out[zero_at + 2 * g..][..2].copy_from_slice(&zero.to_le_bytes());
        }

        let codes = &mut out[..scale_at];
        codes.fill(0);
        for (token, row) in rows.chunks_exact(d).enumerate() {
            for (channel, &x) in row.iter().enumerate() {
                let (scale, zero) = fits[self.group_of(side, d, token, channel)];
                let code = self.code(x, scale.to_f32(), zero.to_f32()) as u32;
                let place = place(side, self.bits, d, token, channel);
                for i in 0..self.bits {
                    let (word, bit) = place.of_bit(i);
                    codes[4 * word + bit / 8] |= ((code >> i & 1) << (bit % 8)) as u8;
                }
            }
        }
    }

    fn check(&self, rows: usize, bytes: usize, head_dim: usize) {
        assert!(self.fits(head_dim), "head_dim {head_dim}");
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
        self.encode_with(None, side, rows, head_dim, out);
    }

    fn decode(&self, side: Side, bytes: &[u8], head_dim: usize, rows: &mut [f32]) {
        self.check(rows.len(), bytes.len(), head_dim);
        let d = head_dim;
        let (scale_at, zero_at) = self.offsets(d);
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        for (token, row) in rows.chunks_exact_mut(d).enumerate() {
            for (channel, x) in row.iter_mut().enumerate() {
                let g = self.group_of(side, d, token, channel);
                let place = place(side, self.bits, d, token, channel);
                let code = (0..self.bits).fold(0, |code, i| {
                    let (word, bit) = place.of_bit(i);
                    code | (bytes[4 * word + bit / 8] >> (bit % 8) & 1) << i
                });
                *x = f32::from(code) * half(scale_at + 2 * g) + half(zero_at + 2 * g);
            }
            if self.rotated {
                hadamard::rotate(row);
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
        for codec in [&KIVI2, &KIVI4, &Affine { bits: 2, group: 64, rotated: false }] {
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

    /// Every number of a rotated tile becomes `code·scale + zero` of the nearest code.
    #[test]
    fn rotated_rows_are_stored_as_the_nearest_of_few_levels() {
        for codec in [&KF2, &KF3, &KF4] {
            for d in [64, 128, 256] {
                let x = rows(d, 7 + d as u32);
                let mut turned = x.clone();
                turned.chunks_exact_mut(d).for_each(hadamard::rotate);
                for side in [Side::Key, Side::Value] {
                    let mut bytes = vec![0xaa; codec.tile_bytes(d)];
                    let mut back = vec![0f32; x.len()];
                    codec.encode(side, &x, d, &mut bytes);
                    codec.decode(side, &bytes, d, &mut back);
                    back.chunks_exact_mut(d).for_each(hadamard::rotate);
                    let (scales, zeros) = codec.offsets(d);
                    let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
                    for (i, (&got, &want)) in back.iter().zip(&turned).enumerate() {
                        let (token, channel) = (i / d, i % d);
                        let g = match side {
                            Side::Key => token / 64 * d + channel,
                            Side::Value => channel / 64 * 64 + token,
                        };
                        let (scale, zero) = (half(scales + 2 * g), half(zeros + 2 * g));
                        let nearest = (0..=codec.levels() as u32)
                            .map(|code| (code as f32 * scale + zero - want).abs())
                            .fold(f32::INFINITY, f32::min);
                        let error = (got - want).abs();
                        assert!((error - nearest).abs() < 1e-3, "{side:?} {d} {error} {nearest}");
                    }
                }
            }
        }
    }

    /// Rotation and search serve what they are for: on channels of very different sizes
    /// values lose less at fewer bytes.
    #[test]
    fn values_with_outlying_channels_lose_less_than_with_kivi() {
        let d = 64;
        let mut x = rows(d, 5);
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= if i % d == 9 { 10.0 } else { 1.0 });
        let error = |codec: &Affine| {
            let mut bytes = vec![0; codec.tile_bytes(d)];
            let mut back = vec![0f32; x.len()];
            codec.encode(Side::Value, &x, d, &mut bytes);
            codec.decode(Side::Value, &bytes, d, &mut back);
            let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
            (x.iter().zip(&back).map(square).sum::<f64>(), bytes.len())
        };
        let (kivi, kf) = (error(&KIVI2), error(&KF2));
        assert!(kf.0 < 0.8 * kivi.0 && kf.1 < kivi.1, "{kf:?} {kivi:?}");
    }

    #[test]
    fn only_heads_of_whole_groups_are_encoded() {
        assert!(KIVI2.fits(32) && KIVI2.fits(96) && !KIVI2.fits(48) && !KIVI2.fits(0));
        assert!(KF2.fits(64) && KF2.fits(256) && !KF2.fits(32) && !KF2.fits(192));
    }
}
