//! One sequence: the streams of its KV groups, and its step in flight.

use super::class::BlockRef;
use super::pool::Pool;
use super::spec::{Group, StreamSpec};
use super::step::{NewTokens, SeqStep, Step};
use super::stream::{Growth, Ops, Stream, Undo};
use super::view::{GroupView, StreamView};
use crate::error::{Error, Result};

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
pub(super) struct Flight {
    pub step: u64,
    pub new_tokens: usize,
    /// In the order of groups, then streams.
    pub undo: Vec<Undo>,
}

#[derive(Clone, Debug)]
pub(super) struct Seq {
    /// Positions so far.
    pub len: usize,
    pub groups: Vec<SeqGroup>,
    pub flight: Option<Flight>,
}

/// The place of a stream: `None` names the one that stands for a uniform group.
pub(super) fn stream_index(state: &SeqGroup, stream: Option<usize>) -> Result<usize> {
    match (state.compacted, stream) {
        (None, None) => Ok(0),
        (Some(_), Some(stream)) if stream < state.streams.len() => Ok(stream),
        (None, Some(_)) => Err(Error::misuse("stream", "must be none: the group is uniform")),
        (Some(_), _) => {
            let what = format!("must be below {}: the group is ragged", state.streams.len());
            Err(Error::misuse("stream", what))
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
    pub(super) fn start(
        &mut self,
        groups: &[Group],
        pool: &mut Pool,
        plan: Vec<Growth>,
        NewTokens { seq, n, kind }: NewTokens,
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
        SeqStep { seq, kind, new_tokens: n, position: self.len, appends, seals, views }
    }
}
