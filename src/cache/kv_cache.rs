//! [`KvCache`]: sequences over the pool.

use std::collections::{BTreeMap, BTreeSet};

use super::class::{BlockRef, ClassDesc, ClassKind};
use super::config::CacheConfig;
use super::pool::Pool;
use super::spec::{Group, StreamSpec};
use super::step::{SeqStep, Step};
use super::stream::{Growth, Ops, Stream, Undo};
use super::view::{GroupView, StreamView};
use crate::error::{Error, Result};

/// A sequence of a [`KvCache`]; never given twice by the same cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// The streams of one KV group of one sequence.
#[derive(Clone, Debug)]
pub(super) struct SeqGroup {
    /// The sequence's length when the group was last compacted. Since then its
    /// streams are ragged, one per layer and KV head; before, one stands for all.
    pub compacted: Option<usize>,
    pub streams: Vec<Stream>,
}

impl SeqGroup {
    pub(super) fn spec<'a>(&self, group: &'a Group) -> &'a StreamSpec {
        if self.compacted.is_some() { &group.ragged } else { &group.uniform }
    }

    /// The stream's name in operations.
    fn stream(&self, index: usize) -> Option<usize> {
        self.compacted.map(|_| index)
    }
}

/// A step in flight.
#[derive(Clone, Debug)]
struct Flight {
    step: u64,
    new_tokens: usize,
    /// In the order of groups, then streams.
    undo: Vec<Undo>,
}

#[derive(Clone, Debug)]
pub(super) struct Seq {
    /// Positions so far.
    pub len: usize,
    pub groups: Vec<SeqGroup>,
    flight: Option<Flight>,
}

