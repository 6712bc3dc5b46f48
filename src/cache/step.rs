//! What a backend is asked to do. Order within a step: copies, then for each
//! layer appends, seals, attention.

use super::class::BlockRef;
use super::kv_cache::SeqId;
use super::view::GroupView;

/// Write new tokens `[token, token + n)` into slots `[slot, slot + n)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Append {
    /// KV group.
    pub group: usize,
    /// layer · kv_heads + head within the group; `None`: all streams of the group.
    pub stream: Option<usize>,
    /// First token, counted within the sequence's new tokens.
    pub token: usize,
    /// Tokens to write.
    pub n: usize,
    /// The 16-bit block to write to.
    pub block: BlockRef,
    /// First slot of the page.
    pub slot: usize,
}

/// Encode a full 16-bit page. The hot copy stays until the commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// KV group.
    pub group: usize,
    /// layer · kv_heads + head within the group; `None`: all streams of the group.
    pub stream: Option<usize>,
    /// The 16-bit block.
    pub from: BlockRef,
    /// The block that takes the codec's bytes.
    pub to: BlockRef,
}

/// Copy a whole block within its class (copy-on-write).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyBlock {
    /// The shared block.
    pub from: BlockRef,
    /// This sequence's own.
    pub to: BlockRef,
}

/// Copy 16-bit rows of one stream into a ragged block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gather {
    /// KV group.
    pub group: usize,
    /// layer · kv_heads + head within the group.
    pub stream: usize,
    /// Block and slot of each row; a uniform source block is read at this
    /// stream's page. The rows land in slots 0, 1, …
    pub rows: Vec<(BlockRef, u16)>,
    /// The ragged block to write to.
    pub to: BlockRef,
}

/// One sequence's share of a step.
#[derive(Clone, Debug)]
pub struct SeqStep {
    /// The sequence.
    pub seq: SeqId,
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
#[derive(Debug)]
#[must_use = "commit or abort the step: its sequences are busy until then"]
pub struct Step {
    /// Block copies, before anything else.
    pub copies: Vec<CopyBlock>,
    /// The sequences, in the order in which they were asked for.
    pub seqs: Vec<SeqStep>,
    pub(super) id: u64,
}

/// A finished compaction: run the gathers in order, then free the blocks.
#[derive(Clone, Debug)]
#[must_use = "the gathers must be executed before the freed blocks are used again"]
pub struct Compaction {
    /// Rows to move into ragged blocks.
    pub gathers: Vec<Gather>,
    /// Blocks that nothing refers to any more.
    pub free: Vec<BlockRef>,
}
