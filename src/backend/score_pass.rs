//! Score passes: what eviction policies need to know of attention, computed anew from
//! a call's saved log-sum-exps. No matrix of queries × tokens is ever stored.
//!
//! With s the base-2 logit, query i gives the token at kept index j in query head h
//! the probability
//!
//! ```text
//! p(i, j, h) = 2^(s(i, j, h) − lse(i, h))     0 if the query does not see the token
//! ```
//!
//! where each query reads the page of j in the form, sealed or hot, that it attended
//! to (ARCHITECTURE, rule 1). The G query heads of a KV head become one number before
//! anything is evicted, since the group shares what is kept.
//!
//! | pass | of a kept token, or a query | policies |
//! |---|---|---|
//! | [`Sum`](Score::Sum), last w, [`Mean`](Heads::Mean) | `1/G Σ_h Σ_i p` | SnapKV (Li et al. 2024), PyramidKV (Cai et al. 2024), Finch (Corallo and Papotti 2024); w = 1: TOVA (Oren et al. 2024), which then takes the mean over KV heads too |
//! | [`Sum`](Score::Sum), all, [`Mean`](Heads::Mean) | `1/G Σ_h Σ_i p` | H2O (Zhang et al. 2023), its prefill form ObservedAttention in kvpress, and FastGen (Ge et al. 2023), whose recovery is a masked sum of these |
//! | [`Sum`](Score::Sum), [`Max`](Heads::Max) | `max_h Σ_i p` | the same where one head's need is enough to keep a token |
//! | [`Max`](Score::Max) | `max_h max_i p` | KVzip (Kim et al. 2025) and the labels of KVzap; Scissorhands' pivotal tokens (Liu et al. 2023) |
//! | [`TopHeads::Group`] | `argmax_j 1/G Σ_h p` | the one token that a step reads most |
//! | [`TopHeads::Each`] | `argmax_j p`, a head | retrieval heads (Wu et al. 2024) |
//!
//! Sums are over the queries of one call. What SnapKV pools, what H2O divides by the
//! number of queries that could see a token, and what accumulates from chunk to chunk
//! is the policy's.

use crate::error::{Error, Result};
use std::ops::Range;

/// How the query heads of a KV head become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// The mean of their sums.
    Mean,
    /// The largest of their sums.
    Max,
}

/// A reduction to one number a kept token and KV head, over the last `last` queries of
/// each sequence: all, if it has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Sums over queries.
    Sum {
        /// Queries from each sequence's end; `usize::MAX`: all.
        last: usize,
        /// What becomes of the heads' sums.
        heads: Heads,
    },
    /// The largest probability over queries and heads.
    Max {
        /// Queries from each sequence's end; `usize::MAX`: all.
        last: usize,
    },
}

impl Score {
    /// Queries from each sequence's end that count.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there are none.
    pub fn last(self) -> Result<usize> {
        match self {
            Score::Sum { last: 0, .. } | Score::Max { last: 0 } => {
                Err(Error::misuse("last", "0 queries give no scores"))
            }
            Score::Sum { last, .. } | Score::Max { last } => Ok(last),
        }
    }
}

/// Whose most probable token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopHeads {
    /// That of each KV head, by the mean over its query heads.
    Group,
    /// That of each query head.
    Each,
}

/// The most probable token of a query; the one with the lowest index among equals.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Top {
    /// Its probability; 0 if the query sees nothing.
    pub value: f32,
    /// Its kept index, or [`Top::NOTHING`].
    pub index: u32,
}

impl Top {
    /// The index if the query sees nothing.
    pub const NOTHING: u32 = u32::MAX;

    /// Nothing seen so far.
    pub const NONE: Top = Top { value: 0.0, index: Self::NOTHING };

    /// The better of two.
    #[must_use]
    pub fn or(self, other: Top) -> Top {
        let better =
            other.value > self.value || (other.value == self.value && other.index < self.index);
        if better { other } else { self }
    }
}

/// Where the scores of each (sequence, KV head) lie in one list: side by side, those of
/// a sequence's heads in order, each as long as its stream keeps tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    kv_heads: usize,
    /// Where each begins, and the end.
    starts: Vec<usize>,
}

impl Spans {
    /// The spans of one layer. `kept`: of each sequence, the tokens that each stream of the
    /// KV group keeps; one number where all keep the same.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a ragged sequence that lacks a stream of the layer.
    pub fn new<'a>(
        kept: impl Iterator<Item = &'a [u32]>,
        kv_heads: usize,
        layer: usize,
    ) -> Result<Self> {
        let mut starts = vec![0];
        let mut at = 0;
        for kept in kept {
            for stream in layer * kv_heads..(layer + 1) * kv_heads {
                let of_stream = if kept.len() == 1 { kept.first() } else { kept.get(stream) };
                let Some(kept) = of_stream else {
                    return Err(Error::misuse("view", format!("no stream {stream}")));
                };
                at += *kept as usize;
                starts.push(at);
            }
        }
        Ok(Self { kv_heads, starts })
    }

    /// The place of one stream's scores, by kept index.
    pub fn of(&self, seq: usize, kv_head: usize) -> Range<usize> {
        let i = seq * self.kv_heads + kv_head;
        self.starts[i]..self.starts[i + 1]
    }

    /// Where each (sequence, KV head) begins, at `seq · kv_heads + kv_head`.
    pub fn starts(&self) -> &[usize] {
        &self.starts[..self.starts.len().saturating_sub(1)]
    }

    /// Scores in all.
    pub fn total(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// Scores of a pass, one a kept token and KV head.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Where each stream's are.
    pub spans: Spans,
    /// `f32[spans.total()]`; 0 for a token that no query saw.
    pub values: Vec<f32>,
}

impl Scores {
    /// The scores of one stream, by kept index.
    pub fn of(&self, seq: usize, kv_head: usize) -> &[f32] {
        &self.values[self.spans.of(seq, kv_head)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_stream_of_the_layer() {
        // Two layers of two heads.
        let (uniform, ragged) = ([5], [9, 8, 3, 0]);
        let of = |seqs: &[&[u32]], layer| Spans::new(seqs.iter().copied(), 2, layer);
        let spans = of(&[&uniform, &ragged], 1).unwrap();
        assert_eq!(spans.starts(), [0, 5, 10, 13]);
        assert_eq!((spans.of(0, 1), spans.of(1, 0), spans.of(1, 1)), (5..10, 10..13, 13..13));
        assert_eq!(spans.total(), 13);
        assert!(of(&[&ragged], 2).is_err());
        assert_eq!(of(&[], 0).unwrap().total(), 0);
    }

    #[test]
    fn the_lowest_index_wins_among_equals() {
        let top = |value, index| Top { value, index };
        assert_eq!(top(0.5, 7).or(top(0.5, 3)), top(0.5, 3));
        assert_eq!(top(0.5, 3).or(top(0.5, 7)), top(0.5, 3));
        assert_eq!(top(0.5, 3).or(top(0.6, 7)), top(0.6, 7));
        assert_eq!(Top::NONE.or(top(0.1, 0)), top(0.1, 0));
    }

    #[test]
    fn no_queries_is_an_error() {
        assert!(Score::Max { last: 0 }.last().is_err());
        assert!(Score::Sum { last: 0, heads: Heads::Mean }.last().is_err());
        assert_eq!(Score::Max { last: 3 }.last().unwrap(), 3);
    }
}