/// The books of a KV cache: which blocks exist, who holds them, what is read.
///
/// Every operation either succeeds or changes nothing. Blocks that an
/// operation returns are free from then on, and may be handed out by the next.
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) groups: Vec<Group>,
    pub(super) pool: Pool,
    pub(super) seqs: BTreeMap<SeqId, Seq>,
    next_seq: u64,
    next_step: u64,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`Error::Config`] from [`CacheConfig::validate`].
    pub fn new(config: CacheConfig) -> Result<Self> {
        config.validate()?;
        let mut classes = Vec::new();
        let specs = config.groups.iter().enumerate();
        let groups = specs.map(|(g, spec)| Group::new(spec, g, &mut classes)).collect();
        let pool = Pool::new(classes, config.budget_bytes);
        Ok(Self { groups, pool, seqs: BTreeMap::new(), next_seq: 0, next_step: 0 })
    }

    /// The arenas that a backend must have, at the place of their [`ClassId`](super::ClassId).
    pub fn classes(&self) -> &[ClassDesc] {
        self.pool.classes()
    }

    /// Begins an empty sequence.
    pub fn create(&mut self) -> SeqId {
        let group = SeqGroup { compacted: None, streams: vec![Stream::new()] };
        let groups = vec![group; self.groups.len()];
        self.insert(Seq { len: 0, groups, flight: None })
    }

    fn insert(&mut self, seq: Seq) -> SeqId {
        let id = SeqId(self.next_seq);
        self.next_seq += 1;
        self.seqs.insert(id, seq);
        id
    }

    /// Reserves everything that one forward pass over `(sequence, new tokens)`
    /// needs and returns what to execute and to read. The sequences are busy
    /// until [`commit`](Self::commit) or [`abort`](Self::abort).
    ///
    /// # Errors
    /// [`Error::KvBudget`] if the blocks do not fit; [`Error::Busy`],
    /// [`Error::NotFound`]; [`Error::Config`] for no new tokens or a sequence
    /// that occurs twice. Nothing has changed then.
    pub fn prepare(&mut self, requests: &[(SeqId, usize)]) -> Result<Step> {
        let mut seen = BTreeSet::new();
        let mut plans = Vec::with_capacity(requests.len());
        let mut bytes = 0u64;
        for &(id, n) in requests {
            if !seen.insert(id) {
                return Err(Error::config("requests", format!("sequence {} occurs twice", id.0)));
            }
            let (plan, needed) = self.plan(id, n)?;
            bytes = bytes.saturating_add(needed);
            plans.push(plan);
        }
        self.pool.check(bytes)?;

        let mut step = Step { copies: Vec::new(), seqs: Vec::new(), id: self.next_step };
        self.next_step += 1;
        for (&(id, n), plan) in requests.iter().zip(plans) {
            if let Some(seq) = self.seqs.get_mut(&id) {
                let share = seq.start(&self.groups, &mut self.pool, plan, (id, n), &mut step);
                step.seqs.push(share);
            }
        }
        Ok(step)
    }

    /// The blocks of a step, per stream, and their bytes.
    fn plan(&self, id: SeqId, n: usize) -> Result<(Vec<Growth>, u64)> {
        let seq = self.idle(id)?;
        let most = u32::MAX as usize - seq.len;
        if n == 0 || n > most {
            let what = format!("{n} for sequence {}; 1 to {most} are allowed", id.0);
            return Err(Error::config("new tokens", what));
        }
        let mut bytes = 0u64;
        let mut plan = Vec::new();
        for (state, group) in seq.groups.iter().zip(&self.groups) {
            let spec = state.spec(group);
            for stream in &state.streams {
                let growth = stream.plan(spec, &self.pool, n);
                bytes = bytes.saturating_add(growth.bytes(spec, &self.pool, stream.kept));
                plan.push(growth);
            }
        }
        Ok((plan, bytes))
    }

    /// Ends a step: of sequence s the first `accepted[s]` new tokens stay.
    /// Returns the blocks that are free now: hot copies of sealed pages, blocks
    /// of rejected tokens, sealed blocks that no query needs after all.
    ///
    /// # Errors
    /// [`Error::Config`] if `accepted` does not fit the step, which is aborted then.
    pub fn commit(&mut self, step: Step, accepted: &[usize]) -> Result<Vec<BlockRef>> {
        let fits = accepted.len() == step.seqs.len()
            && step.seqs.iter().zip(accepted).all(|(share, &a)| a <= share.new_tokens);
        if !fits {
            let had: Vec<usize> = step.seqs.iter().map(|share| share.new_tokens).collect();
            self.abort(step);
            let what = format!("{accepted:?} does not fit a step of {had:?} new tokens");
            return Err(Error::config("accepted", what));
        }
        Ok(self.settle(&step, accepted.iter().copied()))
    }

    /// Gives a step up, executed or not, and returns the blocks that are free now.
    pub fn abort(&mut self, step: Step) -> Vec<BlockRef> {
        self.settle(&step, std::iter::repeat(0))
    }

    fn settle(&mut self, step: &Step, accepted: impl Iterator<Item = usize>) -> Vec<BlockRef> {
        let mut freed = Vec::new();
        for (share, accepted) in step.seqs.iter().zip(accepted) {
            let Some(seq) = self.seqs.get_mut(&share.seq) else { continue };
            let Some(flight) = seq.flight.take_if(|flight| flight.step == step.id) else {
                continue;
            };
            let accepted = accepted.min(flight.new_tokens);
            seq.len += accepted;
            let mut undo = flight.undo.into_iter();
            for (state, group) in seq.groups.iter_mut().zip(&self.groups) {
                let spec = state.spec(group);
                for (stream, undo) in state.streams.iter_mut().zip(&mut undo) {
                    stream.settle(spec, &mut self.pool, undo, accepted, &mut freed);
                }
            }
        }
        freed
    }

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

    /// Forgets the positions from `new_len` on and returns the blocks that are
    /// free now. Other sequences that share blocks keep theirs.
    ///
    /// # Errors
    /// [`Error::Sealed`] unless [`rewindable_to`](Self::rewindable_to) gives
    /// `new_len`; [`Error::Config`] beyond the length; [`Error::Busy`],
    /// [`Error::NotFound`].
    pub fn truncate(&mut self, seq: SeqId, new_len: usize) -> Result<Vec<BlockRef>> {
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
        let mut freed = Vec::new();
        for (state, group) in state.groups.iter_mut().zip(&self.groups) {
            let spec = state.spec(group);
            for stream in &mut state.streams {
                let kept = stream.kept - (len - new_len);
                stream.truncate(spec, &mut self.pool, kept, &mut freed);
            }
        }
        Ok(freed)
    }

    /// The smallest length, from `new_len` on, that the sequence can be
    /// truncated to: no page that the next query would read in 16 bits is
    /// sealed, none that would be filled further was freed by a clear, and
    /// nothing that a compaction moved is cut.
    ///
    /// # Errors
    /// [`Error::Config`] beyond the length; [`Error::Busy`], [`Error::NotFound`].
    pub fn rewindable_to(&self, seq: SeqId, new_len: usize) -> Result<usize> {
        let seq = self.idle(seq)?;
        if new_len > seq.len {
            return Err(Error::config("new_len", format!("{new_len} is more than {}", seq.len)));
        }
        let compacted = seq.groups.iter().filter_map(|state| state.compacted).max();
        let mut floor = new_len.max(compacted.unwrap_or(0));
        // One stream's answer may be another's freed page, so until all agree.
        loop {
            let streams = seq.groups.iter().zip(&self.groups).flat_map(|(state, group)| {
                state.streams.iter().map(move |stream| (stream, state.spec(group)))
            });
            let agreed = streams.fold(floor, |floor, (stream, spec)| {
                // Dropped before the last compaction, so at any length since.
                let dropped = seq.len - stream.kept;
                dropped + stream.rewindable_to(spec, floor - dropped)
            });
            if agreed == floor {
                return Ok(floor);
            }
            floor = agreed;
        }
    }

    /// Ends a sequence and returns the blocks that are free now.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotFound`].
    pub fn free(&mut self, seq: SeqId) -> Result<Vec<BlockRef>> {
        self.idle(seq)?;
        let mut freed = Vec::new();
        for (state, group) in
            self.seqs.remove(&seq).iter().flat_map(|s| s.groups.iter().zip(&self.groups))
        {
            for block in state.streams.iter().flat_map(|stream| stream.blocks(state.spec(group))) {
                self.pool.release(block.class, block.index, &mut freed);
            }
        }
        Ok(freed)
    }

    /// Drops tokens of a group from attention, at these kept indices (sinks
    /// included; any order; those already cleared are passed over): of all
    /// streams with `stream: None` while the group is uniform, of one
    /// (layer · kv_heads + head) once it is ragged. Kept indices do not move. A
    /// page that nothing is left of is freed, but never the one being filled.
    /// Returns the blocks that are free now.
    ///
    /// # Errors
    /// [`Error::Config`] for an index that is not kept or a `stream` that does
    /// not suit; [`Error::Busy`], [`Error::NotFound`].
    pub fn clear(
        &mut self,
        seq: SeqId,
        group: usize,
        stream: Option<usize>,
        kept_indices: &[u32],
    ) -> Result<Vec<BlockRef>> {
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
            return Err(Error::config("kept_indices", what));
        }
        let mut freed = Vec::new();
        stream.clear(spec, &mut self.pool, kept_indices, &mut freed);
        Ok(freed)
    }

    /// Positions so far; those of a step in flight do not count.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn len(&self, seq: SeqId) -> Result<usize> {
        Ok(self.seq(seq)?.len)
    }

    /// Tokens that a stream keeps, sinks and cleared ones included: the kept
    /// index of the next token. `stream` as in [`clear`](Self::clear).
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Config`] if `stream` does not suit.
    pub fn kept(&self, seq: SeqId, group: usize, stream: Option<usize>) -> Result<usize> {
        let Some(state) = self.seq(seq)?.groups.get(group) else {
            return Err(Error::NotFound { what: format!("KV group {group}") });
        };
        Ok(state.streams[stream_index(state, stream)?].kept)
    }

    /// Bytes of all blocks that are held, each counted once.
    pub fn held_bytes(&self) -> u64 {
        self.pool.held()
    }

    /// The most bytes that were ever held.
    pub fn peak_bytes(&self) -> u64 {
        self.pool.peak()
    }

    /// Bytes held, by what they are for, over all groups.
    pub fn bytes_by_kind(&self) -> [(ClassKind, u64); 6] {
        ClassKind::ALL.map(|kind| {
            let of_kind = self.classes().iter().enumerate().filter(|(_, desc)| desc.kind == kind);
            (kind, of_kind.map(|(c, desc)| self.pool.blocks(c) as u64 * desc.block_bytes).sum())
        })
    }

    /// Most bytes that may be held.
    pub fn budget(&self) -> u64 {
        self.pool.budget()
    }

    /// Bytes that a step of `n` new tokens would add to those held, until its
    /// commit.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotFound`]; [`Error::Config`] for no tokens.
    pub fn bytes_needed(&self, seq: SeqId, n: usize) -> Result<u64> {
        Ok(self.plan(seq, n)?.1)
    }

    /// The most bytes that a fresh sequence holds at any time while `n_tokens`
    /// are prefilled in chunks of `chunk`.
    pub fn bytes_for(&self, n_tokens: usize, chunk: usize) -> u64 {
        let chunk = chunk.max(1);
        let held = |from: usize| {
            let to = from.saturating_add(chunk).min(n_tokens);
            let groups = self.groups.iter();
            groups.map(|group| group.uniform.step_bytes(&self.pool, from, to)).sum()
        };
        (0..n_tokens).step_by(chunk).map(held).max().unwrap_or(0)
    }

    fn seq(&self, seq: SeqId) -> Result<&Seq> {
        self.seqs.get(&seq).ok_or_else(|| not_found(seq))
    }

    /// The sequence, if no step of it is in flight.
    fn idle(&self, seq: SeqId) -> Result<&Seq> {
        match self.seq(seq)? {
            Seq { flight: Some(_), .. } => Err(Error::Busy { seq: seq.0 }),
            idle => Ok(idle),
        }
    }
}

