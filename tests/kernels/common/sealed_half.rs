//! The keys or values of a sealed page, decoded one number at a time.

use half::f16;
use kvfold::codec::affine::Affine;
use kvfold::codec::feedback::Feedback;
use kvfold::codec::{Codec, Side, TILE_TOKENS, TileCodec};
use std::cell::OnceCell;

/// Half a page after a round trip through its codec.
pub struct SealedHalf {
    pub codec: Codec,
    /// What attention sees, `[64][head_dim]`: of rotated codecs rotated back.
    pub rows: Vec<f32>,
    side: Side,
    head_dim: usize,
    bytes: Vec<u8>,
    elements: OnceCell<Vec<Element>>,
}

/// An element of an affine tile, as it is stored: it is `code · scale + zero`.
#[derive(Clone, Copy)]
pub struct Element {
    pub code: f64,
    pub scale: f64,
    pub zero: f64,
}

impl SealedHalf {
    /// Seals 64 rows.
    pub fn new(
        codec: Codec,
        feedback: Option<&Feedback>,
        side: Side,
        rows: &[f32],
        head_dim: usize,
    ) -> Self {
        let mut bytes = vec![0; codec.tile().tile_bytes(head_dim)];
        codec.encode(feedback, side, rows, head_dim, &mut bytes);
        Self::of_bytes(codec, side, bytes, head_dim)
    }

    fn of_bytes(codec: Codec, side: Side, bytes: Vec<u8>, head_dim: usize) -> Self {
        let mut rows = vec![0f32; TILE_TOKENS * head_dim];
        codec.tile().decode(side, &bytes, head_dim, &mut rows);
        Self { codec, rows, side, head_dim, bytes, elements: OnceCell::new() }
    }

    /// A row of an affine tile as it is stored.
    pub fn elements(&self, token: usize) -> Option<&[Element]> {
        let affine = self.codec.affine()?;
        let all = self.elements.get_or_init(|| self.read(affine));
        Some(&all[token * self.head_dim..][..self.head_dim])
    }

    fn read(&self, affine: &Affine) -> Vec<Element> {
        let (d, (scales, zeros)) = (self.head_dim, affine.offsets(self.head_dim));
        // With scales of 1 and zeros of 0 codes are all that is left of the rows.
        let mut bytes = self.bytes.clone();
        let one = f16::ONE.to_le_bytes();
        bytes[scales..zeros].chunks_exact_mut(2).for_each(|scale| scale.copy_from_slice(&one));
        bytes[zeros..].fill(0);
        let mut codes = vec![0f32; TILE_TOKENS * d];
        let stored = Affine { bits: affine.bits, group: affine.group, rotated: false };
        stored.decode(self.side, &bytes, d, &mut codes);

        let parameter = |from: usize, group: usize| {
            let at = from + 2 * group;
            f16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]).to_f64()
        };
        let element = |(i, &code): (usize, &f32)| {
            let (token, channel) = (i / d, i % d);
            let group = match self.side {
                Side::Key => token / affine.group * d + channel,
                Side::Value => channel / affine.group * TILE_TOKENS + token,
            };
            let (scale, zero) = (parameter(scales, group), parameter(zeros, group));
            Element { code: f64::from(code), scale, zero }
        };
        codes.iter().enumerate().map(element).collect()
    }

    /// The same with scales that are off by a factor.
    pub fn with_scales_times(&self, factor: f32) -> Option<Self> {
        let (scales, zeros) = self.codec.affine()?.offsets(self.head_dim);
        let mut bytes = self.bytes.clone();
        for scale in bytes[scales..zeros].chunks_exact_mut(2) {
            let x = f16::from_le_bytes([scale[0], scale[1]]).to_f32() * factor;
            scale.copy_from_slice(&f16::from_f32(x).to_le_bytes());
        }
        Some(Self::of_bytes(self.codec, self.side, bytes, self.head_dim))
    }
}

/// Elements give the rows that the codec decodes.
#[test]
fn elements_are_those_of_the_codec() {
    for codec in [Codec::Kivi2, Codec::Kivi4, Codec::Kf4, Codec::Kf3, Codec::Kf2] {
        for side in [Side::Key, Side::Value] {
            let rows: Vec<f32> = (0..TILE_TOKENS * 64).map(|i| (i as f32 * 0.7).sin()).collect();
            let half = SealedHalf::new(codec, None, side, &rows, 64);
            for (token, want) in half.rows.chunks_exact(64).enumerate() {
                let elements = half.elements(token).unwrap();
                let mut row: Vec<f32> =
                    elements.iter().map(|x| (x.code * x.scale + x.zero) as f32).collect();
                if codec.rotated() {
                    kvfold::codec::hadamard::rotate(&mut row);
                }
                let far = row.iter().zip(want).any(|(a, b)| (a - b).abs() > 1e-5);
                assert!(!far, "{codec:?} {side:?}: {row:?}, want {want:?}");
            }
        }
    }
}
