// Parameters of every kernel: flat structs, mirrored in Rust with size and
// offset asserts (src/backend/cuda/params). Device addresses are 64-bit
// integers so that both sides agree on their size; shapes stand beside them.
#pragma once

#include <stdint.h>

// Storage of a half of a page (Codec in Rust).
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

// The form of a run's pages (RunKind in Rust).
enum KvRunKind : uint32_t { RUN_SINK = 0, RUN_SEALED = 1, RUN_HOT = 2 };

// "No such index" in run and stream fields.
#define KV_NONE 0xffffffffu
#define TOKEN_DRAWN 0x80000000u // a row's token is in the slot of the other bits

// One arena: equal blocks of `pages` pages (or 1 in ragged arenas). A page is
// its key half, `key_bytes` long, then its value half. The page of a stream is at
//   base + block · block_bytes + (ragged ? 0 : stream) · page_bytes
// with stream = layer · kv_heads + head.
struct KvArena {
    uint64_t base;
    uint64_t block_bytes;
    uint32_t page_bytes;
    uint32_t key_bytes;
    uint32_t page_tokens; // S in sink arenas, else 64
    uint32_t ragged;      // 1: a block is one page of one stream
    uint32_t key_codec;   // KvCodec
    uint32_t value_codec; // KvCodec
};

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

// Of AttendSeq: its streams are ragged; its rows are of a prompt (RowKind in Rust), so prefill
// takes them, whatever q_len, and else decode.
enum AttendFlags : uint32_t { SEQ_RAGGED = 1, SEQ_PROMPT = 2 };

// One sequence of an attention call: its queries are the last q_len tokens.
struct AttendSeq {
    uint32_t first_row; // of q and out
    uint32_t q_len;
    uint32_t first_stream; // uniform: its stream; ragged: + layer · kv_heads + head
    uint32_t flags; // AttendFlags
};

// A share of decode attention: some pages of one stream for some columns. A
// column is a (query, head) pair of one KV head: query · group + head.
struct AttendItem {
    uint32_t seq;
    uint32_t kv_head;
    uint32_t stream;     // index in `streams`
    uint32_t column;     // first column
    uint32_t first_page; // kept pages [first_page, first_page + n_pages)
    uint32_t n_pages;
    uint32_t part;     // of column 0; column c goes to part + c · n_splits
    uint32_t n_splits; // of the entry; 1: results go straight to `out`
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
    uint64_t seqs;      // AttendSeq [n_seqs]
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
    uint32_t reserved;
};

// What probabilities are reduced to, for each kept token and KV head.
enum ScoreReduce : uint32_t {
    SCORE_SUM_MEAN = 0, // the mean over query heads of their sums over queries
    SCORE_SUM_MAX = 1,  // the largest of them
    SCORE_MAX = 2,      // the largest over queries and heads
};

// A score pass over one layer (src/backend/score_pass.rs). Of `attend`, `lse` is read;
// `out` and what belongs to its plans and parts is not used.
struct ScoreParams {
    AttendParams attend;
    uint64_t starts;  // u64 [n_seqs][kv_heads]: where the scores of a stream begin
    uint64_t scores;  // f32, [kept] a stream
    uint64_t parts;   // ScoreTop [chunks][rows][columns]
    uint64_t tops;    // ScoreTop [rows][columns], columns = per_head ? heads : kv_heads
    uint32_t reduce;  // ScoreReduce
    uint32_t last;    // queries of each sequence that count, from its end
    uint32_t rows;    // of q, for tops
    uint32_t chunks;  // shares of each stream's pages, for tops
    uint32_t per_head; // tops of: 0: each KV head, 1: each query head
    uint32_t reserved;
};

// The most probable token of a query.
struct ScoreTop {
    float value;    // 0 if it sees nothing
    uint32_t index; // kept index, sinks included; KV_NONE if it sees nothing
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

// Encodes whole 16-bit pages: one (page, half) a block.
struct SealParams {
    uint64_t jobs;   // SealJob [n_jobs], either all with a stream of these layers or all without
    uint64_t arenas; // KvArena []
    uint64_t feedback; // float [stream][d·(d − 1)/2] of kf keys (src/codec/feedback.rs), or 0
    uint32_t n_jobs;
    uint32_t first_layer; // jobs with stream = KV_NONE seal layers [first, first + n)
    uint32_t n_layers;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t reserved;
};

struct SealJob {
    uint32_t from_arena;
    uint32_t from_block; // KV_NONE: there is nothing to do
    uint32_t to_arena;
    uint32_t to_block;
    uint32_t stream; // KV_NONE: all of the layers asked for; else layer · kv_heads + head
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

// Copies whole blocks.
struct CopyParams {
    uint64_t copies; // CopyJob [n_copies]
    uint64_t arenas; // KvArena []
    uint32_t n_copies;
    uint32_t reserved;
};

// As many bytes as a block of to_arena has.
struct CopyJob {
    uint32_t from_arena;
    uint32_t from;
    uint32_t to_arena;
    uint32_t to;
    uint32_t page; // of `from`, to begin at
    uint32_t reserved;
};

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

// The exclusive or of all words of some memory.
struct BenchReadParams {
    uint64_t from;    // n_slabs · 32 KiB
    uint64_t sums;    // u32 [blocks · 8], one a warp
    uint64_t n_slabs;
};

// Products of matrices in registers.
struct BenchMmaParams {
    uint64_t operands; // u32: A [4 tiles][32 lanes][4], then B [4 tiles][32 lanes][2]
    uint64_t sums;     // f32 [blocks · 256], one a thread
    uint32_t rounds;   // of 4 × 4 products a warp
    uint32_t reserved;
};
