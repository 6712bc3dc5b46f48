//! Which pages a query reads, and which rows of them (ARCHITECTURE, rule 1).

use super::affine::{AffineTile, MAX_HEAD_DIM};
use super::rows::RowTile;
use crate::backend::cpu::arena::ClassArenas;
use crate::cache::{BlockRef, PAGE_TOKENS, RunKind, StreamView};
use crate::codec::{Codec, Side};
use crate::error::Result;
use std::ops::Range;

/// One page that some query of a tile reads.
#[derive(Clone, Copy)]
pub(super) struct PageView<'a> {
    /// Bytes of the key half.
    pub key: &'a [u8],
    /// Bytes of the value half.
    pub value: &'a [u8],
    /// Codec of the key half.
    pub key_codec: Codec,
    /// Codec of the value half.
    pub value_codec: Codec,
    /// Kept index, sinks included, of its first row.
    pub first: usize,
    /// Rows in use.
    pub tokens: usize,
    /// One bit a row: not evicted.
    pub live: u64,
    /// Relocation of its run.
    pub shift: i32,
}

/// A tile in the form that the products take.
pub(super) enum Tile<'a> {
    /// Low-bit codes in fragments.
    Affine(AffineTile<'a>),
    /// Row-major floats.
    Rows(RowTile<'a>),
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn new(codec: Codec, side: Side, head_dim: usize, tokens: usize, bytes: &'a [u8]) -> Self {
        match codec.affine() {
            Some(affine) => Tile::Affine(AffineTile::new(affine, side, head_dim, bytes)),
            None => Tile::Rows(RowTile::new(codec, head_dim, tokens, bytes)),
        }
    }
}

impl<'a> PageView<'a> {
    /// The keys.
    #[inline(always)]
    pub(super) fn key_tile(&self, head_dim: usize) -> Tile<'a> {
        Tile::new(self.key_codec, Side::Key, head_dim, self.tokens, self.key)
    }

    /// The values.
    #[inline(always)]
    pub(super) fn value_tile(&self, head_dim: usize) -> Tile<'a> {
        Tile::new(self.value_codec, Side::Value, head_dim, self.tokens, self.value)
    }
}

/// A stream of one layer and head, ready to be read.
#[derive(Clone, Copy)]
pub(super) struct StreamPages<'a> {
    /// The blocks' bytes.
    pub arenas: &'a ClassArenas,
    /// Runs and tables.
    pub view: &'a StreamView,
    /// Which page of a uniform block: layer · kv_heads + head.
    pub index: usize,
    /// S of the group; 0 where nothing is sealed.
    pub sinks: usize,
    /// R of the group; `None` where nothing is sealed.
    pub hot_window: Option<usize>,
}

impl<'a> StreamPages<'a> {
    /// Grid page of a kept index; sinks count to page 0.
    pub(super) fn grid_page(&self, kept: usize) -> usize {
        kept.saturating_sub(self.sinks) / PAGE_TOKENS
    }

    /// Pages below this one are read sealed by the query at kept index `kept`.
    pub(super) fn sealed_below(&self, kept: usize) -> usize {
        self.hot_window.map_or(0, |window| {
            let recent = self.grid_page(kept).saturating_sub(window / PAGE_TOKENS);
            recent.max(self.view.sealed_bound as usize)
        })
    }

    /// Appends to `pages` what the query at kept index `query` (and all of its
    /// grid page) reads of grid pages `grid`, the sinks with page 0.
    pub(super) fn pages(
        &self,
        query: usize,
        grid: Range<usize>,
        pages: &mut Vec<PageView<'a>>,
    ) -> Result<()> {
        let sealed_below = self.sealed_below(query);
        let masks = self.view.masks_of(self.index);
        for run in &self.view.runs {
            let layout = self.arenas.layout(run.class);
            let form = layout.page(self.index);
            debug_assert!(layout.geometry.key_dim <= MAX_HEAD_DIM);
            let start_page = run.start as usize / PAGE_TOKENS;
            let entries = (run.n_tokens as usize).div_ceil(layout.page_tokens);
            let wanted = match run.kind {
                RunKind::Sink => 0..if grid.start == 0 { entries } else { 0 },
                RunKind::Sealed => {
                    overlap(start_page, entries, grid.start, grid.end.min(sealed_below))
                }
                RunKind::Hot => {
                    overlap(start_page, entries, grid.start.max(sealed_below), grid.end)
                }
            };
            for entry in wanted {
                let index = self.view.table[run.first as usize + entry];
                let block = BlockRef { class: run.class, index };
                let (key, value) = self.arenas.page(block, self.index)?;
                let offset = entry * layout.page_tokens;
                let sinks = if run.kind == RunKind::Sink { 0 } else { self.sinks };
                pages.push(PageView {
                    key,
                    value,
                    key_codec: form.key,
                    value_codec: form.value,
                    first: sinks + run.start as usize + offset,
                    tokens: (run.n_tokens as usize - offset).min(layout.page_tokens),
                    live: run.live.map_or(u64::MAX, |m| masks[m as usize + entry]),
                    shift: run.shift,
                });
            }
        }
        Ok(())
    }
}

/// Entries of a run of `entries` pages from `start` on that lie in `from..to`.
fn overlap(start: usize, entries: usize, from: usize, to: usize) -> Range<usize> {
    let first = from.max(start) - start;
    first..to.saturating_sub(start).min(entries).max(first)
}
