//! Sealing: a 16-bit page becomes codes, with vectors.
//!
//! The bytes are those of [`Affine`](crate::codec::affine::Affine)'s scalar encoder: the same subtraction, division
//! and rounding of each element (ARCHITECTURE, rule 5).

mod feedback;
mod fit;
mod job;
mod pack;

use super::attention::rotate_columns;
use super::simd::{Kernel, Level, Simd, dispatch};
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, Side, TILE_TOKENS};
use fit::{Groups, Lanes, limit};
use half::f16;
use job::Seal;

/// A tile to be encoded.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// The 16-bit type in which its rows stand.
    pub hot: Codec,
    /// Its rows.
    pub bytes: &'a [u8],
    /// Keys or values.
    pub side: Side,
    /// Channels of a row.
    pub head_dim: usize,
    /// What keys of rotated codecs are encoded with.
    pub feedback: Option<&'a Feedback>,
}

/// Encodes a tile.
pub(super) fn seal(level: Level, tile: Tile<'_>, codec: Codec, out: &mut [u8]) {
    let Tile { hot, bytes: from, side, head_dim, feedback } = tile;
    if let Some(codec) = codec.affine() {
        return dispatch(level, Seal { hot, from, codec, side, head_dim, feedback, out });
    }
    let mut rows = vec![0f32; TILE_TOKENS * head_dim];
    hot.tile().decode(side, from, head_dim, &mut rows);
    codec.encode(None, side, &rows, head_dim, out);
}

impl Kernel for Seal<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (scales, zeros) = self.codec.offsets(self.head_dim);
        assert!(self.codec.fits(self.head_dim));
        assert!(self.from.len() >= 2 * TILE_TOKENS * self.head_dim && self.hot.is_16_bit());
        assert!(self.out.len() == zeros + (zeros - scales));
        let mut rows = self.rows(s);
        let groups = if self.codec.rotated {
            self.rotate_and_search(s, &mut rows)
        } else {
            Groups::of_extremes(s, &self, &rows)
        };
        self.write(&groups);
        match self.side {
            Side::Key => self.encode_keys(s, &rows, &groups),
            Side::Value => self.encode_values(s, &rows, &groups),
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

    /// Rotates the rows, and fits their groups.
    #[inline(always)]
    fn rotate_and_search<S: Simd>(&self, s: S, rows: &mut [f32]) -> Groups {
        let d = self.head_dim;
        let mut columns = vec![0f32; rows.len()];
        transpose(rows, d, &mut columns);
        rotate_columns(s, &mut columns, TILE_TOKENS);
        for x in columns.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk is one vector.
            unsafe { s.store(x.as_mut_ptr(), limit(s, s.load(x.as_ptr()))) }
        }
        if let (Some(feedback), Side::Key) = (self.feedback, self.side) {
            let groups = self.aim(s, &mut columns, feedback);
            transpose(&columns, TILE_TOKENS, rows);
            return groups;
        }
        transpose(&columns, TILE_TOKENS, rows);
        let lanes = match self.side {
            Side::Key => Lanes { x: rows, width: d },
            Side::Value => Lanes { x: &columns, width: TILE_TOKENS },
        };
        Groups::of_search(s, self.codec, &lanes)
    }

    /// Writes the scale and the zero of each group.
    fn write(&mut self, groups: &Groups) {
        let (scales, zeros) = self.codec.offsets(self.head_dim);
        for (at, numbers) in [(scales, &groups.scales), (zeros, &groups.zeros)] {
            let to = self.out[at..].as_chunks_mut::<2>().0;
            to.iter_mut().zip(numbers).for_each(|(to, x)| *to = f16::from_f32(*x).to_le_bytes());
        }
    }
}

/// `to[column][row] = from[row][column]`, in blocks that fit a vector each.
#[inline(always)]
fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    assert!(to.len() == from.len() && columns.is_multiple_of(8) && rows.is_multiple_of(8));
    for row in (0..rows).step_by(8) {
        for column in (0..columns).step_by(8) {
            for (i, j) in (0..8).flat_map(|j| (0..8).map(move |i| (i, j))) {
                to[(column + j) * rows + row + i] = from[(row + i) * columns + column + j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{feedback, hadamard};
    use half::bf16;

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
                    let fed = hadamard::fits(d).then(|| feedback::tests::example(d));
                    for codec in Codec::ALL.into_iter().filter(|c| c.fits(d)) {
                        let mut cases = vec![(Side::Key, None), (Side::Value, None)];
                        cases.extend(
                            fed.iter().filter(|_| codec.rotated()).map(|f| (Side::Key, Some(f))),
                        );
                        for (side, feedback) in cases {
                            let mut rows = vec![0f32; TILE_TOKENS * d];
                            hot.tile().decode(side, &bytes, d, &mut rows);
                            let mut want = vec![0xaa; codec.tile().tile_bytes(d)];
                            codec.encode(feedback, side, &rows, d, &mut want);
                            for level in Level::ALL.into_iter().filter(|l| l.available()) {
                                let mut got = vec![0x55; want.len()];
                                let tile = Tile { hot, bytes: &bytes, side, head_dim: d, feedback };
                                seal(level, tile, codec, &mut got);
                                let (level, fed) = (level.name(), feedback.is_some());
                                assert!(
                                    got == want,
                                    "{what} {d} {hot} {codec} {side:?} {level} {fed}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
