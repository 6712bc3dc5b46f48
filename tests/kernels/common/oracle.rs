//! Attention in float64, one number at a time, straight from ARCHITECTURE, rule 1.

use super::sealed_half::SealedHalf;
use kvfold::backend::{KvGroup, Rope};
use kvfold::codec::feedback::Feedback;
use kvfold::codec::{KvFormat, Side, TILE_TOKENS};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// One query head, and what it sees of a stream.
pub struct Query<'a> {
    pub group: &'a KvGroup,
    /// Of the stream.
    pub format: KvFormat,
    /// Of the stream.
    pub feedback: Option<&'a Feedback>,
    /// `[head_dim]`.
    pub q: &'a [f32],
    /// Its kept index.
    pub index: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// It sees no token behind its own.
    pub causal: bool,
    /// It sees the last ones up to its own only.
    pub window: Option<usize>,
    /// Positions that sealed pages are moved by.
    pub shift: i32,
    pub rope: &'a Rope,
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
    /// Pages at the front that every query reads sealed, if any are sealed.
    pub front: usize,
    /// Positions that the tokens of each of them are moved by.
    pub shifts: Vec<i32>,
    /// Sealed halves of pages by their first token: whole pages never change.
    sealed: RefCell<HashMap<(Side, usize), Rc<SealedHalf>>>,
}

impl Stream {
    /// The page that holds kept index `t`, by its first token, if the query reads it sealed.
    pub fn sealed_page(&self, t: usize, query: &Query<'_>) -> Option<usize> {
        let group = query.group;
        let sinks = if group.format.seals() { group.sinks } else { 0 };
        let page = t.checked_sub(sinks)? / TILE_TOKENS;
        let i = query.index.saturating_sub(sinks) / TILE_TOKENS;
        let recent = i.saturating_sub(group.hot_window / TILE_TOKENS);
        let sealed = group.format.seals() && page < recent.max(self.front);
        sealed.then_some(sinks + page * TILE_TOKENS)
    }

    /// The keys or values of the page whose first token is `first`, sealed.
    pub fn sealed_half(&self, side: Side, first: usize, query: &Query<'_>) -> Rc<SealedHalf> {
        let seal = || {
            let page = self.rows(side)[first..first + TILE_TOKENS].concat();
            let KvFormat { key, value, .. } = query.format;
            let codec = if side == Side::Key { key } else { value };
            let d = query.group.head_dim();
            Rc::new(SealedHalf::new(codec, query.feedback, side, &page, d))
        };
        self.sealed.borrow_mut().entry((side, first)).or_insert_with(seal).clone()
    }

    /// Has the scales of a sealed page off by a factor, as a kernel that errs may have them.
    pub fn scale_page(&self, side: Side, first: usize, query: &Query<'_>, factor: f32) {
        if let Some(half) = self.sealed_half(side, first, query).with_scales_times(factor) {
            self.sealed.borrow_mut().insert((side, first), Rc::new(half));
        }
    }

    /// Keys or values by kept index.
    pub fn rows(&self, side: Side) -> &[Vec<f32>] {
        if side == Side::Key { &self.keys } else { &self.values }
    }

    /// The key or value at kept index `t` as a query reads it.
    fn row(&self, side: Side, t: usize, query: &Query<'_>) -> Vec<f32> {
        let d = query.group.head_dim();
        match self.sealed_page(t, query) {
            Some(first) => {
                self.sealed_half(side, first, query).rows[(t - first) * d..][..d].to_vec()
            }
            None => self.rows(side)[t].clone(),
        }
    }

    /// Kept indices of the tokens that a query sees.
    pub fn seen(&self, query: &Query<'_>) -> impl Iterator<Item = usize> {
        let first = query.window.map_or(0, |w| (query.index + 1).saturating_sub(w));
        let end = if query.causal { query.index + 1 } else { self.keys.len() };
        (first..end).filter(|t| !self.dead.contains(t))
    }

    /// Positions by which the token at `t` is seen moved.
    pub fn shift_of(&self, t: usize, query: &Query<'_>) -> i32 {
        let sinks = if query.group.format.seals() { query.group.sinks } else { 0 };
        let page = t.checked_sub(sinks).map(|i| i / TILE_TOKENS);
        let shift = page.and_then(|page| self.shifts.get(page)).copied().unwrap_or(0);
        shift + if self.sealed_page(t, query).is_some() { query.shift } else { 0 }
    }

    /// Softmax numerators of the tokens that a query sees, by kept index; their sum and the
    /// largest logit.
    fn softmax(&self, query: &Query<'_>) -> (Vec<(usize, f64)>, f64, f64) {
        let mut weights = Vec::new();
        for t in self.seen(query) {
            let key = self.row(Side::Key, t, query);
            let mut key: Vec<f64> = key.iter().map(|&x| f64::from(x)).collect();
            let shift = self.shift_of(t, query);
            if shift != 0 {
                rotate(&mut key, query.rope, f64::from(shift));
            }
            let dot: f64 = key.iter().zip(query.q).map(|(k, &q)| k * f64::from(q)).sum();
            weights.push((t, dot * f64::from(query.scale)));
        }
        let max = weights.iter().map(|w| w.1).fold(f64::NEG_INFINITY, f64::max);
        weights.iter_mut().for_each(|w| w.1 = (w.1 - max).exp());
        let total = weights.iter().map(|w| w.1).sum();
        (weights, total, max)
    }

    /// Output row and base-2 log-sum-exp.
    pub fn attend(&self, query: &Query<'_>) -> (Vec<f64>, f64) {
        let (weights, total, max) = self.softmax(query);
        let mut out = vec![0f64; query.group.head_dim()];
        for (t, weight) in weights {
            let value = self.row(Side::Value, t, query);
            for (o, v) in out.iter_mut().zip(value) {
                *o += weight / total * f64::from(v);
            }
        }
        (out, (max + total.ln()) / std::f64::consts::LN_2)
    }

    /// Probabilities of all kept tokens; 0 for those that the query does not see.
    pub fn probabilities(&self, query: &Query<'_>) -> Vec<f64> {
        let (weights, total, _) = self.softmax(query);
        let mut p = vec![0f64; self.keys.len()];
        weights.iter().for_each(|(t, weight)| p[*t] = weight / total);
        p
    }
}

pub fn rotate(head: &mut [f64], rope: &Rope, position: f64) {
    let (low, high) = head.split_at_mut(rope.inv_freq.len());
    for ((a, b), freq) in low.iter_mut().zip(high).zip(&rope.inv_freq) {
        let (sin, cos) = (position * freq).sin_cos();
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
