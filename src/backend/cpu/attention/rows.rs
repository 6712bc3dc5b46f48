//! Products with a row-major tile: f16, bf16 and fp8 pages, read in place.

use super::affine::MAX_HEAD_DIM;
use crate::backend::cpu::simd::Simd;
use crate::codec::{Codec, TILE_TOKENS};

/// The first `tokens` rows of a row-major tile.
#[derive(Clone, Copy)]
pub(super) struct RowTile<'a> {
    bytes: &'a [u8],
    codec: Codec,
    tokens: usize,
    head_dim: usize,
}

impl<'a> RowTile<'a> {
    /// Views the bytes of a tile written by one of the float codecs.
    #[inline(always)]
    pub(super) fn new(codec: Codec, head_dim: usize, tokens: usize, bytes: &'a [u8]) -> Self {
        assert!(matches!(codec, Codec::F16 | Codec::Bf16 | Codec::Fp8));
        let size = if codec == Codec::Fp8 { 1 } else { 2 };
        assert!(bytes.len() >= tokens * head_dim * size && tokens <= TILE_TOKENS);
        assert!(head_dim.is_multiple_of(32) && head_dim <= MAX_HEAD_DIM);
        Self { bytes, codec, tokens, head_dim }
    }

    /// `LANES` channels of a token.
    ///
    /// # Safety
    /// `token < self.tokens` and `channel + LANES ≤ self.head_dim`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, token: usize, channel: usize) -> S::F {
        let at = token * self.head_dim + channel;
        // SAFETY: within the rows that `new` checked.
        unsafe {
            match self.codec {
                Codec::F16 => s.load_f16(self.bytes.as_ptr().add(2 * at)),
                Codec::Bf16 => s.load_bf16(self.bytes.as_ptr().add(2 * at)),
                _ => s.load_fp8(self.bytes.as_ptr().add(at)),
            }
        }
    }

    /// `out[token] = Σ_c k[token, c]·q[c]` for each head.
    #[inline(always)]
    pub(super) fn scores<S: Simd, const G: usize>(
        &self,
        s: S,
        q: [&[f32; MAX_HEAD_DIM]; G],
        out: &mut [[f32; TILE_TOKENS]; G],
    ) {
        for first in (0..self.tokens).step_by(4) {
            let mut acc = [[s.splat(0.0); 4]; G];
            for c in (0..self.head_dim).step_by(S::LANES) {
                let mut k = [s.splat(0.0); 4];
                // SAFETY: the last token is repeated rather than passed.
                unsafe {
                    for (j, k) in k.iter_mut().enumerate() {
                        *k = self.load(s, (first + j).min(self.tokens - 1), c);
                    }
                    for g in 0..G {
                        let x = s.load(q[g].as_ptr().add(c));
                        for j in 0..4 {
                            acc[g][j] = s.fma(k[j], x, acc[g][j]);
                        }
                    }
                }
            }
            let n = (self.tokens - first).min(4);
            for g in 0..G {
                let sums = s.horizontal_sum4(acc[g]);
                match out[g][first..].first_chunk_mut::<4>() {
                    Some(four) if n == 4 => *four = sums,
                    _ => out[g][first..first + n].copy_from_slice(&sums[..n]),
                }
            }
        }
    }

    /// `out[c] += Σ_token p[token]·v[token, c]` for each head.
    #[inline(always)]
    pub(super) fn accumulate<S: Simd, const G: usize>(
        &self,
        s: S,
        p: &[[f32; TILE_TOKENS]; G],
        out: &mut [[f32; MAX_HEAD_DIM]; G],
    ) {
        for c in (0..self.head_dim).step_by(2 * S::LANES) {
            let mut acc = [[s.splat(0.0); 2]; G];
            // SAFETY: head_dim is a multiple of 2·LANES; tokens are in range.
            unsafe {
                for g in 0..G {
                    let from = out[g].as_ptr().add(c);
                    acc[g] = [s.load(from), s.load(from.add(S::LANES))];
                }
                for token in 0..self.tokens {
                    let v0 = self.load(s, token, c);
                    let v1 = self.load(s, token, c + S::LANES);
                    for g in 0..G {
                        let w = s.splat(p[g][token]);
                        acc[g] = [s.fma(v0, w, acc[g][0]), s.fma(v1, w, acc[g][1])];
                    }
                }
                for g in 0..G {
                    let to = out[g].as_mut_ptr().add(c);
                    s.store(to, acc[g][0]);
                    s.store(to.add(S::LANES), acc[g][1]);
                }
            }
        }
    }

    /// Widens the rows to f32, `out[token][channel]`.
    #[inline(always)]
    pub(super) fn decode<S: Simd>(&self, s: S, out: &mut [f32]) {
        assert!(out.len() >= self.tokens * self.head_dim);
        for token in 0..self.tokens {
            for c in (0..self.head_dim).step_by(S::LANES) {
                // SAFETY: in range of the tile and of `out`.
                unsafe {
                    let to = out.as_mut_ptr().add(token * self.head_dim + c);
                    s.store(to, self.load(s, token, c));
                }
            }
        }
    }
}
