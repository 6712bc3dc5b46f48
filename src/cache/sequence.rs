//! One sequence: the streams of its KV groups, and its step in flight.

use super::class::BlockRef;
use super::page::Of;
use super::pool::Pool;
use super::spec::{Group, StreamSpec};
use super::step::{NewTokens, SeqStep, Step};
use super::stream::{Growth, Ops, Stream, Undo};
use super::view::GroupView;
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
    /// The length after the last attachment: it cannot be rewound further.
    pub attached: usize,
    pub groups: Vec<SeqGroup>,
    pub flight: Option<Flight>,
}

/// The place of a stream, and whose tokens it names there: `None` all streams of a uniform
/// group, else one.
pub(super) fn stream_index(
    state: &SeqGroup,
    streams: usize,
    stream: Option<usize>,
) -> Result<(usize, Of)> {
    match (state.compacted, stream) {
        (None, None) => Ok((0, Of::All)),
        (None, Some(stream)) if stream < streams => Ok((0, Of::One(stream, streams))),
        (Some(_), Some(stream)) if stream < streams => Ok((stream, Of::All)),
        (Some(_), None) => Err(Error::misuse("stream", "must be given: the group is ragged")),
        (_, Some(_)) => Err(Error::misuse("stream", format!("must be below {streams}"))),
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
                undo.push(stream.grow(spec, pool, growth, self.len..self.len + n, &mut ops));
            }
            let view = |stream: &mut Stream| stream.view(spec, stream.kept + n);
            views.push(match state.compacted {
                None => GroupView::Uniform(view(&mut state.streams[0])),
                Some(_) => GroupView::Ragged(state.streams.iter_mut().map(view).collect()),
            });
        }
        self.flight = Some(Flight { step: step.id, new_tokens: n, undo });
        SeqStep { seq, kind, new_tokens: n, position: self.len, appends, seals, views }
    }
}
