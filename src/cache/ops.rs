//! What a backend is asked to do with blocks.

use std::sync::Arc;

use super::class::BlockRef;

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

/// Fill a block with bytes that were read from one like it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restore {
    /// The block.
    pub to: BlockRef,
    /// All of its bytes.
    pub bytes: Arc<[u8]>,
}

/// Copy a stream's whole page, byte for byte, into a ragged block of the same form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageMove {
    /// KV group.
    pub group: usize,
    /// layer · kv_heads + head within the group: which page of `from`.
    pub stream: usize,
    /// The uniform block.
    pub from: BlockRef,
    /// The ragged block to write to.
    pub to: BlockRef,
}

/// A compaction: free the blocks, then run the moves and gathers, before any later step.
/// Nothing reads what one of them writes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "later steps read what the moves and gathers write"]
pub struct Compaction {
    /// Blocks that earlier changes of the books have freed.
    pub frees: Vec<BlockRef>,
    /// Pages to move into ragged blocks.
    pub moves: Vec<PageMove>,
    /// Rows to move into ragged blocks.
    pub gathers: Vec<Gather>,
}
