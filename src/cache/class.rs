//! Names of sequences and blocks: a class is an arena of equal blocks, a block is an index
//! in it.

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 64;

/// A sequence of a [`KvCache`](super::KvCache); never given twice by the same cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// A class of blocks: its place in [`KvCache::classes`](super::KvCache::classes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ClassId(pub u16);

/// One block of one arena.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BlockRef {
    /// The arena.
    pub class: ClassId,
    /// The block's index in it; freed indices are used again, lowest first.
    pub index: u32,
}

/// What a class's blocks hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ClassKind {
    /// The S sink tokens in 16 bits, of all layers and KV heads of a group.
    Sink,
    /// 64 tokens in 16 bits, of all layers and KV heads of a group.
    Hot,
    /// 64 tokens as written by the codec, of all layers and KV heads of a group.
    Sealed,
    /// The S sink tokens of one stream, in 16 bits.
    RaggedSink,
    /// 64 tokens of one stream, in 16 bits.
    RaggedHot,
    /// 64 tokens of one stream, as written by the codec.
    RaggedSealed,
}

impl ClassKind {
    /// Every kind, uniform ones first.
    pub const ALL: [Self; 6] = [
        Self::Sink,
        Self::Hot,
        Self::Sealed,
        Self::RaggedSink,
        Self::RaggedHot,
        Self::RaggedSealed,
    ];
}

/// What a backend must know to make the arena of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassDesc {
    /// What its blocks hold.
    pub kind: ClassKind,
    /// The KV group that it serves.
    pub group: usize,
    /// Tokens in one of its pages: S for sinks, else 64.
    pub page_tokens: usize,
    /// Bytes of one block.
    pub block_bytes: u64,
}
