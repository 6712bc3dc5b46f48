//! What attention reads: streams as runs over a table of blocks, and its plan.

use bytemuck::{Pod, Zeroable};

/// The form of a run's pages: `KvRunKind`.
pub const RUN_SINK: u32 = 0;
/// The form of a run's pages: `KvRunKind`.
pub const RUN_SEALED: u32 = 1;
/// The form of a run's pages: `KvRunKind`.
pub const RUN_HOT: u32 = 2;

/// A sequence has a stream for each KV head of each layer: `AttendFlags`.
pub const SEQ_RAGGED: u32 = 1;
/// A sequence's rows are of a prompt, so prefill takes them, whatever `q_len`, and else
/// decode: `AttendFlags`.
pub const SEQ_PROMPT: u32 = 2;

mirror! {
    /// A stretch of a stream whose pages are alike and adjacent.
    KvRun, 32 bytes {
        /// Index in `arenas`.
        0 arena: u32,
        /// A `RUN_` constant.
        4 kind: u32,
        /// First entry in `table`, relative to the stream's.
        8 first: u32,
        /// Kept index after the sinks of its first token: a multiple of 64.
        12 start: u32,
        /// Tokens, live or not; later ones than a query's own are masked anyway.
        16 n_tokens: u32,
        /// First word in `masks`, relative to the stream's, or [`NONE`](super::none::NONE).
        20 live: u32,
        /// Row of `rotations` that turns queries by −Δ, or [`NONE`](super::none::NONE).
        24 rotation: u32,
        /// 0.
        28 reserved: u32,
    }
}

mirror! {
    /// A stream, or all streams of a uniform (sequence, KV group).
    KvStream, 24 bytes {
        /// Its first run in `runs`.
        0 first_run: u32,
        /// Its runs.
        4 n_runs: u32,
        /// Its first entry in `table`.
        8 first_entry: u32,
        /// Its first word in `masks`.
        12 first_mask: u32,
        /// Tokens, sinks and the new ones included.
        16 kept: u32,
        /// Pages imported from the prefix index.
        20 sealed_bound: u32,
    }
}

mirror! {
    /// One sequence of an attention call: its queries are the last q_len tokens.
    KvSeq, 16 bytes {
        /// First row of `q` and `out`.
        0 first_row: u32,
        /// Its queries.
        4 q_len: u32,
        /// Its stream; if ragged, that of head 0 of layer 0.
        8 first_stream: u32,
        /// `SEQ_` constants.
        12 flags: u32,
    }
}

mirror! {
    /// A share of decode attention: some pages of one stream for some columns. A
    /// column is a (query, head) pair of one KV head: `query · group + head`.
    AttendItem, 80 bytes {
        /// Kept index of the last token that the first column sees.
        0 first_query: i32,
        /// Pages below are read sealed by the first column.
        4 first_sealed: u32,
        /// As `first_query`, of the last column.
        8 last_query: i32,
        /// As `first_sealed`, of the last column.
        12 last_sealed: u32,
        /// First column.
        16 column: u32,
        /// Columns.
        20 count: u32,
        /// Query heads a KV head.
        24 group: u32,
        /// Kept index of the sequence's first query.
        28 base: u32,
        /// Pages of the stream that every query reads sealed.
        32 sealed_bound: u32,
        /// First row of the sequence.
        36 first_row: u32,
        /// The KV head.
        40 kv_head: u32,
        /// First kept page.
        44 first_page: u32,
        /// Kept pages.
        48 n_pages: u32,
        /// Part of column 0; column c goes to `part + c · n_splits`.
        52 part: u32,
        /// Of the entry; 1: results go straight to `out`.
        56 n_splits: u32,
        /// In `runs`: the first that has some of the pages.
        60 first_run: u32,
        /// Runs up to the last one that has some.
        64 n_runs: u32,
        /// The arena of the first run.
        68 first_arena: u32,
        /// The stream's first entry in `table`.
        72 first_entry: u32,
        /// Its first word in `masks`.
        76 first_mask: u32,
    }
}

mirror! {
    /// All items of one (sequence, KV head), at `seq · kv_heads + kv_head`.
    AttendEntry, 16 bytes {
        /// First item.
        0 first_item: u32,
        /// Items.
        4 n_items: u32,
        /// Part of column 0, split 0.
        8 first_part: u32,
        /// The most splits that a column has.
        12 n_splits: u32,
    }
}

mirror! {
    /// The size of a plan.
    AttendPlan, 16 bytes {
        /// Items; 0 if the plan overflows.
        0 n_items: u32,
        /// Parts.
        4 n_parts: u32,
        /// 1: more than `max_items` or `max_parts` are needed.
        8 overflow: u32,
        /// 0.
        12 reserved: u32,
    }
}

mirror! {
    /// Attention over one layer.
    AttendParams, 184 bytes {
        /// `T [rows][q_stride]`, heads · d in the first columns.
        0 q: u64,
        /// `T [rows][heads · d]`.
        8 out: u64,
        /// `f32 [rows][heads]`, base 2, or 0.
        16 lse: u64,
        /// `KvSeq [n_seqs]`.
        24 seqs: u64,
        /// `KvStream []`.
        32 streams: u64,
        /// `KvRun []`.
        40 runs: u64,
        /// `u32 []` block numbers.
        48 table: u64,
        /// `u64 []` live bits, one word a page.
        56 masks: u64,
        /// `KvArena []`.
        64 arenas: u64,
        /// `f32 [n][d/2][2]`: cos and sin of −Δ · inv_freq, or 0.
        72 rotations: u64,
        /// `AttendPlan`.
        80 plan: u64,
        /// `AttendItem [max_items]`.
        88 items: u64,
        /// `AttendEntry [n_seqs · kv_heads]`.
        96 entries: u64,
        /// `f32 [max_parts][d]`, normalised.
        104 part_out: u64,
        /// `f32 [max_parts]`.
        112 part_lse: u64,
        /// Sequences.
        120 n_seqs: u32,
        /// Elements from a row of `q` to the next.
        124 q_stride: u32,
        /// Query heads.
        128 heads: u32,
        /// KV heads.
        132 kv_heads: u32,
        /// The layer within its KV group.
        136 layer: u32,
        /// S; 0 if the group never seals.
        140 sinks: u32,
        /// R / 64, or [`NONE`](super::none::NONE) if the group never seals.
        144 hot_pages: u32,
        /// A query sees the last `window` tokens; [`NONE`](super::none::NONE): all.
        148 window: u32,
        /// Columns of a decode item: 8 or 16.
        152 tile_columns: u32,
        /// Capacity of `items`.
        156 max_items: u32,
        /// Capacity of `part_out` and `part_lse`.
        160 max_parts: u32,
        /// Factor on q·k for base-2 logits: softmax scale · log2(e).
        164 scale: f32,
        /// 1: a query sees no token behind its own; 0: it sees all that are kept.
        168 causal: u32,
        /// The most pages of a stream whose splits have 8, 16 and 32 pages; those of longer
        /// ones have 64.
        172 split_ends: [u32; 3],
    }
}