/// [`KvCache::idle`], to change it.
pub(super) fn idle(seqs: &mut BTreeMap<SeqId, Seq>, seq: SeqId) -> Result<&mut Seq> {
    match seqs.get_mut(&seq).ok_or_else(|| not_found(seq))? {
        Seq { flight: Some(_), .. } => Err(Error::Busy { seq: seq.0 }),
        idle => Ok(idle),
    }
}

fn not_found(seq: SeqId) -> Error {
    Error::NotFound { what: format!("sequence {}", seq.0) }
}

/// The place of a stream: `None` names the one that stands for a uniform group.
fn stream_index(state: &SeqGroup, stream: Option<usize>) -> Result<usize> {
    match (state.compacted, stream) {
        (None, None) => Ok(0),
        (Some(_), Some(stream)) if stream < state.streams.len() => Ok(stream),
        (None, Some(_)) => Err(Error::config("stream", "must be none: the group is uniform")),
        (Some(_), _) => {
            let what = format!("must be below {}: the group is ragged", state.streams.len());
            Err(Error::config("stream", what))
        }
    }
}

impl Seq {
    /// Every reference to a block, those that a step in flight replaces included.
    pub(super) fn references(&self, groups: &[Group]) -> Vec<BlockRef> {
        let mut blocks = Vec::new();
        let mut undo = self.flight.iter().flat_map(|flight| &flight.undo);
        for (state, group) in self.groups.iter().zip(groups) {
            let spec = state.spec(group);
            for stream in &state.streams {
                blocks.extend(stream.blocks(spec));
                blocks.extend(undo.next().and_then(|undo| stream.replaced(spec, undo)));
            }
        }
        blocks
    }

