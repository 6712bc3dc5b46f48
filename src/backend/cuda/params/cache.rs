//! Arenas, and the kernels that write to them.

use bytemuck::{Pod, Zeroable};

mirror! {
    /// One arena: equal blocks of pages, of a single page in ragged arenas. A page is
    /// its key half, `key_bytes` long, then its value half. The page of a stream is at
    /// `base + block · block_bytes + (ragged ? 0 : stream) · page_bytes`, with
    /// `stream = layer · kv_heads + head`.
    KvArena, 40 bytes {
        /// Address of block 0.
        0 base: u64,
        /// Bytes from a block to the next.
        8 block_bytes: u64,
        /// Bytes of a page.
        16 page_bytes: u32,
        /// Bytes of its key half.
        20 key_bytes: u32,
        /// Tokens of a page: S in sink arenas, else 64.
        24 page_tokens: u32,
        /// 1: a block is one page of one stream.
        28 ragged: u32,
        /// Of the key half: [`Codec::number`](crate::codec::Codec::number).
        32 key_codec: u32,
        /// Likewise of the value half.
        36 value_codec: u32,
    }
}

mirror! {
    /// Writes new rows to 16-bit pages; RoPE first, if `inv_turns` is given.
    AppendParams, 64 bytes {
        /// `T [rows][stride]`: q heads, k heads, v heads; q and k are rotated in place.
        0 qkv: u64,
        /// `u32 [rows]` what RoPE sees.
        8 positions: u64,
        /// `AppendSlot [n_slots]`, either all with a stream of this layer or all without.
        16 slots: u64,
        /// `KvArena []`.
        24 arenas: u64,
        /// `f64 [d/2]`: inv_freq / 2π, or 0: rows are rotated already.
        32 inv_turns: u64,
        /// Slots.
        40 n_slots: u32,
        /// Elements from a row of `qkv` to the next, a multiple of 8.
        44 stride: u32,
        /// Query heads.
        48 heads: u32,
        /// KV heads.
        52 kv_heads: u32,
        /// Channels of a head.
        56 head_dim: u32,
        /// The layer within its KV group.
        60 layer: u32,
    }
}

mirror! {
    /// One row of one page.
    AppendSlot, 24 bytes {
        /// Row of `qkv`; [`NONE`](super::none::NONE): there is nothing to do.
        0 row: u32,
        /// Index in `arenas`.
        4 arena: u32,
        /// Block number.
        8 block: u32,
        /// Token within the page.
        12 slot: u32,
        /// [`NONE`](super::none::NONE): all KV heads of the layer; else `layer · kv_heads + head`.
        16 stream: u32,
        /// 0.
        20 reserved: u32,
    }
}

mirror! {
    /// Encodes whole 16-bit pages, a half of one stream's page after the other.
    SealParams, 48 bytes {
        /// `SealJob [n_jobs]`, either all with a stream or all without; those without a
        /// block last.
        0 jobs: u64,
        /// `KvArena []`.
        8 arenas: u64,
        /// `float [stream][d][d]`: [`Feedback`](crate::codec::feedback) of kf keys, at `[i][j]`
        /// what the errors of channel i weigh in channel j; or 0.
        16 feedback: u64,
        /// Jobs.
        24 n_jobs: u32,
        /// Jobs with `stream` [`NONE`](super::none::NONE) seal `streams` streams from the
        /// first of this layer on.
        28 first_layer: u32,
        /// Streams that a job stands for: 1 if it names one.
        32 streams: u32,
        /// KV heads.
        36 kv_heads: u32,
        /// Channels of a head.
        40 head_dim: u32,
        /// 0.
        44 reserved: u32,
    }
}

mirror! {
    /// One block to encode.
    SealJob, 24 bytes {
        /// Index in `arenas`.
        0 from_arena: u32,
        /// Block number; [`NONE`](super::none::NONE): there is nothing to do.
        4 from_block: u32,
        /// Index in `arenas`.
        8 to_arena: u32,
        /// Block number.
        12 to_block: u32,
        /// [`NONE`](super::none::NONE): all that are asked for.
        16 stream: u32,
        /// 0.
        20 reserved: u32,
    }
}

mirror! {
    /// Copies 16-bit rows of one stream into ragged blocks.
    GatherParams, 24 bytes {
        /// `GatherRow [n_rows]`.
        0 rows: u64,
        /// `KvArena []`.
        8 arenas: u64,
        /// Rows.
        16 n_rows: u32,
        /// Channels of a head.
        20 head_dim: u32,
    }
}

mirror! {
    /// One row of one stream to copy.
    GatherRow, 32 bytes {
        /// Index in `arenas`.
        0 from_arena: u32,
        /// Block number.
        4 from_block: u32,
        /// Token within the page.
        8 from_slot: u32,
        /// `layer · kv_heads + head`.
        12 stream: u32,
        /// Index in `arenas`.
        16 to_arena: u32,
        /// Block number.
        20 to_block: u32,
        /// Token within the page.
        24 to_slot: u32,
        /// 0.
        28 reserved: u32,
    }
}

mirror! {
    /// Puts the pieces of a parcel where they belong.
    ScatterParams, 8 bytes {
        /// `ScatterPiece []`, one for each block of threads along x, then their bytes.
        0 parcel: u64,
    }
}

mirror! {
    /// One piece of a parcel.
    ScatterPiece, 16 bytes {
        /// Address that it belongs at, a multiple of 16.
        0 to: u64,
        /// Bytes from the parcel's begin, a multiple of 16.
        8 from: u32,
        /// Bytes, a multiple of 16.
        12 bytes: u32,
    }
}

mirror! {
    /// Copies whole blocks.
    CopyParams, 24 bytes {
        /// `CopyJob [n_copies]`.
        0 copies: u64,
        /// `KvArena []`.
        8 arenas: u64,
        /// Copies.
        16 n_copies: u32,
        /// 0.
        20 reserved: u32,
    }
}

mirror! {
    /// One block to copy within its arena.
    CopyJob, 24 bytes {
        /// Arena of the block that is read.
        0 from_arena: u32,
        /// Its number.
        4 from: u32,
        /// Arena of the block that is written; it says how many bytes.
        8 to_arena: u32,
        /// Its number.
        12 to: u32,
        /// The page of `from` to begin at.
        16 page: u32,
        /// Bytes at the end of a block of `to_arena` that are not copied: none but of
        /// arenas with canaries.
        20 gap: u32,
    }
}
