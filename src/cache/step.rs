//! One forward pass over the cache. Order within a step: frees, copies, restores, then
//! for each layer appends, seals, attention.

use super::class::{BlockRef, SeqId};
use super::ops::{Append, CopyBlock, Restore, Seal};
use super::view::GroupView;

/// What a row is. It picks the arithmetic of attention, whatever the number of rows, so that
/// a token has the bits that it would have had in any other chunking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RowKind {
    /// Of a prompt.
    #[default]
    Prompt,
    /// Generated, drafted, or either computed anew.
    Generated,
}

/// New tokens of a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewTokens {
    /// The sequence.
    pub seq: SeqId,
    /// How many.
    pub n: usize,
    /// What they are.
    pub kind: RowKind,
}

impl NewTokens {
    /// Tokens of a prompt.
    pub fn prompt(seq: SeqId, n: usize) -> Self {
        Self { seq, n, kind: RowKind::Prompt }
    }

    /// Generated tokens.
    pub fn generated(seq: SeqId, n: usize) -> Self {
        Self { seq, n, kind: RowKind::Generated }
    }
}

/// Tokens of a prompt.
impl From<(SeqId, usize)> for NewTokens {
    fn from((seq, n): (SeqId, usize)) -> Self {
        Self::prompt(seq, n)
    }
}

/// One sequence's share of a step.
#[derive(Clone, Debug)]
pub struct SeqStep {
    /// The sequence.
    pub seq: SeqId,
    /// What the new tokens are.
    pub kind: RowKind,
    /// Tokens to compute.
    pub new_tokens: usize,
    /// Position (what RoPE sees) of the first new token.
    pub position: usize,
    /// Where the new tokens' K and V go.
    pub appends: Vec<Append>,
    /// Pages to seal, after the appends and before attention.
    pub seals: Vec<Seal>,
    /// What the queries read, per group; the new tokens are included.
    pub views: Vec<GroupView>,
}

/// Everything that one forward pass needs. Give it back to
/// [`KvCache::commit`](super::KvCache::commit) or
/// [`KvCache::abort`](super::KvCache::abort): until then its sequences are busy.
///
/// Steps are executed in the order in which they were prepared. A step without sequences
/// only gives memory back.
#[derive(Debug)]
#[must_use = "commit or abort the step: its sequences are busy until then"]
pub struct Step {
    /// Blocks that earlier changes of the books have freed. To free one that is not in
    /// use is nothing, so a step that failed half way loses none.
    pub frees: Vec<BlockRef>,
    /// Block copies.
    pub copies: Vec<CopyBlock>,
    /// Blocks that come from elsewhere: their bytes are the caller's to add.
    pub restores: Vec<Restore>,
    /// The sequences, in the order in which they were asked for.
    pub seqs: Vec<SeqStep>,
    pub(super) id: u64,
}

impl Step {
    pub(super) fn new(id: u64) -> Self {
        let (frees, copies, restores, seqs) = Default::default();
        Self { frees, copies, restores, seqs, id }
    }
}