    /// Carries out a plan that fits the budget.
    fn start(
        &mut self,
        groups: &[Group],
        pool: &mut Pool,
        plan: Vec<Growth>,
        (seq, n): (SeqId, usize),
        step: &mut Step,
    ) -> SeqStep {
        let (mut appends, mut seals, mut views) = (Vec::new(), Vec::new(), Vec::new());
        let mut undo = Vec::with_capacity(plan.len());
        let mut plan = plan.into_iter();
        for (g, (state, group)) in self.groups.iter_mut().zip(groups).enumerate() {
            let spec = state.spec(group);
            let names: Vec<_> = (0..state.streams.len()).map(|s| state.stream(s)).collect();
            for ((stream, name), growth) in state.streams.iter_mut().zip(names).zip(&mut plan) {
                let mut ops = Ops {
                    group: g,
                    stream: name,
                    copies: &mut step.copies,
                    appends: &mut appends,
                    seals: &mut seals,
                };
                undo.push(stream.grow(spec, pool, growth, n, &mut ops));
            }
            let view =
                |stream: &Stream| StreamView::new(stream, spec, stream.kept, stream.kept + n);
            views.push(match state.compacted {
                None => GroupView::Uniform(view(&state.streams[0])),
                Some(_) => GroupView::Ragged(state.streams.iter().map(view).collect()),
            });
        }
        self.flight = Some(Flight { step: step.id, new_tokens: n, undo });
        SeqStep { seq, new_tokens: n, position: self.len, appends, seals, views }
    }
}
