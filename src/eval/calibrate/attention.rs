//! What one codec on one side of one head changes in the output of attention.

use super::options::{CalibrateOptions, first_query};
use crate::backend::Attend;
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, Side, TILE_TOKENS};
use crate::error::Result;
use crate::model::Attended;
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Keys, values.
pub(super) const SIDES: usize = 2;

/// `count` queries, evenly spread over those of a window that see sealed pages.
pub(super) fn queries(options: &CalibrateOptions, count: usize) -> Vec<usize> {
    let first = first_query(options.sinks, options.hot_window);
    let spread = options.context - first;
    (0..count).map(|i| first + (2 * i + 1) * spread / (2 * count)).collect()
}

/// `[q heads | k heads | v heads]` of a range of tokens, after RoPE, a row of `cols` each.
pub(super) fn rows(seen: &dyn Attended, tokens: Range<usize>, cols: usize) -> Result<Vec<f32>> {
    let mut rows = vec![0f32; tokens.len() * cols];
    for (row, out) in tokens.zip(rows.chunks_exact_mut(cols)) {
        seen.qkv(row, out)?;
    }
    Ok(rows)
}

/// A KV head and its queries.
pub(super) struct Head<'a> {
    /// `[tokens][q heads | k heads | v heads]`, after RoPE.
    pub qkv: &'a [f32],
    /// Columns of it.
    pub cols: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub d: usize,
    /// Which KV head.
    pub kv_head: usize,
    /// What its keys are encoded with.
    pub feedback: &'a Feedback,
}

impl Head<'_> {
    /// How outputs change: `[side][codec][query][heads · d]`, 0 in the heads of other
    /// KV heads.
    pub(super) fn errors(
        &self,
        call: &Attend,
        queries: &[usize],
        options: &CalibrateOptions,
        codecs: &[Codec],
    ) -> Vec<f32> {
        let column = |side: Side| {
            let kinds = if side == Side::Key { self.heads } else { self.heads + self.kv_heads };
            (kinds + self.kv_head) * self.d
        };
        let [keys, values] = [Side::Key, Side::Value].map(|side| {
            let rows = self.qkv.chunks_exact(self.cols);
            let rows = rows.flat_map(|row| &row[column(side)..][..self.d]);
            rows.map(|x| f16::from_f32(*x).to_f32()).collect::<Vec<_>>()
        });
        let stored = |side: Side, rows: &[f32]| -> Vec<Vec<f32>> {
            codecs.par_iter().map(|codec| self.stored(*codec, side, rows, options.sinks)).collect()
        };
        let (stored_keys, stored_values) = (stored(Side::Key, &keys), stored(Side::Value, &values));

        let (group, width) = (self.heads / self.kv_heads, self.heads * self.d);
        let mut rows = vec![0f32; SIDES * codecs.len() * queries.len() * width];
        let changes: Vec<_> = (0..queries.len() * group)
            .into_par_iter()
            .map(|i| {
                let (query, head) = (queries[i / group], self.kv_head * group + i % group);
                let q = &self.qkv[query * self.cols + head * self.d..][..self.d];
                let first = call.window.map_or(0, |w| (query + 1).saturating_sub(w));
                let sealed =
                    (query - options.sinks) / TILE_TOKENS - options.hot_window / TILE_TOKENS;
                let view = View {
                    q,
                    d: self.d,
                    scale: call.scale,
                    first,
                    query,
                    sealed: options.sinks..options.sinks + sealed * TILE_TOKENS,
                };
                let plain = view.weights(&keys, &keys);
                let out = view.output(&plain, &values, &values);
                let change = |other: Vec<f32>| other.iter().zip(&out).map(|(a, b)| a - b).collect();
                let by_keys = stored_keys.iter().map(|stored| {
                    change(view.output(&view.weights(&keys, stored), &values, &values))
                });
                let by_values =
                    stored_values.iter().map(|stored| change(view.output(&plain, &values, stored)));
                by_keys.chain(by_values).collect::<Vec<Vec<f32>>>()
            })
            .collect();
        for (i, changes) in changes.iter().enumerate() {
            let head = self.kv_head * group + i % group;
            for (variant, change) in changes.iter().enumerate() {
                let row = variant * queries.len() + i / group;
                rows[row * width + head * self.d..][..self.d].copy_from_slice(change);
            }
        }
        rows
    }

    /// Rows as a codec gives them back; sinks and what fills no page stay as they are.
    fn stored(&self, codec: Codec, side: Side, rows: &[f32], sinks: usize) -> Vec<f32> {
        let mut rows = rows.to_vec();
        let mut bytes = vec![0; codec.tile().tile_bytes(self.d)];
        for page in rows[sinks * self.d..].chunks_exact_mut(TILE_TOKENS * self.d) {
            codec.encode(Some(self.feedback), side, page, self.d, &mut bytes);
            codec.tile().decode(side, &bytes, self.d, page);
        }
        rows
    }
}

