// Score passes (src/backend/cuda/params/score.rs).
#pragma once

#include "common/params/attention.h"

// What probabilities are reduced to, for each kept token and KV head.
enum ScoreReduce : uint32_t {
    SCORE_SUM_MEAN = 0, // the mean over query heads of their sums over queries
    SCORE_SUM_MAX = 1,  // the largest of them
    SCORE_MAX = 2,      // the largest over queries and heads
};

// A score pass over one layer (src/backend/score.rs). Of `attend`, `lse` is read;
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
