//! What the queries of a step read: a list of runs for each stream.

use super::PAGE_TOKENS;
use super::class::ClassId;
use super::spec::StreamSpec;
use super::stream::{ALL_LIVE, Page, Stream};

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
    /// Its first page's word in [`StreamView::masks`], one word per page;
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
    /// slots that are not filled are set.
    pub masks: Vec<u64>,
    /// Tokens of the stream, sinks and this step's new tokens included.
    /// Cleared tokens count: kept indices never move by a clear.
    pub kept: u32,
    /// h: pages imported from the prefix index; 0, nothing imports pages yet.
    pub sealed_bound: u32,
}

/// What the queries of a sequence read in one KV group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupView {
    /// All streams share one table; blocks hold every layer and head.
    Uniform(StreamView),
    /// One view per stream, at layer · kv_heads + head; blocks hold one page.
    Ragged(Vec<StreamView>),
}

impl GroupView {
    /// Tokens that each stream keeps; one number if the group is uniform.
    pub fn kept(&self) -> Vec<u32> {
        match self {
            Self::Uniform(view) => vec![view.kept],
            Self::Ragged(views) => views.iter().map(|view| view.kept).collect(),
        }
    }
}

impl StreamView {
    /// The view of a stream whose blocks for the tokens `[from, to)` are in
    /// place, for the queries at these kept indices.
    pub(super) fn new(stream: &Stream, spec: &StreamSpec, from: usize, to: usize) -> Self {
        let mut view = Self { kept: to as u32, ..Self::default() };
        let sink = std::slice::from_ref(&stream.sink);
        view.push(RunKind::Sink, spec.sink, sink, 0, to.min(spec.sinks));
        let tokens = to.saturating_sub(spec.sinks);
        let sealed = &stream.pages[..spec.sealed_below(to - 1)];
        view.push(RunKind::Sealed, spec.sealed, sealed, 0, tokens);
        let first_hot = spec.sealed_below(from);
        let hot = &stream.pages[first_hot..];
        view.push(RunKind::Hot, spec.hot, hot, first_hot, tokens);
        view
    }

    /// Adds runs over adjacent pages, split around the freed ones. `tokens`
    /// are those of the stream that pages of this kind could hold.
    fn push(
        &mut self,
        kind: RunKind,
        class: ClassId,
        pages: &[Page],
        first_page: usize,
        tokens: usize,
    ) {
        let block = |page: &Page| if kind == RunKind::Sealed { page.sealed } else { page.hot };
        let mut offset = 0;
        for stretch in pages.chunk_by(|a, b| block(a).is_some() == block(b).is_some()) {
            let start = (first_page + offset) * PAGE_TOKENS;
            offset += stretch.len();
            if stretch.iter().all(|page| block(page).is_none()) {
                continue;
            }
            let end = tokens.min((first_page + offset) * PAGE_TOKENS);
            let masked = stretch.iter().any(|page| page.live != ALL_LIVE);
            self.runs.push(Run {
                class,
                first: self.table.len() as u32,
                start: start as u32,
                n_tokens: (end - start) as u32,
                shift: 0,
                live: masked.then_some(self.masks.len() as u32),
                kind,
            });
            self.table.extend(stretch.iter().filter_map(block));
            if masked {
                self.masks.extend(stretch.iter().map(|page| page.live));
            }
        }
    }
}
