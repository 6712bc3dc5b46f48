//! The parameter structs of the kernels: `kernels/common/params.h` in Rust.
//!
//! The header says what the fields mean; shapes stand there. Sizes and offsets are
//! checked below, and against the C++ compiler by a test.

use bytemuck::{Pod, Zeroable};

/// "No such index" in run and stream fields.
pub const NONE: u32 = u32::MAX;

/// Storage of a half of a page: `KvCodec`.
pub const CODEC_F16: u32 = 0;
/// Storage of a half of a page: `KvCodec`.
pub const CODEC_BF16: u32 = 1;
/// Storage of a half of a page: `KvCodec`.
pub const CODEC_FP8: u32 = 2;
/// Storage of a half of a page: `KvCodec`.
pub const CODEC_KIVI4: u32 = 3;
/// Storage of a half of a page: `KvCodec`.
pub const CODEC_KIVI2: u32 = 4;
/// The form of a run's pages: `KvRunKind`.
pub const RUN_SINK: u32 = 0;
/// The form of a run's pages: `KvRunKind`.
pub const RUN_SEALED: u32 = 1;
/// The form of a run's pages: `KvRunKind`.
pub const RUN_HOT: u32 = 2;

/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_SUM_MEAN: u32 = 0;
/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_SUM_MAX: u32 = 1;
/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_MAX: u32 = 2;

/// Defines a struct as C lays it out, with its size and the offset of each field.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident, $bytes:literal bytes {
        $($(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $bytes);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };

        #[cfg(test)]
        impl $name {
            /// Struct, field and offset of all fields, and the size as field "".
            const LAYOUT: &[(&str, &str, usize)] = &[
                $((stringify!($name), stringify!($field), $offset),)*
                (stringify!($name), "", $bytes),
            ];
        }
    };
}

mirror! {
    /// One arena: equal blocks of pages, of a single page in ragged arenas. A page is
    /// its key half, `key_bytes` long, then its value half. The page of a stream is at
    /// `base + block · block_bytes + (ragged ? 0 : stream) · page_bytes`, with
    /// `stream = layer · kv_heads + head`.
    KvArena, 40 bytes {
        /// Address of block 0.
        0 base: u64,
        /// Bytes of a block.
        8 block_bytes: u64,
        /// Bytes of a page.
        16 page_bytes: u32,
        /// Bytes of its key half.
        20 key_bytes: u32,
        /// Tokens of a page: S in sink arenas, else 64.
        24 page_tokens: u32,
        /// 1: a block is one page of one stream.
        28 ragged: u32,
        /// A `CODEC_` constant.
        32 key_codec: u32,
        /// A `CODEC_` constant.
        36 value_codec: u32,
    }
}

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
        /// First word in `masks`, relative to the stream's, or [`NONE`].
        20 live: u32,
        /// Row of `rotations` that turns queries by −Δ, or [`NONE`].
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
    AttendSeq, 16 bytes {
        /// First row of `q` and `out`.
        0 first_row: u32,
        /// Its queries.
        4 q_len: u32,
        /// Its stream; if ragged, that of head 0 of layer 0.
        8 first_stream: u32,
        /// 1: a stream for each KV head of each layer.
        12 ragged: u32,
    }
}