/// What one query sees.
struct View<'a> {
    q: &'a [f32],
    d: usize,
    scale: f32,
    first: usize,
    query: usize,
    sealed: Range<usize>,
}

impl View<'_> {
    /// The row of a token: of `stored` where it is sealed.
    fn row<'r>(&self, token: usize, plain: &'r [f32], stored: &'r [f32]) -> &'r [f32] {
        let rows = if self.sealed.contains(&token) { stored } else { plain };
        &rows[token * self.d..][..self.d]
    }

    /// Softmax over the tokens that it sees.
    fn weights(&self, plain: &[f32], stored: &[f32]) -> Vec<f32> {
        let logit = |token| {
            let products = self.row(token, plain, stored).iter().zip(self.q).map(|(k, q)| k * q);
            products.sum::<f32>() * self.scale
        };
        let mut weights: Vec<f32> = (self.first..=self.query).map(logit).collect();
        let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|w| *w = (*w - max).exp());
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        weights
    }

    /// The weighted sum of values.
    fn output(&self, weights: &[f32], plain: &[f32], stored: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; self.d];
        for (token, weight) in (self.first..).zip(weights) {
            let row = self.row(token, plain, stored);
            out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::LayerIndex;

    /// A head that reads its values exactly where only keys are coarse, and no sealed
    /// token where the window is short.
    #[test]
    fn errors_shrink_with_bits_and_vanish_without_sealed_tokens() {
        let options = CalibrateOptions { context: 448, ..CalibrateOptions::new(3.0) };
        let (heads, kv_heads, d) = (4, 2, 64);
        let cols = (heads + 2 * kv_heads) * d;
        let qkv: Vec<f32> = (0..options.context * cols)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_769) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .collect();
        let feedback = &Feedback::new(&vec![0.0; d * d], d);
        let head = Head { qkv: &qkv, cols, heads, kv_heads, d, kv_head: 1, feedback };
        let mut call = Attend {
            at: LayerIndex { group: 0, layer: 0 },
            heads,
            scale: 0.125,
            causal: true,
            window: None,
        };
        let queries = queries(&options, 8);
        assert!(queries.iter().all(|q| (196..448).contains(q)));
        let codecs = [Codec::Kf2, Codec::Kf3, Codec::Kf4];
        let rows = head.errors(&call, &queries, &options, &codecs);
        let width = heads * d;
        let size = |variant: usize| -> f32 {
            let rows = &rows[variant * queries.len() * width..][..queries.len() * width];
            // Query heads 0 and 1 read the other KV head.
            assert!(rows.chunks_exact(width).all(|row| row[..2 * d].iter().all(|x| *x == 0.0)));
            rows.iter().map(|x| x * x).sum()
        };
        for side in 0..SIDES {
            let [two, three, four] = [0, 1, 2].map(|codec| size(side * 3 + codec));
            assert!(two > 2.0 * three && three > 2.0 * four && four > 0.0, "{two} {three} {four}");
        }
        call.window = Some(64);
        let rows = head.errors(&call, &queries, &options, &codecs);
        assert!(rows.iter().all(|x| *x == 0.0));
    }
}
