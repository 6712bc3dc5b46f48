// Products, and what stands between them (src/backend/cuda/params/dense.rs).
#pragma once

#include <stdint.h>

#include "common/params/none.h"

#define TOKEN_DRAWN 0x80000000u // a row's token is in the slot of the other bits

// y = x · wᵀ.
struct GemmParams {
    uint64_t x; // T [rows][k]
    uint64_t w; // T [n][k]
    uint64_t y; // T or f32 [rows][n]
    uint32_t rows;
    uint32_t n;
    uint32_t k; // a multiple of 8
    uint32_t reserved;
};

// Root mean square norm of rows, after adding to them.
struct NormParams {
    uint64_t x;      // f32 [rows][cols]; rewritten if `delta` is given
    uint64_t delta;  // T [rows][cols] to add to x, or 0
    uint64_t weight; // f32 [cols]
    uint64_t out;    // T [rows][cols]
    uint32_t cols;   // a multiple of 8, at most 16384
    float eps;
};

// Root mean square norm of heads, in place.
struct HeadNormParams {
    uint64_t x;      // T [rows][stride]
    uint64_t weight; // f32 [head_dim]
    uint32_t rows;
    uint32_t stride;    // elements, a multiple of 8
    uint32_t first_col; // a multiple of 8
    uint32_t heads;
    uint32_t head_dim; // a multiple of 8, at most 512
    float eps;
};

// Rows of an embedding table.
struct EmbedParams {
    uint64_t table;  // T [vocab][cols]
    uint64_t tokens; // u32 [rows]: ids, or TOKEN_DRAWN | slot
    uint64_t slots;  // u32 [n_slots]: ids
    uint64_t ids;    // u32 [rows]: takes the id of each row
    uint64_t out;    // f32 [rows][cols]; the row of an id that is not below `vocab` is NaN
    uint32_t cols;   // a multiple of 8
    uint32_t vocab;
    float scale;     // what rows are multiplied with
    uint32_t n_slots;
};

// Copies rows by number.
struct SelectParams {
    uint64_t from; // [n_from] rows of any type
    uint64_t rows; // u32 [rows of to]; the copy of one that is not below `n_from` is NaN
    uint64_t to;   // the copies
    uint32_t row_bytes; // a multiple of 16
    uint32_t n_from;
};

// y = activation(gate) · up.
struct ActivateParams {
    uint64_t x; // T [rows][2 · cols]: gate, up
    uint64_t y; // T [rows][cols]
    uint32_t rows;
    uint32_t cols; // a multiple of 8
};

// x += bias on every row.
struct BiasParams {
    uint64_t x;    // T [rows][cols]
    uint64_t bias; // f32 [cols]
    uint32_t rows;
    uint32_t cols; // a multiple of 8
};

// Rotates the first heads of rows in place.
struct RopeParams {
    uint64_t x;         // T [rows][stride]
    uint64_t positions; // u32 [rows]
    uint64_t inv_turns; // f64 [head_dim / 2]: inv_freq / 2π
    uint32_t stride;    // elements, a multiple of 8
    uint32_t heads;
    uint32_t head_dim; // a multiple of 16
    uint32_t reserved;
};

// Lowers the logits of tokens that have occurred.
struct PenaliseParams {
    uint64_t logits;  // f32 [rows][stride]
    uint64_t starts;  // u32 [rows + 1] in `tokens`
    uint64_t tokens;  // u32 [], those of a row each once
    uint64_t factors; // f32 [rows]; 1: nothing is done
    uint64_t rows;    // u32 [rows] in `ids`
    uint64_t ids;     // u32 []: the tokens that rows were computed from
    uint32_t vocab;   // tokens from here on are passed over
    uint32_t stride;  // elements
};

// From logits to tokens.
struct SampleParams {
    uint64_t logits; // f32 [rows][stride]
    uint64_t draws;  // SampleDraw [rows]; 0 of argmax
    uint64_t ids;    // u32 []: of argmax one a row, of sample by slot; KV_NONE where no logit is above −∞
    uint32_t vocab;  // at most 2^22
    uint32_t stride; // elements
};

// How one row is sampled, in fixed point (src/backend/draw.rs).
struct SampleDraw {
    uint64_t top_p;      // share of the mass, of 2^32; 0: all
    uint64_t min_weight; // of 2^40, the weight of the largest logit
    float scale;         // log2(e) / temperature; 0: the largest logit
    uint32_t top_k;      // 0: all
    uint32_t uniform;    // the random number, of 2^32
    uint32_t slot;       // the element of `ids` that takes the token
};