mirror! {
    /// A share of decode attention: some pages of one stream for some columns. A
    /// column is a (query, head) pair of one KV head: `query · group + head`.
    AttendItem, 32 bytes {
        /// The sequence.
        0 seq: u32,
        /// The KV head.
        4 kv_head: u32,
        /// Index in `streams`.
        8 stream: u32,
        /// First column.
        12 column: u32,
        /// First kept page.
        16 first_page: u32,
        /// Kept pages.
        20 n_pages: u32,
        /// Part of column 0; column c goes to `part + c · n_splits`.
        24 part: u32,
        /// 1: results go straight to `out`.
        28 n_splits: u32,
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
        /// Splits of the stream.
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
    AttendParams, 176 bytes {
        /// `T [rows][q_stride]`, heads · d in the first columns.
        0 q: u64,
        /// `T [rows][heads · d]`.
        8 out: u64,
        /// `f32 [rows][heads]`, base 2, or 0.
        16 lse: u64,
        /// `AttendSeq [n_seqs]`.
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
        /// R / 64, or [`NONE`] if the group never seals.
        144 hot_pages: u32,
        /// A query sees the last `window` tokens; [`NONE`]: all.
        148 window: u32,
        /// Columns of a decode item: 8 or 16.
        152 tile_columns: u32,
        /// Sequences with more queries than this are left to prefill.
        156 decode_rows: u32,
        /// Capacity of `items`.
        160 max_items: u32,
        /// Capacity of `part_out` and `part_lse`.
        164 max_parts: u32,
        /// Factor on q·k for base-2 logits: softmax scale · log2(e).
        168 scale: f32,
        /// 1: a query sees no token behind its own; 0: it sees all that are kept.
        172 causal: u32,
    }
}

mirror! {
    /// A score pass over one layer ([`crate::backend::score`]).
    ScoreParams, 232 bytes {
        /// The call; its `lse` is read.
        0 attend: AttendParams,
        /// `u64 [n_seqs][kv_heads]`: where the scores of a stream begin.
        176 starts: u64,
        /// `f32`, `[kept]` a stream.
        184 scores: u64,
        /// `ScoreTop [chunks][rows][columns]`.
        192 parts: u64,
        /// `ScoreTop [rows][columns]`, columns = per_head ? heads : kv_heads.
        200 tops: u64,
        /// A `SCORE_` constant.
        208 reduce: u32,
        /// Queries of each sequence that count, from its end.
        212 last: u32,
        /// Rows of `q`, for tops.
        216 rows: u32,
        /// Shares of each stream's pages, for tops.
        220 chunks: u32,
        /// Tops of 0: each KV head, 1: each query head.
        224 per_head: u32,
        /// 0.
        228 reserved: u32,
    }
}

mirror! {
    /// The most probable token of a query: [`Top`](crate::backend::score::Top).
    ScoreTop, 8 bytes {
        /// 0 if it sees nothing.
        0 value: f32,
        /// Kept index, sinks included; [`NONE`] if it sees nothing.
        4 index: u32,
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
        /// Row of `qkv`.
        0 row: u32,
        /// Index in `arenas`.
        4 arena: u32,
        /// Block number.
        8 block: u32,
        /// Token within the page.
        12 slot: u32,
        /// [`NONE`]: all KV heads of the layer; else `layer · kv_heads + head`.
        16 stream: u32,
        /// 0.
        20 reserved: u32,
    }
}

mirror! {
    /// Encodes whole 16-bit pages: one (page, half) a warp or block.
    SealParams, 40 bytes {
        /// `SealJob [n_jobs]`, either all with a stream of these layers or all without.
        0 jobs: u64,
        /// `KvArena []`.
        8 arenas: u64,
        /// Jobs.
        16 n_jobs: u32,
        /// Jobs with `stream` [`NONE`] seal the layers `[first_layer, first_layer + n_layers)`.
        20 first_layer: u32,
        /// See `first_layer`.
        24 n_layers: u32,
        /// KV heads.
        28 kv_heads: u32,
        /// Channels of a head.
        32 head_dim: u32,
        /// 0.
        36 reserved: u32,
    }
}

mirror! {
    /// One block to encode.
    SealJob, 24 bytes {
        /// Index in `arenas`.
        0 from_arena: u32,
        /// Block number.
        4 from_block: u32,
        /// Index in `arenas`.
        8 to_arena: u32,
        /// Block number.
        12 to_block: u32,
        /// [`NONE`]: all of the layers asked for.
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
    CopyJob, 16 bytes {
        /// Arena of both blocks.
        0 arena: u32,
        /// Block number.
        4 from: u32,
        /// Block number.
        8 to: u32,
        /// 0.
        12 reserved: u32,
    }
}

mirror! {
    /// `y = x · wᵀ`.
    GemmParams, 40 bytes {
        /// `T [rows][k]`.
        0 x: u64,
        /// `T [n][k]`.
        8 w: u64,
        /// `T` or `f32 [rows][n]`.
        16 y: u64,
        /// Rows of `x` and `y`.
        24 rows: u32,
        /// Rows of `w`, columns of `y`.
        28 n: u32,
        /// Columns of `x` and `w`: a multiple of 8.
        32 k: u32,
        /// 0.
        36 reserved: u32,
    }
}

mirror! {
    /// Root mean square norm of rows, after adding to them.
    NormParams, 40 bytes {
        /// `f32 [rows][cols]`; rewritten if `delta` is given.
        0 x: u64,
        /// `T [rows][cols]` to add to x, or 0.
        8 delta: u64,
        /// `f32 [cols]`.
        16 weight: u64,
        /// `T [rows][cols]`.
        24 out: u64,
        /// Columns: a multiple of 8, at most 16384.
        32 cols: u32,
        /// What is added to the mean square.
        36 eps: f32,
    }
}

mirror! {
    /// Root mean square norm of heads, in place.
    HeadNormParams, 40 bytes {
        /// `T [rows][stride]`.
        0 x: u64,
        /// `f32 [head_dim]`.
        8 weight: u64,
        /// Rows.
        16 rows: u32,
        /// Elements from a row to the next, a multiple of 8.
        20 stride: u32,
        /// First column: a multiple of 8.
        24 first_col: u32,
        /// Heads.
        28 heads: u32,
        /// Channels of a head: a multiple of 8, at most 512.
        32 head_dim: u32,
        /// What is added to the mean square.
        36 eps: f32,
    }
}

mirror! {
    /// Rows of an embedding table.
    EmbedParams, 32 bytes {
        /// `T [vocab][cols]`.
        0 table: u64,
        /// `u32 [rows]`; the row of one that is not below `vocab` is NaN.
        8 ids: u64,
        /// `f32 [rows][cols]`.
        16 out: u64,
        /// Columns: a multiple of 8.
        24 cols: u32,
        /// Rows of the table.
        28 vocab: u32,
    }
}

mirror! {
    /// Copies rows by number.
    SelectParams, 32 bytes {
        /// `f32 [n_from][cols]`.
        0 from: u64,
        /// `u32 [rows of to]`; the copy of one that is not below `n_from` is NaN.
        8 rows: u64,
        /// `f32 [][cols]`.
        16 to: u64,
        /// Columns: a multiple of 4.
        24 cols: u32,
        /// Rows of `from`.
        28 n_from: u32,
    }
}

mirror! {
    /// y = activation(gate) · up.
    ActivateParams, 24 bytes {
        /// `T [rows][2 · cols]`: gate, up.
        0 x: u64,
        /// `T [rows][cols]`.
        8 y: u64,
        /// Rows.
        16 rows: u32,
        /// Columns: a multiple of 8.
        20 cols: u32,
    }
}

mirror! {
    /// x += bias on every row.
    BiasParams, 24 bytes {
        /// `T [rows][cols]`.
        0 x: u64,
        /// `f32 [cols]`.
        8 bias: u64,
        /// Rows.
        16 rows: u32,
        /// Columns: a multiple of 8.
        20 cols: u32,
    }
}

mirror! {
    /// Rotates the first heads of rows in place.
    RopeParams, 40 bytes {
        /// `T [rows][stride]`.
        0 x: u64,
        /// `u32 [rows]`.
        8 positions: u64,
        /// `f64 [head_dim / 2]`: inv_freq / 2π.
        16 inv_turns: u64,
        /// Elements from a row to the next, a multiple of 8.
        24 stride: u32,
        /// Heads.
        28 heads: u32,
        /// Channels of a head: a multiple of 16.
        32 head_dim: u32,
        /// 0.
        36 reserved: u32,
    }
}

mirror! {
    /// From logits to tokens.
    SampleParams, 32 bytes {
        /// `f32 [rows][stride]`.
        0 logits: u64,
        /// `SampleDraw [rows]`; 0 of `argmax`.
        8 draws: u64,
        /// `u32 [rows]`; [`NONE`] where no logit is above −∞.
        16 ids: u64,
        /// Logits of a row: at most 2^22.
        24 vocab: u32,
        /// Elements from a row to the next.
        28 stride: u32,
    }
}

mirror! {
    /// How one row is sampled, in fixed point (src/backend/draw.rs).
    SampleDraw, 32 bytes {
        /// Share of the mass, of 2^32; 0: all.
        0 top_p: u64,
        /// Of 2^40, the weight of the largest logit.
        8 min_weight: u64,
        /// `log2(e)` / temperature; 0: the largest logit.
        16 scale: f32,
        /// 0: all.
        20 top_k: u32,
        /// The random number, of 2^32.
        24 uniform: u32,
        /// 0.
        28 reserved: u32,
    }
}

mirror! {
    /// The exclusive or of all words of some memory.
    BenchReadParams, 24 bytes {
        /// `n_slabs` · 32 KiB.
        0 from: u64,
        /// `u32 [blocks · 8]`, one a warp.
        8 sums: u64,
        /// Slabs.
        16 n_slabs: u64,
    }
}

mirror! {
    /// Products of matrices in registers.
    BenchMmaParams, 24 bytes {
        /// `u32`: A `[4 tiles][32 lanes][4]`, then B `[4 tiles][32 lanes][2]`.
        0 operands: u64,
        /// `f32 [blocks · 256]`, one a thread.
        8 sums: u64,
        /// Of 4 × 4 products a warp.
        16 rounds: u32,
        /// 0.
        20 reserved: u32,
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use std::ffi::{CStr, c_char};

    /// A row of the table in kernels/emulator/params_layout.cpp.
    #[repr(C)]
    struct Row {
        structure: *const c_char,
        field: *const c_char,
        offset: u64,
    }

    unsafe extern "C" {
        fn kvfold_params_layout(index: u32) -> *const Row;
    }

    #[test]
    fn the_cpp_compiler_lays_out_the_same_structs() {
        let text = |p| {
            // SAFETY: the table holds string literals.
            unsafe { CStr::from_ptr(p) }.to_str().unwrap()
        };
        let mut theirs = Vec::new();
        for index in 0.. {
            // SAFETY: any index may be asked for; the end is null.
            let Some(row) = (unsafe { kvfold_params_layout(index).as_ref() }) else { break };
            theirs.push((text(row.structure), text(row.field), row.offset as usize));
        }
        let mut ours = [
            KvArena::LAYOUT,
            KvRun::LAYOUT,
            KvStream::LAYOUT,
            AttendSeq::LAYOUT,
            AttendItem::LAYOUT,
            AttendEntry::LAYOUT,
            AttendPlan::LAYOUT,
            AttendParams::LAYOUT,
            ScoreParams::LAYOUT,
            ScoreTop::LAYOUT,
            AppendParams::LAYOUT,
            AppendSlot::LAYOUT,
            SealParams::LAYOUT,
            SealJob::LAYOUT,
            GatherParams::LAYOUT,
            GatherRow::LAYOUT,
            CopyParams::LAYOUT,
            CopyJob::LAYOUT,
            GemmParams::LAYOUT,
            NormParams::LAYOUT,
            HeadNormParams::LAYOUT,
            EmbedParams::LAYOUT,
            SelectParams::LAYOUT,
            ActivateParams::LAYOUT,
            BiasParams::LAYOUT,
            RopeParams::LAYOUT,
            SampleParams::LAYOUT,
            SampleDraw::LAYOUT,
            BenchReadParams::LAYOUT,
            BenchMmaParams::LAYOUT,
            &[
                ("KvCodec", "CODEC_F16", CODEC_F16 as usize),
                ("KvCodec", "CODEC_BF16", CODEC_BF16 as usize),
                ("KvCodec", "CODEC_FP8", CODEC_FP8 as usize),
                ("KvCodec", "CODEC_KIVI4", CODEC_KIVI4 as usize),
                ("KvCodec", "CODEC_KIVI2", CODEC_KIVI2 as usize),
                ("KvRunKind", "RUN_SINK", RUN_SINK as usize),
                ("KvRunKind", "RUN_SEALED", RUN_SEALED as usize),
                ("KvRunKind", "RUN_HOT", RUN_HOT as usize),
                ("ScoreReduce", "SCORE_SUM_MEAN", SCORE_SUM_MEAN as usize),
                ("ScoreReduce", "SCORE_SUM_MAX", SCORE_SUM_MAX as usize),
                ("ScoreReduce", "SCORE_MAX", SCORE_MAX as usize),
            ],
        ]
        .concat();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
    }
}
