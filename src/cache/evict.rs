//! Evicting tokens: in place, by live masks, or by moving what is kept into ragged blocks,
//! so that whole blocks become free.

use std::collections::BTreeMap;

use super::class::{BlockRef, ClassId, PAGE_TOKENS, SeqId};
use super::kv_cache::{KvCache, idle};
use super::ops::{Compaction, Gather, PageMove};
use super::page::{Of, Page};
use super::pool::Pool;
use super::sequence::{SeqGroup, stream_index};
use super::spec::{Group, StreamSpec};
use super::stream::Stream;
use crate::error::{Error, Result};

impl KvCache {
    /// Drops tokens of a group from attention, at these kept indices (sinks
    /// included; any order; those already cleared are passed over): of all
    /// streams with `stream: None`, which a ragged group does not take, or of one
    /// (layer · kv_heads + head). Kept indices do not move. A
    /// page of which no stream has anything left is freed, but never the one being filled.
    ///
    /// # Errors
    /// [`Error::Misuse`] for an index that is not kept or a `stream` that does
    /// not suit; [`Error::Busy`], [`Error::NotFound`].
    pub fn clear(
        &mut self,
        seq: SeqId,
        group: usize,
        stream: Option<usize>,
        kept_indices: &[u32],
    ) -> Result<()> {
        let state = idle(&mut self.seqs, seq)?;
        let (Some(state), Some(group)) = (state.groups.get_mut(group), self.groups.get(group))
        else {
            return Err(Error::NotFound { what: format!("KV group {group}") });
        };
        let spec = state.spec(group);
        let (index, of) = stream_index(state, group.streams, stream)?;
        let stream = &mut state.streams[index];
        if let Some(index) = kept_indices.iter().find(|&&index| index as usize >= stream.kept) {
            let what = format!("{index} is not below the {} tokens kept", stream.kept);
            return Err(Error::misuse("kept_indices", what));
        }
        stream.clear(spec, &mut self.pool, of, kept_indices);
        Ok(())
    }

    /// Keeps only these tokens of a KV group: `keep[layer · kv_heads + head]`
    /// are strictly increasing kept indices, counted from 0 with the sinks
    /// included.
    ///
    /// Sealed pages stay whole (ARCHITECTURE, rule 3): one of which a stream keeps anything
    /// moves to a ragged block byte for byte, with what is dropped masked. 16-bit
    /// rows are packed: the first S form the sink run, the others pages of 64 behind the sealed
    /// ones. From then on each stream counts its own kept indices, so streams seal at different
    /// times. The group may be uniform or ragged already. The old blocks are free once the
    /// moves and gathers are done, except those that other sequences share.
    ///
    /// In a group with a window nothing moves, so that kept indices stay positions: what is
    /// dropped is cleared, and frees the pages that no stream keeps anything of.
    ///
    /// # Errors
    /// [`Error::KvBudget`] if old and new blocks do not fit together;
    /// [`Error::Misuse`] for a bad list; [`Error::Busy`], [`Error::NotFound`].
    pub fn compact(&mut self, seq: SeqId, group: usize, keep: &[Vec<u32>]) -> Result<Compaction> {
        let index = group;
        let seq = idle(&mut self.seqs, seq)?;
        let (Some(state), Some(group)) = (seq.groups.get_mut(index), self.groups.get(index)) else {
            return Err(Error::NotFound { what: format!("KV group {index}") });
        };
        if keep.len() != group.streams {
            let what = format!("{} lists for {} streams", keep.len(), group.streams);
            return Err(Error::misuse("keep", what));
        }
        let old_spec = state.spec(group);
        let streams = &state.streams;
        let source = |s: usize| &streams[s.min(streams.len() - 1)];
        for (s, list) in keep.iter().enumerate() {
            check(source(s), old_spec, s, list)?;
        }
        if old_spec.slides() {
            mask(state, group, &mut self.pool, keep);
            return Ok(Compaction { frees: self.pool.drain_freed(), ..Compaction::default() });
        }
        let from = state.compacted.is_none().then_some(old_spec);
        let kept = keep.iter().enumerate().map(|(s, list)| Kept::new(source(s), old_spec, list));
        let kept: Vec<Kept> = kept.collect();
        let bytes = |kept: &Kept| kept.bytes(&group.ragged, &self.pool, from.is_some());
        let bytes = kept.iter().map(bytes).sum();
        self.pool.check(bytes)?;

        // What was free before may be taken by the gathers.
        let mut done = Compaction { frees: self.pool.drain_freed(), ..Compaction::default() };
        let place = |(stream, kept): (usize, Kept)| {
            let (pool, done) = (&mut self.pool, &mut done);
            Place { group: index, stream, spec: &group.ragged, pool, done }.stream(kept, from)
        };
        let new = kept.into_iter().enumerate().map(place).collect();
        let old = std::mem::replace(&mut state.streams, new);
        for block in old.iter().flat_map(|stream| stream.blocks(old_spec)) {
            self.pool.release(block.class, block.index);
        }
        state.compacted = Some(seq.len);
        Ok(done)
    }
}

/// Checks one keep-list.
fn check(stream: &Stream, spec: &StreamSpec, s: usize, list: &[u32]) -> Result<()> {
    let wrong = |what: String| Err(Error::misuse("keep", format!("stream {s}: {what}")));
    if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
        return wrong(format!("{} follows {}, not increasing", pair[1], pair[0]));
    }
    match list.iter().find(|&&index| !stream.has(spec, index as usize, s)) {
        Some(index) => wrong(format!("kept index {index} was cleared or never kept")),
        None => Ok(()),
    }
}

