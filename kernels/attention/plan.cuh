// How a stream's pages are shared among blocks. Only the stream's own length
// counts (ARCHITECTURE, rule 4), so results do not depend on the batch; and for each row
// the length that the stream has with that row as its last, so a query verified
// among others gives the bits that it gives alone.
#pragma once

#include "common/kernel.cuh"
#include "common/params/attention.h"

// Splits have 8 << k pages, k < SPLIT_LENGTHS: how long streams are then, says the host
// (src/backend/cuda/attend/splits.rs). scripts/sass-check counts items of these lengths, here
// with 32 KV heads of 64 channels, or 8 of more, and gpu-predict their trips to L2, each
// waiting for the one before: a run and its arena; queries; block numbers. Rotated forms look
// at a run twice.
// sass: decode_* trips=3; splits=8:256,16:1024,32:2048,64
// sass: decode_kf*_* trips=4
// sass: decode_fp8_* splits=d64:8:32,16:1024,32:2048,64 d128:8:256,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kivi4_* splits=d64:8:32,16:1024,32:2048,64 d128:8:256,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kivi42_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kivi2_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kf4_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kf3_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kf32_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
// sass: decode_kf2_* splits=d64:8:32,16:64,32:2048,64 d128:8:128,16:1024,32:2048,64 d256:8:256,16:1024,32:2048,64
constexpr uint32_t SPLIT_LENGTHS = 4;

// The most pages of a stream whose splits have 8 << k pages.
DEVICE uint32_t most_pages(const AttendParams& p, uint32_t k) {
    return k == 0 ? p.split_ends[0] : k == 1 ? p.split_ends[1] : k == 2 ? p.split_ends[2] : KV_NONE;
}

// What the queries of one sequence need of a stream.
struct Splits {
    uint32_t first; // splits before it lie outside every query's window
    uint32_t count;
    uint32_t pages; // of each
};

// In splits of 8 << k pages.
DEVICE Splits splits_of(const AttendParams& p, uint32_t kept, uint32_t q_len, uint32_t k) {
    uint32_t tokens = kept > p.sinks ? kept - p.sinks : 0;
    uint32_t pages = max_of(div_ceil(tokens, 64), 1u);
    uint32_t first = 0;
    if (p.window != KV_NONE && kept > q_len + p.window) {
        // The first query sees the tokens from kept − q_len − window + 1 on.
        uint32_t start = kept - q_len - p.window + 1;
        first = start > p.sinks ? (start - p.sinks) / 64 >> (3 + k) : 0;
    }
    return {first, ((pages - 1) >> (3 + k)) + 1 - first, 8u << k};
}

// Rows of a sequence, from its first on, that see streams of at most `pages` pages.
DEVICE uint32_t rows_up_to(const AttendParams& p, uint32_t kept, uint32_t q_len, uint32_t pages) {
    uint64_t most = uint64_t(pages) * 64 + p.sinks;
    if (pages == KV_NONE || kept <= most) return q_len;
    if (!p.causal) return 0; // each sees all that are kept
    uint32_t first = kept - q_len;
    return most > first ? uint32_t(most) - first : 0;
}

// Adjacent rows of a sequence that share splits: those with splits of 8 << k pages.
struct Segment {
    uint32_t from, to;
    Splits splits;
};

DEVICE Segment segment_of(const AttendParams& p, uint32_t kept, uint32_t q_len, uint32_t k) {
    uint32_t from = k == 0 ? 0 : rows_up_to(p, kept, q_len, most_pages(p, k - 1));
    uint32_t to = rows_up_to(p, kept, q_len, most_pages(p, k));
    if (from == to) return {from, to, {}};
    uint32_t its = p.causal ? kept - (q_len - to) : kept; // the stream of its last row
    return {from, to, splits_of(p, its, to - from, k)};
}
