//! [`KvCache`]: sequences over the pool.

use std::collections::{BTreeMap, BTreeSet};

use super::class::{ClassDesc, ClassKind, PAGE_TOKENS, SeqId};
use super::config::CacheConfig;
use super::pool::Pool;
use super::sequence::{Seq, SeqGroup, stream_index};
use super::spec::Group;
use super::step::{NewTokens, Step};
use super::stream::{Growth, Stream};
use crate::error::{Error, Result};

/// The books of a KV cache: which blocks exist, who holds them, what is read.
///
/// Every operation either succeeds or changes nothing. Blocks that become free may be
/// handed out again at once; the next step tells the backend of those that were not.
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
        self.insert(Seq { len: 0, attached: 0, groups, flight: None })
    }

    pub(super) fn insert(&mut self, seq: Seq) -> SeqId {
        let id = SeqId(self.next_seq);
        self.next_seq += 1;
        self.seqs.insert(id, seq);
        id
    }

    /// Reserves everything that one forward pass over new tokens of sequences
    /// needs and returns what to execute and to read. The sequences are busy
    /// until [`commit`](Self::commit) or [`abort`](Self::abort).
    ///
    /// # Errors
    /// [`Error::KvBudget`] if the blocks do not fit; [`Error::Busy`],
    /// [`Error::NotFound`]; [`Error::Misuse`] for no new tokens or a sequence
    /// that occurs twice. Nothing has changed then.
    pub fn prepare<N: Into<NewTokens> + Copy>(&mut self, new: &[N]) -> Result<Step> {
        let mut seen = BTreeSet::new();
        let mut plans = Vec::with_capacity(new.len());
        let mut bytes = 0u64;
        for new in new {
            let new: NewTokens = (*new).into();
            let id = new.seq;
            if !seen.insert(id) {
                return Err(Error::misuse("requests", format!("sequence {} occurs twice", id.0)));
            }
            let (plan, needed) = self.plan(id, new.n)?;
            bytes = bytes.saturating_add(needed);
            plans.push((new, plan));
        }
        self.pool.check(bytes)?;

        let mut step = Step::new(self.next_step);
        self.next_step += 1;
        for (new, plan) in plans {
            if let Some(seq) = self.seqs.get_mut(&new.seq) {
                let share = seq.start(&self.groups, &mut self.pool, plan, new, &mut step);
                step.seqs.push(share);
            }
        }
        step.frees = self.pool.drain_freed();
        Ok(step)
    }

    /// A step without sequences, which gives the backend's memory back where no other step
    /// is to follow soon.
    pub fn release(&mut self) -> Step {
        let mut step = Step::new(self.next_step);
        self.next_step += 1;
        step.frees = self.pool.drain_freed();
        step
    }

    /// The blocks of a step, per stream, and their bytes.
    fn plan(&self, id: SeqId, n: usize) -> Result<(Vec<Growth>, u64)> {
        let seq = self.idle(id)?;
        let most = u32::MAX as usize - seq.len;
        if n == 0 || n > most {
            let what = format!("{n} for sequence {}; 1 to {most} are allowed", id.0);
            return Err(Error::misuse("new tokens", what));
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

    /// Ends a step: of sequence s the first `accepted[s]` new tokens stay. Free from now on
    /// are hot copies of sealed pages, blocks of rejected tokens, sealed blocks that no
    /// query needs after all.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `accepted` does not fit the step, which is aborted then.
    pub fn commit(&mut self, step: Step, accepted: &[usize]) -> Result<()> {
        let fits = accepted.len() == step.seqs.len()
            && step.seqs.iter().zip(accepted).all(|(share, &a)| a <= share.new_tokens);
        if !fits {
            let had: Vec<usize> = step.seqs.iter().map(|share| share.new_tokens).collect();
            self.abort(step);
            let what = format!("{accepted:?} does not fit a step of {had:?} new tokens");
            return Err(Error::misuse("accepted", what));
        }
        self.settle(&step, accepted.iter().copied());
        Ok(())
    }

    /// Gives a step up, executed or not.
    pub fn abort(&mut self, step: Step) {
        self.settle(&step, std::iter::repeat(0));
        self.pool.return_freed(step.frees);
    }

    fn settle(&mut self, step: &Step, accepted: impl Iterator<Item = usize>) {
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
                    stream.settle(spec, &mut self.pool, undo, accepted);
                }
            }
        }
    }

    /// Ends a sequence.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::NotFound`].
    pub fn free(&mut self, seq: SeqId) -> Result<()> {
        self.idle(seq)?;
        for (state, group) in
            self.seqs.remove(&seq).iter().flat_map(|s| s.groups.iter().zip(&self.groups))
        {
            for block in state.streams.iter().flat_map(|stream| stream.blocks(state.spec(group))) {
                self.pool.release(block.class, block.index);
            }
        }
        Ok(())
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
    /// [`Error::NotFound`]; [`Error::Misuse`] if `stream` does not suit.
    pub fn kept(&self, seq: SeqId, group: usize, stream: Option<usize>) -> Result<usize> {
        let (Some(state), Some(shape)) = (self.seq(seq)?.groups.get(group), self.groups.get(group))
        else {
            return Err(Error::NotFound { what: format!("KV group {group}") });
        };
        let (index, _) = stream_index(state, shape.streams, stream)?;
        Ok(state.streams[index].kept)
    }

    /// Bytes of all blocks that sequences hold, each counted once.
    pub fn held_bytes(&self) -> u64 {
        self.pool.held()
    }

    /// Bytes of the blocks that a sequence refers to, those of a step in flight included;
    /// shared ones count in full.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn bytes_of(&self, seq: SeqId) -> Result<u64> {
        let blocks = self.seq(seq)?.references(&self.groups);
        Ok(blocks.iter().map(|block| self.pool.block_bytes(block.class)).sum())
    }

    /// Bytes of blocks that no sequence holds and that [`attach`](Self::attach) may bring
    /// back: they make room when it is needed.
    pub fn idle_bytes(&self) -> u64 {
        self.pool.idle()
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
    /// [`Error::Busy`], [`Error::NotFound`]; [`Error::Misuse`] for no tokens.
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

    /// The most bytes that a fresh sequence holds at any time while `n_tokens` are computed
    /// in steps of at most `chunk`, however they are cut: in a batch, others decide.
    pub fn bytes_within(&self, n_tokens: usize, chunk: usize) -> u64 {
        let chunk = chunk.max(1);
        let held = |from: usize| {
            let to = from.saturating_add(chunk).min(n_tokens);
            let groups = self.groups.iter();
            groups.map(|group| group.uniform.step_bytes(&self.pool, from, to)).sum()
        };
        // Between these a page more is never less.
        let early = self.groups.iter().map(|group| group.uniform.settled_from()).max();
        let early = 0..early.unwrap_or(0).min(n_tokens);
        let late = n_tokens.saturating_sub(chunk.saturating_add(2 * PAGE_TOKENS))..n_tokens;
        early.chain(late).map(held).max().unwrap_or(0)
    }

    fn seq(&self, seq: SeqId) -> Result<&Seq> {
        self.seqs.get(&seq).ok_or_else(|| not_found(seq))
    }

    /// The sequence, if no step of it is in flight.
    pub(super) fn idle(&self, seq: SeqId) -> Result<&Seq> {
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
