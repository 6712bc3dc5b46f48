//! What the queries of a step read: a list of runs for each stream.

use std::sync::Arc;

use super::class::ClassId;

/// The form of a run's pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RunKind {
    /// 16-bit, seen by every query.
    Sink,
    /// A codec's bytes: page p is seen by the queries with p below their bound.
    Sealed,
    /// 16-bit: page p is seen by the queries with p at or above their bound.
    Hot,
}

/// A stretch of a stream whose pages are alike and adjacent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The arena of its blocks.
    pub class: ClassId,
    /// Its first entry in [`StreamView::table`].
    pub first: u32,
    /// Kept index, counted after the sinks, of its first token: a multiple of
    /// 64. 0 for the sink run.
    pub start: u32,
    /// Tokens, live or not.
    pub n_tokens: u32,
    /// Relocation Δ in positions.
    pub shift: i32,
    /// Its first page's word in [`StreamView::masks_of`] a stream, one word per page;
    /// `None`: every token is live.
    pub live: Option<u32>,
    /// Its form.
    pub kind: RunKind,
}

/// One stream (or all streams of a uniform group) as a step reads it.
///
/// The query of the step's token t has the kept index `kept - new_tokens + t`
/// (sinks included) and sees the tokens up to its own, or all of them where
/// attention is not causal, each in one form: with i
/// that index less S, page p is read sealed if and only if
/// p < max(`sealed_bound`, ⌊i/64⌋ − R/64).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamView {
    /// The sink run, the sealed runs, the hot runs, each in kept order.
    pub runs: Vec<Run>,
    /// Block indices, one per page, of each run in order.
    pub table: Vec<u32>,
    /// Live masks: bit s of a page's word is set if slot s is live. Bits of
    /// slots that are not filled are set. One list for each stream of a uniform group, or
    /// one list, or none, for all.
    pub masks: Vec<Vec<u64>>,
    /// Tokens of the stream, sinks and this step's new tokens included.
    /// Cleared tokens count: kept indices never move by a clear.
    pub kept: u32,
    /// h: pages at the front that every query reads sealed, since they were attached or
    /// were sealed before a compaction.
    pub sealed_bound: u32,
}

/// What the queries of a sequence read in one KV group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupView {
    /// All streams share one table; blocks hold every layer and head. Their live masks may
    /// differ.
    Uniform(Arc<StreamView>),
    /// One view per stream, at layer · kv_heads + head; blocks hold one page.
    Ragged(Vec<Arc<StreamView>>),
}

impl GroupView {
    /// Tokens that each stream keeps; one number if the group is uniform.
    pub fn kept(&self) -> Vec<u32> {
        match self {
            Self::Uniform(view) => vec![view.kept],
            Self::Ragged(views) => views.iter().map(|view| view.kept).collect(),
        }
    }

    /// Whether all streams read the same, so that one plan serves every layer.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Uniform(view) if view.masks.len() <= 1)
    }
}

impl StreamView {
    /// The live masks of a stream.
    pub fn masks_of(&self, stream: usize) -> &[u64] {
        let last = self.masks.len().saturating_sub(1);
        self.masks.get(stream.min(last)).map_or(&[], Vec::as_slice)
    }
}
