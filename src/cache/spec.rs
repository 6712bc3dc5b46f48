//! The arithmetic of a stream's kept indices: sinks, pages, the sealing rule.

use super::class::{ClassDesc, ClassId, ClassKind, PAGE_TOKENS};
use super::config::GroupSpec;
use super::pool::Pool;

/// Where the blocks of a stream live and when its pages are sealed.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamSpec {
    /// S; 0 for a group that never seals.
    pub sinks: usize,
    /// R in pages; `None`: never sealed.
    window_pages: Option<usize>,
    /// W; `None`: queries see all that lies before them.
    window: Option<usize>,
    /// Class of the sink block; unused when S = 0.
    pub sink: ClassId,
    /// Class of 16-bit pages.
    pub hot: ClassId,
    /// Class of sealed pages; unused when nothing is ever sealed.
    pub sealed: ClassId,
}

impl StreamSpec {
    /// Whether pages are ever sealed.
    pub(super) fn seals(&self) -> bool {
        self.window_pages.is_some()
    }

    /// Whether queries see no further than a window.
    pub(super) fn slides(&self) -> bool {
        self.window.is_some()
    }

    /// Pages of a stream that keeps `kept` tokens, sinks included.
    pub(super) fn pages(&self, kept: usize) -> usize {
        kept.saturating_sub(self.sinks).div_ceil(PAGE_TOKENS)
    }

    /// Page and slot of the kept index (sinks included); `None` for a sink.
    pub(super) fn slot(&self, index: usize) -> Option<(usize, usize)> {
        let i = index.checked_sub(self.sinks)?;
        Some((i / PAGE_TOKENS, i % PAGE_TOKENS))
    }

    /// ARCHITECTURE, rule 1: a query at the kept index (sinks included) reads the
    /// pages below this one sealed, the others in 16 bits.
    pub(super) fn sealed_below(&self, index: usize) -> usize {
        match (self.window_pages, self.slot(index)) {
            (Some(window), Some((page, _))) => page.saturating_sub(window),
            _ => 0,
        }
    }

    /// The fewest kept tokens after which the next query reads `pages` pages sealed.
    pub(super) fn kept_to_seal(&self, pages: usize) -> usize {
        match self.window_pages {
            Some(window) if pages > 0 => self.sinks + (pages + window) * PAGE_TOKENS,
            _ => 0,
        }
    }

    /// Pages of the grid, and whether sinks, that the query at the kept index (sinks
    /// included) and later ones do not see.
    pub(super) fn unseen(&self, index: usize) -> (usize, bool) {
        let first_seen = self.window.map_or(0, |window| (index + 1).saturating_sub(window));
        match self.slot(first_seen).filter(|_| first_seen > 0) {
            Some((page, _)) => (page, true),
            None => (0, false),
        }
    }

    /// The fewest kept tokens at which the next query sees nothing of the first `pages`
    /// pages; of the sinks, if there are none.
    pub(super) fn kept_to_miss(&self, pages: usize) -> usize {
        let first_seen = self.sinks + pages * PAGE_TOKENS;
        self.window.map_or(0, |window| first_seen + window - 1)
    }

    /// Kept tokens from which on a page more only adds bytes, if it changes them at all.
    pub(super) fn settled_from(&self) -> usize {
        let hot = self.window_pages.unwrap_or(0) * PAGE_TOKENS;
        self.window.unwrap_or(0) + hot + self.sinks + 3 * PAGE_TOKENS
    }

    /// Bytes that a stream, filled without a fork or a mask, holds during the
    /// step from `from` to `to` kept tokens: the pages that are sealed in this
    /// step count in both forms.
    pub(super) fn step_bytes(&self, pool: &Pool, from: usize, to: usize) -> u64 {
        let sealed_before = from.checked_sub(1).map_or(0, |last| self.sealed_below(last));
        // Freed at the last commit.
        let (gone, sinks_gone) = if from > 0 { self.unseen(from) } else { (0, false) };
        let sinks = self.sinks > 0 && !sinks_gone;
        let sink = if sinks { pool.block_bytes(self.sink) } else { 0 };
        sink + (self.pages(to) - sealed_before.max(gone)) as u64 * pool.block_bytes(self.hot)
            + self.sealed_below(to - 1).saturating_sub(gone) as u64 * pool.block_bytes(self.sealed)
    }
}

/// A KV group with its classes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Layers × KV heads.
    pub streams: usize,
    /// Blocks of all streams together.
    pub uniform: StreamSpec,
    /// Blocks of one stream each.
    pub ragged: StreamSpec,
}

impl Group {
    /// Lays out the group's classes behind those already in `classes`. Only
    /// classes that can hold blocks are made.
    pub(super) fn new(spec: &GroupSpec, group: usize, classes: &mut Vec<ClassDesc>) -> Self {
        let streams = spec.streams();
        let sinks = if spec.sealed.is_some() { spec.sinks } else { 0 };
        let mut add = |kind, page_tokens, block_bytes| {
            classes.push(ClassDesc { kind, group, page_tokens, block_bytes });
            ClassId((classes.len() - 1) as u16)
        };
        let mut layout = |kinds: [ClassKind; 3], pages: u64| {
            let page = spec.hot_page_bytes * pages;
            let hot = add(kinds[1], PAGE_TOKENS, page);
            let sink = match sinks {
                0 => hot,
                _ => add(kinds[0], sinks, page / PAGE_TOKENS as u64 * sinks as u64),
            };
            let sealed = match spec.sealed {
                None => hot,
                Some(bytes) if pages == 1 => add(kinds[2], PAGE_TOKENS, bytes.page),
                Some(bytes) => add(kinds[2], PAGE_TOKENS, bytes.block),
            };
            let window_pages = spec.sealed.map(|_| spec.hot_window / PAGE_TOKENS);
            StreamSpec { sinks, window_pages, window: None, sink, hot, sealed }
        };
        use ClassKind::{Hot, RaggedHot, RaggedSealed, RaggedSink, Sealed, Sink};
        // Kept indices of ragged streams are no positions; a group with a window stays
        // uniform.
        let uniform = layout([Sink, Hot, Sealed], streams as u64);
        let uniform = StreamSpec { window: spec.window, ..uniform };
        let ragged = layout([RaggedSink, RaggedHot, RaggedSealed], 1);
        Self { streams, uniform, ragged }
    }
}
