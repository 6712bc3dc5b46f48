//! Score passes.

use super::attention::AttendParams;
use bytemuck::{Pod, Zeroable};

/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_SUM_MEAN: u32 = 0;
/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_SUM_MAX: u32 = 1;
/// What probabilities are reduced to: `ScoreReduce`.
pub const SCORE_MAX: u32 = 2;

mirror! {
    /// A score pass over one layer ([`crate::backend::score_pass`]).
    ScoreParams, 240 bytes {
        /// The call; its `lse` is read.
        0 attend: AttendParams,
        /// `u64 [n_seqs][kv_heads]`: where the scores of a stream begin.
        184 starts: u64,
        /// `f32`, `[kept]` a stream.
        192 scores: u64,
        /// `ScoreTop [chunks][rows][columns]`.
        200 parts: u64,
        /// `ScoreTop [rows][columns]`, columns = per_head ? heads : kv_heads.
        208 tops: u64,
        /// A `SCORE_` constant.
        216 reduce: u32,
        /// Queries of each sequence that count, from its end.
        220 last: u32,
        /// Rows of `q`, for tops.
        224 rows: u32,
        /// Shares of each stream's pages, for tops.
        228 chunks: u32,
        /// Tops of 0: each KV head, 1: each query head.
        232 per_head: u32,
        /// 0.
        236 reserved: u32,
    }
}

mirror! {
    /// The most probable token of a query: [`Top`](crate::backend::score_pass::Top).
    ScoreTop, 8 bytes {
        /// 0 if it sees nothing.
        0 value: f32,
        /// Kept index, sinks included; [`NONE`](super::none::NONE) if it sees nothing.
        4 index: u32,
    }
}
