//! Sequences that share a past: forks, and going back.

use super::class::SeqId;
use super::kv_cache::{KvCache, idle};
use crate::error::{Error, Result};

impl KvCache {
    /// A second sequence with the same tokens. It shares every block; a block
    /// is copied when one of them appends to it.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotFound`].
    pub fn fork(&mut self, seq: SeqId) -> Result<SeqId> {
        let copy = self.idle(seq)?.clone();
        for (state, group) in copy.groups.iter().zip(&self.groups) {
            for block in state.streams.iter().flat_map(|stream| stream.blocks(state.spec(group))) {
                self.pool.retain(block.class, block.index);
            }
        }
        Ok(self.insert(copy))
    }

    /// Forgets the positions from `new_len` on. Other sequences that share blocks keep
    /// theirs.
    ///
    /// # Errors
    /// [`Error::Sealed`] unless [`rewindable_to`](Self::rewindable_to) gives
    /// `new_len`; [`Error::Misuse`] beyond the length; [`Error::Busy`],
    /// [`Error::NotFound`].
    pub fn truncate(&mut self, seq: SeqId, new_len: usize) -> Result<()> {
        let floor = self.rewindable_to(seq, new_len)?;
        let state = idle(&mut self.seqs, seq)?;
        let len = state.len;
        if new_len < floor {
            return Err(Error::Sealed(format!(
                "sequence {} of {len} tokens cannot be rewound to {new_len}: what it would read \
                 in 16 bits is gone; it can be rewound to {floor} at the least; fork before, \
                 instead",
                seq.0
            )));
        }
        state.len = new_len;
        for (state, group) in state.groups.iter_mut().zip(&self.groups) {
            let spec = state.spec(group);
            for stream in &mut state.streams {
                let kept = stream.kept - (len - new_len);
                stream.truncate(spec, &mut self.pool, kept);
            }
        }
        Ok(())
    }

    /// The smallest length, from `new_len` on, that the sequence can be
    /// truncated to: no page that the next query would read in 16 bits is
    /// sealed, none that would be filled further was freed by a clear, and
    /// nothing that was attached or that a compaction moved is cut.
    ///
    /// # Errors
    /// [`Error::Misuse`] beyond the length; [`Error::Busy`], [`Error::NotFound`].
    pub fn rewindable_to(&self, seq: SeqId, new_len: usize) -> Result<usize> {
        let seq = self.idle(seq)?;
        if new_len > seq.len {
            return Err(Error::misuse("new_len", format!("{new_len} is more than {}", seq.len)));
        }
        let compacted = seq.groups.iter().filter_map(|state| state.compacted).max();
        let mut floor = new_len.max(compacted.unwrap_or(0)).max(seq.attached);
        // One stream's answer may be another's freed page, so until all agree.
        loop {
            let streams = seq.groups.iter().zip(&self.groups).flat_map(|(state, group)| {
                state.streams.iter().map(move |stream| (stream, state.spec(group)))
            });
            let agreed = streams.fold(floor, |floor, (stream, spec)| {
                // Dropped, or left out, before the last compaction or attachment, so at any
                // length since.
                let dropped = seq.len - stream.kept;
                dropped + stream.rewindable_to(spec, floor - dropped)
            });
            if agreed == floor {
                return Ok(floor);
            }
            floor = agreed;
        }
    }
}
