// What attention reads: streams as runs over a table of blocks, and its plan
// (src/backend/cuda/params/attention.rs).
#pragma once

#include <stdint.h>

#include "common/params/none.h"

// The form of a run's pages (RunKind in Rust).
enum KvRunKind : uint32_t { RUN_SINK = 0, RUN_SEALED = 1, RUN_HOT = 2 };

// A stretch of a stream whose pages are alike and adjacent.
struct KvRun {
    uint32_t arena;    // index in `arenas`
    uint32_t kind;     // KvRunKind
    uint32_t first;    // first entry in `table`, relative to the stream's
    uint32_t start;    // kept index after the sinks of its first token: a multiple of 64
    uint32_t n_tokens; // tokens, live or not; those out of a query's sight are masked anyway
    uint32_t live;     // first word in `masks`, relative to the stream's, or KV_NONE
    uint32_t rotation; // row of `rotations` that turns queries by −Δ, or KV_NONE
    uint32_t reserved;
};

// A stream, or all streams of a uniform (sequence, KV group).
struct KvStream {
    uint32_t first_run;
    uint32_t n_runs;
    uint32_t first_entry;  // in `table`
    uint32_t first_mask;   // in `masks`
    uint32_t kept;         // tokens, sinks and the new ones included
    uint32_t sealed_bound; // pages imported from the prefix index
};

// Of KvSeq: its streams are ragged; its rows are of a prompt (RowKind in Rust), so prefill
// takes them, whatever q_len, and else decode.
enum AttendFlags : uint32_t { SEQ_RAGGED = 1, SEQ_PROMPT = 2 };

// One sequence of an attention call: its queries are the last q_len tokens.
struct KvSeq {
    uint32_t first_row; // of q and out
    uint32_t q_len;
    uint32_t first_stream; // uniform: its stream; ragged: + layer · kv_heads + head
    uint32_t flags; // AttendFlags
};

// A share of decode attention: some pages of one stream for some columns. A
// column is a (query, head) pair of one KV head: query · group + head. It says all that a
// block needs before it reads runs, so that one read brings it.
struct AttendItem {
    // The columns, as Columns (attention/columns.cuh) has them.
    int32_t first_query;
    uint32_t first_sealed;
    int32_t last_query;
    uint32_t last_sealed;
    uint32_t column; // the first
    uint32_t count;
    uint32_t group;
    uint32_t base;
    uint32_t sealed_bound;
    uint32_t first_row; // of the sequence
    uint32_t kv_head;
    uint32_t first_page; // kept pages [first_page, first_page + n_pages)
    uint32_t n_pages;
    uint32_t part;        // of column 0; column c goes to part + c · n_splits
    uint32_t n_splits;    // of the entry; 1: results go straight to `out`
    uint32_t first_run;   // in `runs`: the first that has some of the pages
    uint32_t n_runs;      // up to the last one that has some
    uint32_t first_arena; // of the first run
    uint32_t first_entry; // of the stream, as in KvStream
    uint32_t first_mask;
};

// All items of one (sequence, KV head), at seq · kv_heads + kv_head.
struct AttendEntry {
    uint32_t first_item;
    uint32_t n_items;
    uint32_t first_part; // of column 0, split 0
    uint32_t n_splits;   // the most that a column has
};

struct AttendPlan {
    uint32_t n_items; // 0 if the plan overflows
    uint32_t n_parts;
    uint32_t overflow; // 1: more than max_items or max_parts are needed
    uint32_t reserved;
};

// Attention over one layer.
struct AttendParams {
    uint64_t q;         // T [rows][q_stride], heads · d in the first columns
    uint64_t out;       // T [rows][heads · d]
    uint64_t lse;       // f32 [rows][heads], base 2, or 0
    uint64_t seqs;      // KvSeq [n_seqs]
    uint64_t streams;   // KvStream []
    uint64_t runs;      // KvRun []
    uint64_t table;     // u32 [] block numbers
    uint64_t masks;     // u64 [] live bits, one word a page
    uint64_t arenas;    // KvArena []
    uint64_t rotations; // f32 [n][d/2][2]: cos and sin of −Δ · inv_freq, or 0
    uint64_t plan;      // AttendPlan
    uint64_t items;     // AttendItem [max_items]
    uint64_t entries;   // AttendEntry [n_seqs · kv_heads]
    uint64_t part_out;  // f32 [max_parts][d], normalised
    uint64_t part_lse;  // f32 [max_parts]
    uint32_t n_seqs;
    uint32_t q_stride; // elements
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t layer;
    uint32_t sinks;        // S; 0 if the group never seals
    uint32_t hot_pages;    // R/64, or KV_NONE if the group never seals
    uint32_t window;       // a query sees the last `window` tokens; KV_NONE: all
    uint32_t tile_columns; // columns of an item: 8 or 16
    uint32_t max_items;
    uint32_t max_parts;
    float scale; // of q·k for base-2 logits: softmax scale · log2(e)
    uint32_t causal; // 1: a query sees no token behind its own; 0: it sees all that are kept
    // The most pages of a stream whose splits have 8, 16 and 32 pages; those of longer ones
    // have 64.
    uint32_t split_ends[3];
};
