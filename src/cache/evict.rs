//! Evicting tokens: in place, by live masks, or by moving what is kept into ragged blocks,
//! so that whole blocks become free.

use super::PAGE_TOKENS;
use super::class::{BlockRef, ClassId, SeqId};
use super::kv_cache::{KvCache, idle};
use super::ops::{Compaction, Gather};
use super::pool::Pool;
use super::sequence::stream_index;
use super::spec::StreamSpec;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A 16-bit row and where it is.
type Row = (BlockRef, u16);

impl KvCache {
    /// Drops tokens of a group from attention, at these kept indices (sinks
    /// included; any order; those already cleared are passed over): of all
    /// streams with `stream: None` while the group is uniform, of one
    /// (layer · kv_heads + head) once it is ragged. Kept indices do not move. A
    /// page that nothing is left of is freed, but never the one being filled.
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
        let (Some(state), Some(spec)) = (state.groups.get_mut(group), self.groups.get(group))
        else {
            return Err(Error::NotFound { what: format!("KV group {group}") });
        };
        let spec = state.spec(spec);
        let stream = stream_index(state, stream)?;
        let stream = &mut state.streams[stream];
        if let Some(index) = kept_indices.iter().find(|&&index| index as usize >= stream.kept) {
            let what = format!("{index} is not below the {} tokens kept", stream.kept);
            return Err(Error::misuse("kept_indices", what));
        }
        stream.clear(spec, &mut self.pool, kept_indices);
        Ok(())
    }

    /// Keeps only these tokens of a KV group: `keep[layer · kv_heads + head]`
    /// are strictly increasing kept indices, counted from 0 with the sinks
    /// included. The rows move to ragged blocks: the first S form the sink run,
    /// the others pages of 64. From then on each stream counts its own kept
    /// indices, so streams seal at different times. The group may be uniform or
    /// ragged already. The old blocks are free once the gathers are done, except those that
    /// other sequences share.
    ///
    /// # Errors
    /// [`Error::Sealed`] if a page of the group is sealed in this sequence;
    /// [`Error::KvBudget`] if old and new blocks do not fit together;
    /// [`Error::Misuse`] for a bad list; [`Error::Busy`], [`Error::NotFound`].
    pub fn compact(&mut self, seq: SeqId, group: usize, keep: &[Vec<u32>]) -> Result<Compaction> {
        let id = seq;
        let seq = idle(&mut self.seqs, seq)?;
        let (Some(state), Some(shape)) = (seq.groups.get_mut(group), self.groups.get(group)) else {
            return Err(Error::NotFound { what: format!("KV group {group}") });
        };
        if state.streams.iter().any(|stream| stream.sealed > 0) {
            return Err(Error::Sealed(format!(
                "KV group {group} of sequence {} has sealed pages and cannot be compacted; compact \
                 at the end of a prefill with a 16-bit codec, or clear tokens instead",
                id.0
            )));
        }
        if keep.len() != shape.streams {
            let what = format!("{} lists for {} streams", keep.len(), shape.streams);
            return Err(Error::misuse("keep", what));
        }
        let old_spec = state.spec(shape);
        let source = |s: usize| &state.streams[s.min(state.streams.len() - 1)];
        let mut rows = Vec::with_capacity(keep.len());
        for (s, list) in keep.iter().enumerate() {
            rows.push(kept_rows(source(s), old_spec, s, list)?);
        }
        let bytes = rows.iter().map(|rows| {
            let pages = shape.ragged.pages(rows.len()) as u64;
            let sink = shape.ragged.sinks > 0 && !rows.is_empty();
            pages * self.pool.block_bytes(shape.ragged.hot)
                + if sink { self.pool.block_bytes(shape.ragged.sink) } else { 0 }
        });
        self.pool.check(bytes.sum())?;

        // What was free before may be taken by the gathers.
        let frees = self.pool.drain_freed();
        let mut gathers = Vec::new();
        let streams = rows.into_iter().enumerate().map(|(s, rows)| {
            let mut gather = |class, rows: &[Row], pool: &mut Pool| {
                let to = BlockRef { class, index: pool.take(class) };
                gathers.push(Gather { group, stream: s, rows: rows.to_vec(), to });
                to.index
            };
            place(&rows, &shape.ragged, &mut self.pool, &mut gather)
        });
        let streams: Vec<Stream> = streams.collect();
        for block in state.streams.iter().flat_map(|stream| stream.blocks(old_spec)) {
            self.pool.release(block.class, block.index);
        }
        state.streams = streams;
        state.compacted = Some(seq.len);
        Ok(Compaction { frees, gathers })
    }
}

/// Checks one keep-list and finds its rows.
fn kept_rows(stream: &Stream, spec: &StreamSpec, s: usize, list: &[u32]) -> Result<Vec<Row>> {
    if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
        let what = format!("stream {s}: {} follows {}, not increasing", pair[1], pair[0]);
        return Err(Error::misuse("keep", what));
    }
    let row = |&index: &u32| {
        stream.row(spec, index as usize).ok_or_else(|| {
            let what = format!("stream {s}: kept index {index} was cleared or never kept");
            Error::misuse("keep", what)
        })
    };
    list.iter().map(row).collect()
}

/// Lays rows out as a new stream: sinks, then pages.
fn place(
    rows: &[Row],
    spec: &StreamSpec,
    pool: &mut Pool,
    gather: &mut impl FnMut(ClassId, &[Row], &mut Pool) -> u32,
) -> Stream {
    let (sinks, rest) = rows.split_at(spec.sinks.min(rows.len()));
    let sink = (!sinks.is_empty()).then(|| gather(spec.sink, sinks, pool));
    let pages = rest.chunks(PAGE_TOKENS).map(|page| gather(spec.hot, page, pool)).collect();
    Stream::from_blocks(rows.len(), sink, pages)
}
