//! Products, and what stands between them.

use bytemuck::{Pod, Zeroable};

/// A row's token is in the slot that the other bits name.
pub const TOKEN_DRAWN: u32 = 1 << 31;

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
    EmbedParams, 56 bytes {
        /// `T [vocab][cols]`.
        0 table: u64,
        /// `u32 [rows]`: ids, or [`TOKEN_DRAWN`] and a slot.
        8 tokens: u64,
        /// `u32 [n_slots]`: ids.
        16 slots: u64,
        /// `u32 [rows]`: takes the id of each row.
        24 ids: u64,
        /// `f32 [rows][cols]`; the row of an id that is not below `vocab` is NaN.
        32 out: u64,
        /// Columns: a multiple of 8.
        40 cols: u32,
        /// Rows of the table.
        44 vocab: u32,
        /// What rows are multiplied with.
        48 scale: f32,
        /// Slots.
        52 n_slots: u32,
    }
}

mirror! {
    /// Copies rows by number.
    SelectParams, 32 bytes {
        /// `[n_from]` rows of any type.
        0 from: u64,
        /// `u32 [rows of to]`; the copy of one that is not below `n_from` is NaN.
        8 rows: u64,
        /// The copies.
        16 to: u64,
        /// Bytes of a row: a multiple of 16.
        24 row_bytes: u32,
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
    /// Lowers the logits of tokens that have occurred.
    PenaliseParams, 56 bytes {
        /// `f32 [rows][stride]`.
        0 logits: u64,
        /// `u32 [rows + 1]` in `tokens`.
        8 starts: u64,
        /// `u32 []`, those of a row each once.
        16 tokens: u64,
        /// `f32 [rows]`; 1: nothing is done.
        24 factors: u64,
        /// `u32 [rows]` in `ids`.
        32 rows: u64,
        /// `u32 []`: the tokens that rows were computed from.
        40 ids: u64,
        /// Logits of a row: tokens from here on are passed over.
        48 vocab: u32,
        /// Elements from a row to the next.
        52 stride: u32,
    }
}

mirror! {
    /// From logits to tokens.
    SampleParams, 32 bytes {
        /// `f32 [rows][stride]`.
        0 logits: u64,
        /// `SampleDraw [rows]`; 0 of `argmax`.
        8 draws: u64,
        /// `u32 []`: of `argmax` one a row, of `sample` by slot; [`NONE`](super::none::NONE) where no
        /// logit is above −∞.
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
        /// The element of `ids` that takes the token.
        28 slot: u32,
    }
}
