// Arenas, and the kernels that write to them (src/backend/cuda/params/cache.rs).
#pragma once

#include <stdint.h>

#include "common/params/none.h"

// Storage of a half of a page (Codec::number in Rust).
enum KvCodec : uint32_t {
    CODEC_F16 = 0,
    CODEC_BF16 = 1,
    CODEC_FP8 = 2,
    CODEC_KIVI4 = 3,
    CODEC_KIVI2 = 4,
    CODEC_KF4 = 5,
    CODEC_KF3 = 6,
    CODEC_KF2 = 7
};

// One arena: equal blocks of `pages` pages (or 1 in ragged arenas). A page is
// its key half, `key_bytes` long, then its value half. The page of a stream is at
//   base + block · block_bytes + (ragged ? 0 : stream) · page_bytes
// with stream = layer · kv_heads + head.
struct KvArena {
    uint64_t base;
    uint64_t block_bytes; // from a block to the next
    uint32_t page_bytes;
    uint32_t key_bytes;
    uint32_t page_tokens; // S in sink arenas, else 64
    uint32_t ragged;      // 1: a block is one page of one stream
    uint32_t key_codec;   // KvCodec
    uint32_t value_codec; // KvCodec
};

// Writes new rows to 16-bit pages; RoPE first, if `inv_turns` is given. Every
// (row, KV head of the layer) has one slot: it names the page that takes its key and
// value, and it is where its query heads are rotated.
struct AppendParams {
    uint64_t qkv;       // T [rows][stride]: q heads, k heads, v heads; q and k are rotated in place
    uint64_t positions; // u32 [rows] what RoPE sees
    uint64_t slots;     // AppendSlot [n_slots], either all with a stream of this layer or all without
    uint64_t arenas;    // KvArena []
    uint64_t inv_turns; // f64 [d/2]: inv_freq / 2π, or 0: rows are rotated already
    uint32_t n_slots;
    uint32_t stride; // elements, a multiple of 8
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t layer;
};

// One row of one page.
struct AppendSlot {
    uint32_t row; // of qkv; KV_NONE: there is nothing to do
    uint32_t arena;
    uint32_t block;
    uint32_t slot;   // token within the page
    uint32_t stream; // KV_NONE: all KV heads of the layer; else layer · kv_heads + head
    uint32_t reserved;
};

// Encodes whole 16-bit pages, a half of one stream's page after the other.
struct SealParams {
    uint64_t jobs;     // SealJob [n_jobs], either all with a stream or all without; those without a block last
    uint64_t arenas;   // KvArena []
    uint64_t feedback; // float [stream][d][d] of kf keys: [i][j], what i's errors weigh in channel j; or 0
    uint32_t n_jobs;
    uint32_t first_layer; // jobs with stream = KV_NONE seal `streams` streams from its first on
    uint32_t streams;     // that a job stands for: 1 if it names one
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t reserved;
};

struct SealJob {
    uint32_t from_arena;
    uint32_t from_block; // KV_NONE: there is nothing to do
    uint32_t to_arena;
    uint32_t to_block;
    uint32_t stream; // KV_NONE: all that are asked for; else layer · kv_heads + head
    uint32_t reserved;
};

// Copies 16-bit rows of one stream into ragged blocks.
struct GatherParams {
    uint64_t rows;   // GatherRow [n_rows]
    uint64_t arenas; // KvArena []
    uint32_t n_rows;
    uint32_t head_dim;
};

struct GatherRow {
    uint32_t from_arena;
    uint32_t from_block;
    uint32_t from_slot;
    uint32_t stream; // layer · kv_heads + head
    uint32_t to_arena;
    uint32_t to_block;
    uint32_t to_slot;
    uint32_t reserved;
};

// Puts the pieces of a parcel where they belong.
struct ScatterParams {
    uint64_t parcel; // ScatterPiece [gridDim.x], then their bytes
};

struct ScatterPiece {
    uint64_t to;    // address, a multiple of 16
    uint32_t from;  // bytes from the parcel's begin, a multiple of 16
    uint32_t bytes; // a multiple of 16
};

// Copies whole blocks, or pages of blocks to blocks of one page.
struct CopyParams {
    uint64_t copies; // CopyJob [n_copies]
    uint64_t arenas; // KvArena []
    uint32_t n_copies;
    uint32_t reserved;
};

// As many bytes as a block of to_arena has, but for `gap`.
struct CopyJob {
    uint32_t from_arena;
    uint32_t from;
    uint32_t to_arena;
    uint32_t to;
    uint32_t page; // of `from`, to begin at
    uint32_t gap;  // bytes at the end of a block that are nobody's
};
