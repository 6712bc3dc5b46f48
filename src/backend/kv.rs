//! The KV cache of a model on a device, and the step that is under way.

use super::draw::Choice;
use super::score_pass::{Score, Scores, Top, TopHeads};
use super::{KvGroup, LayerIndex, Memory};
use crate::cache::{BlockRef, ClassDesc, Compaction, GroupView, RowKind, SeqStep, Step};
use crate::error::{Error, Result};
use std::ops::Range;

/// All of a step that comes from the host.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// What the books say.
    pub step: &'a Step,
    /// The new tokens of its sequences, one sequence after the other: the rows of the step.
    pub tokens: &'a [RowToken],
    /// The rows whose hidden states are wanted.
    pub rows: &'a [usize],
    /// How the next token of each of these is chosen; or empty.
    pub choices: &'a [Choice],
}

/// The token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowToken {
    /// This one.
    Given(u32),
    /// The one that an earlier step has drawn to this slot. It need not have come to the
    /// host yet.
    Drawn(u32),
}

/// What a repeated work is known by. Works that differ, in their operations or in the
/// buffers that they use, have different keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// Whose buffers it uses.
    pub owner: u64,
    /// Its layers.
    pub layers: Range<usize>,
    /// Whether it begins with what the work before it has left to be added.
    pub pending: bool,
    /// What it does after them.
    pub tail: &'static str,
}

/// Attention over one layer: every sequence of the step, its new tokens as queries.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// The layer.
    pub at: LayerIndex,
    /// Query heads; a multiple of the group's KV heads.
    pub heads: usize,
    /// Factor on q·k, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Whether a query sees no token behind its own. Otherwise it sees every token that
    /// its stream keeps, those of its own chunk included; its own place still decides
    /// which of them it reads sealed.
    pub causal: bool,
    /// Sliding window W: the query at position i sees keys j with i − W < j ≤ i. Only
    /// with `causal`.
    pub window: Option<usize>,
}

/// One sequence's share of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttendSeq<'a> {
    /// First row of its queries.
    pub first_row: usize,
    /// Its queries: the last `q_len` tokens of the stream.
    pub q_len: usize,
    /// What they are.
    pub kind: RowKind,
    /// What they read.
    pub view: &'a GroupView,
}

/// The shares of a step's sequences in attention over a KV group.
///
/// # Errors
/// [`Error::NotFound`] for a group that the step does not have.
pub fn attend_seqs(seqs: &[SeqStep], group: usize) -> Result<Vec<AttendSeq<'_>>> {
    let mut first_row = 0;
    let mut shares = Vec::with_capacity(seqs.len());
    for seq in seqs {
        let missing = || Error::NotFound { what: format!("KV group {group}") };
        let view = seq.views.get(group).ok_or_else(missing)?;
        shares.push(AttendSeq { first_row, q_len: seq.new_tokens, kind: seq.kind, view });
        first_row += seq.new_tokens;
    }
    Ok(shares)
}

/// A window is counted back from the query: it says nothing of what lies behind.
pub(super) fn check_mask(causal: bool, window: Option<usize>) -> Result<()> {
    match window {
        Some(w) if !causal => Err(Error::config(
            "window",
            format!("a window of {w} tokens needs causal attention: set causal, or no window"),
        )),
        _ => Ok(()),
    }
}

/// KV pages and what is done with them.
///
/// A step goes so: [`begin`](Self::begin) brings all that the host has to say;
/// everything until the next `begin` on the same arena concerns that step, needs nothing
/// more from the host, and may be enqueued rather than done; reading waits for it.
pub trait Kv: Memory {
    /// The blocks of one model, and its step that is under way. Models that share a device
    /// have one each.
    type Arena: Send;

    /// Empty arenas for the groups and the cache's classes, which never hold more than
    /// `budget` bytes together.
    fn arena(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
    ) -> Result<Self::Arena>;
    /// Bytes of blocks in use.
    fn kv_bytes(&self, arena: &Self::Arena) -> u64;
    /// Bytes of the device's memory that would be free without the arena.
    fn arena_memory(&self, arena: &Self::Arena) -> u64;

    /// Begins a step: frees, copies and restores its blocks, and takes in the rest.
    fn begin(&mut self, arena: &mut Self::Arena, step: &StepInput<'_>) -> Result<()>;
    /// Does `work`, which enqueues operations of the step and does nothing else, or
    /// has the device repeat what it enqueued for an earlier step of the same shape.
    /// Then the buffers do not learn how many rows they have.
    fn repeat(
        &mut self,
        arena: &mut Self::Arena,
        key: &GraphKey,
        work: impl FnMut(&mut Self, &mut Self::Arena) -> Result<()>,
    ) -> Result<()>
    where
        Self: Sized;

    /// Frees blocks and copies rows into ragged ones, between steps.
    fn compact(&mut self, arena: &mut Self::Arena, compaction: &Compaction) -> Result<()>;
    /// The bytes of a block in use, to be restored some day. Waits for what writes it.
    fn read_block(&mut self, arena: &Self::Arena, block: BlockRef) -> Result<Vec<u8>>;

    /// Rotates the queries and keys of one layer as its group says, unless they are rotated
    /// already, and writes the new keys and values to its 16-bit pages. `qkv` has
    /// `[q heads | k heads | v heads]` in its columns.
    fn append(
        &mut self,
        arena: &mut Self::Arena,
        at: LayerIndex,
        heads: usize,
        rotated: bool,
        qkv: &mut Self::Buffer,
    ) -> Result<()>;
    /// Rotates the queries in the first columns of `q`, for a layer that reads what
    /// another has written.
    fn rotate(
        &mut self,
        arena: &mut Self::Arena,
        at: LayerIndex,
        heads: usize,
        q: &mut Self::Buffer,
    ) -> Result<()>;
    /// Encodes the pages of layers of a KV group that the step seals. Their rows must
    /// have been written: those of a step of single tokens were, by earlier ones.
    fn seal(&mut self, arena: &mut Self::Arena, group: usize, layers: Range<usize>) -> Result<()>;
    /// Attention of the queries in the first columns of `q` over all runs in one
    /// softmax. `out` takes `[rows, heads · head_dim]`; `lse`, if given,
    /// `[rows, heads]` base-2 log-sum-exp. A row that sees nothing gives 0 and −∞.
    fn attend(
        &mut self,
        arena: &mut Self::Arena,
        call: &Attend,
        q: &Self::Buffer,
        out: &mut Self::Buffer,
        lse: Option<&mut Self::Buffer>,
    ) -> Result<()>;

    /// A score pass over what `call` attended to: `q` is that call's, `lse` what it
    /// gave. [`score_pass`](super::score_pass) defines the passes.
    fn score(
        &mut self,
        arena: &mut Self::Arena,
        call: &Attend,
        pass: Score,
        q: &Self::Buffer,
        lse: &Self::Buffer,
        out: &mut Scores,
    ) -> Result<()>;
    /// The most probable token of every query of the call: `[rows][kv_heads]`, or
    /// `[rows][heads]` of each head.
    fn score_top(
        &mut self,
        arena: &mut Self::Arena,
        call: &Attend,
        of: TopHeads,
        q: &Self::Buffer,
        lse: &Self::Buffer,
        out: &mut Vec<Top>,
    ) -> Result<()>;
}