/// Clears what the lists do not name.
fn mask(state: &mut SeqGroup, group: &Group, pool: &mut Pool, keep: &[Vec<u32>]) {
    let stream = &mut state.streams[0];
    for (s, list) in keep.iter().enumerate() {
        let dropped = |index: &u32| {
            stream.has(&group.uniform, *index as usize, s) && list.binary_search(index).is_err()
        };
        let dropped: Vec<u32> = (0..stream.kept as u32).filter(dropped).collect();
        stream.clear(&group.uniform, pool, Of::One(s, group.streams), &dropped);
    }
}

/// What a stream keeps: whole pages with the masks of their tokens, and 16-bit rows.
struct Kept {
    pages: Vec<Page>,
    rows: Vec<Row>,
}

/// A 16-bit row: where it is, and its token's position.
struct Row {
    block: BlockRef,
    slot: u16,
    position: u32,
}

impl Kept {
    /// Of a list that was checked.
    fn new(stream: &Stream, spec: &StreamSpec, list: &[u32]) -> Self {
        let (mut whole, mut rows) = (BTreeMap::<usize, u64>::new(), Vec::new());
        for &index in list {
            let at = spec.slot(index as usize);
            let (class, page, slot) = match at {
                None => (spec.sink, &stream.sink, index as usize),
                Some((page, slot)) => (spec.hot, &stream.pages[page], slot),
            };
            match (at, page.hot) {
                (Some((page, slot)), hot) if page < stream.front || hot.is_none() => {
                    *whole.entry(page).or_default() |= 1 << slot;
                }
                (_, Some(index)) => {
                    let block = BlockRef { class, index };
                    let position = page.position_of(slot);
                    rows.push(Row { block, slot: slot as u16, position });
                }
                (_, None) => {}
            }
        }
        let page = |(at, live): (usize, u64)| stream.pages[at].masked(live);
        Self { pages: whole.into_iter().map(page).collect(), rows }
    }

    /// Rows of the sink run.
    fn sinks(&self, spec: &StreamSpec) -> usize {
        spec.sinks.min(self.rows.len())
    }

    /// Bytes of the ragged blocks that it needs, those of whole pages only if they move.
    fn bytes(&self, spec: &StreamSpec, pool: &Pool, moves: bool) -> u64 {
        let sinks = self.sinks(spec);
        let whole = if moves { self.pages.len() as u64 } else { 0 };
        let class = if spec.seals() { spec.sealed } else { spec.hot };
        let packed = (self.rows.len() - sinks).div_ceil(PAGE_TOKENS) as u64;
        let sink = if sinks > 0 { pool.block_bytes(spec.sink) } else { 0 };
        whole * pool.block_bytes(class) + packed * pool.block_bytes(spec.hot) + sink
    }
}

/// Where the new blocks of a stream come from, and what fills them.
struct Place<'a> {
    group: usize,
    stream: usize,
    spec: &'a StreamSpec,
    pool: &'a mut Pool,
    done: &'a mut Compaction,
}

impl Place<'_> {
    /// Lays out what a stream keeps. `from`: the classes that whole pages move from; `None`:
    /// they stay where they are.
    fn stream(&mut self, kept: Kept, from: Option<&StreamSpec>) -> Stream {
        let (spec, front) = (self.spec, kept.pages.len());
        let (sinks, rest) = kept.rows.split_at(kept.sinks(spec));
        let mut pages = kept.pages;
        pages.iter_mut().for_each(|page| self.whole(page, from));
        let mut sink = if sinks.is_empty() { Page::new(0) } else { self.packed(spec.sink, sinks) };
        pages.extend(rest.chunks(PAGE_TOKENS).map(|rows| self.packed(spec.hot, rows)));
        let mut n = kept.rows.len();
        if front > 0 {
            // The grid begins behind S sinks, be they there or not.
            (sinks.len()..spec.sinks).for_each(|slot| _ = sink.clear(slot, Of::All, spec.sinks));
            n = spec.sinks + front * PAGE_TOKENS + rest.len();
        }
        Stream::of_pages(spec, n, sink, pages, front)
    }

    fn whole(&mut self, page: &mut Page, from: Option<&StreamSpec>) {
        let seals = self.spec.seals();
        let of = |spec: &StreamSpec| if seals { spec.sealed } else { spec.hot };
        let to = of(self.spec);
        let block = if seals { &mut page.sealed } else { &mut page.hot };
        let Some(index) = block else { return };
        match from {
            None => self.pool.retain(to, *index),
            Some(spec) => {
                let from = BlockRef { class: of(spec), index: *index };
                *index = self.pool.take(to);
                let to = BlockRef { class: to, index: *index };
                self.done.moves.push(PageMove { group: self.group, stream: self.stream, from, to });
            }
        }
    }

    fn packed(&mut self, class: ClassId, rows: &[Row]) -> Page {
        let to = BlockRef { class, index: self.pool.take(class) };
        let from = rows.iter().map(|row| (row.block, row.slot)).collect();
        self.done.gathers.push(Gather { group: self.group, stream: self.stream, rows: from, to });
        Page::packed(Some(to.index), &rows.iter().map(|row| row.position).collect::<Vec<_>>())
    }
}
