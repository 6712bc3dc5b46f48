//! Attention in float64, one number at a time, straight from DESIGN rule 1.

use kvfold::backend::{KvGroup, Rope};
use kvfold::codec::{Side, TILE_TOKENS};
use std::cell::RefCell;
use std::collections::HashMap;

/// Which tokens a query may see.
#[derive(Clone, Copy)]
pub struct Mask {
    /// None behind its own.
    pub causal: bool,
    /// The last ones up to its own only.
    pub window: Option<usize>,
}

/// What one stream has kept: rows already rounded to the hot type.
#[derive(Clone, Default)]
pub struct Stream {
    /// Keys, `head_dim` a token.
    pub keys: Vec<Vec<f32>>,
    /// Values.
    pub values: Vec<Vec<f32>>,
    /// Tokens evicted in place.
    pub dead: Vec<usize>,
    /// Pages after a round trip through the codec: whole pages never change.
    sealed: RefCell<HashMap<(Side, usize), Vec<f32>>>,
}

impl Stream {
    /// Keys (or values) of the token at kept index `t`, as the query at kept
    /// index `query` reads them.
    fn row(&self, group: &KvGroup, side: Side, t: usize, query: usize) -> (Vec<f32>, bool) {
        let rows = if side == Side::Key { &self.keys } else { &self.values };
        let sinks = if group.format.seals() { group.sinks } else { 0 };
        let sealed = group.format.seals() && t >= sinks && {
            let (i, page) = (query.saturating_sub(sinks), (t - sinks) / TILE_TOKENS);
            page < (i / TILE_TOKENS).saturating_sub(group.hot_window / TILE_TOKENS)
        };
        if !sealed {
            return (rows[t].clone(), false);
        }
        let first = sinks + (t - sinks) / TILE_TOKENS * TILE_TOKENS;
        let mut cache = self.sealed.borrow_mut();
        let page = cache.entry((side, first)).or_insert_with(|| {
            let page = rows[first..first + TILE_TOKENS].concat();
            let codec = if side == Side::Key { group.format.key } else { group.format.value };
            let mut bytes = vec![0; codec.tile().tile_bytes(group.head_dim)];
            let mut back = vec![0f32; page.len()];
            codec.tile().encode(side, &page, group.head_dim, &mut bytes);
            codec.tile().decode(side, &bytes, group.head_dim, &mut back);
            back
        });
        (page[(t - first) * group.head_dim..][..group.head_dim].to_vec(), true)
    }

    /// Natural-log logits of the tokens that one query head sees, by kept index.
    #[allow(clippy::too_many_arguments)]
    fn logits(
        &self,
        group: &KvGroup,
        q: &[f32],
        query: usize,
        scale: f32,
        mask: Mask,
        shift: i32,
        rope: &Rope,
    ) -> Vec<(usize, f64)> {
        let first = mask.window.map_or(0, |w| (query + 1).saturating_sub(w));
        let end = if mask.causal { query + 1 } else { self.keys.len() };
        let q: Vec<f64> = q.iter().map(|&x| f64::from(x)).collect();
        let mut logits = Vec::new();
        for t in (first..end).filter(|t| !self.dead.contains(t)) {
            let (key, sealed) = self.row(group, Side::Key, t, query);
            let mut key: Vec<f64> = key.iter().map(|&x| f64::from(x)).collect();
            if sealed && shift != 0 {
                rotate(&mut key, rope, f64::from(shift));
            }
            let dot: f64 = key.iter().zip(&q).map(|(k, q)| k * q).sum();
            logits.push((t, dot * f64::from(scale)));
        }
        logits
    }

    /// Output row and base-2 log-sum-exp of one query head.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &self,
        group: &KvGroup,
        q: &[f32],
        query: usize,
        scale: f32,
        mask: Mask,
        shift: i32,
        rope: &Rope,
    ) -> (Vec<f64>, f64) {
        let logits = self.logits(group, q, query, scale, mask, shift, rope);
        let max = logits.iter().map(|l| l.1).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|l| (l.1 - max).exp()).sum();
        let mut out = vec![0f64; group.head_dim];
        for (t, logit) in logits {
            let (value, _) = self.row(group, Side::Value, t, query);
            for (o, v) in out.iter_mut().zip(value) {
                *o += (logit - max).exp() / total * f64::from(v);
            }
        }
        (out, (max + total.ln()) / std::f64::consts::LN_2)
    }

    /// Probabilities of all kept tokens for one query head; 0 for those that it does
    /// not see.
    #[allow(clippy::too_many_arguments)]
    pub fn probabilities(
        &self,
        group: &KvGroup,
        q: &[f32],
        query: usize,
        scale: f32,
        mask: Mask,
        shift: i32,
        rope: &Rope,
    ) -> Vec<f64> {
        let logits = self.logits(group, q, query, scale, mask, shift, rope);
        let max = logits.iter().map(|l| l.1).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|l| (l.1 - max).exp()).sum();
        let mut p = vec![0f64; self.keys.len()];
        logits.iter().for_each(|(t, logit)| p[*t] = (logit - max).exp() / total);
        p
    }
}

fn rotate(head: &mut [f64], rope: &Rope, position: f64) {
    let (low, high) = head.split_at_mut(rope.inv_freq.len());
    for ((a, b), freq) in low.iter_mut().zip(high).zip(&rope.inv_freq) {
        let (sin, cos) = (position * freq).sin_cos();
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
