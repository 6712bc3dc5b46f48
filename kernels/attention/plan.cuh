// How a stream's pages are shared among blocks. Only the stream's own length
// counts (ARCHITECTURE, rule 4), so results do not depend on the batch; and for each row
// the length that the stream has with that row as its last, so a query verified
// among others gives the bits that it gives alone.
#pragma once

#include "common/kernel.cuh"
#include "common/params/attention.h"

// Pages of one split of a stream of `pages` pages: at most 64 splits up to
// 262,144 tokens. scripts/sass-check counts items of these lengths, and gpu-predict their
// trips to L2, each waiting for the one before: item; sequence and stream; a run and its
// arena, three times; queries; block numbers. Rotated forms look at each run twice.
// sass: decode_* splits=8:256,16:1024,32:2048,64; trips=10
// sass: decode_kf*_* trips=13
DEVICE uint32_t split_pages(uint32_t pages) {
    return pages <= 256 ? 8 : pages <= 1024 ? 16 : pages <= 2048 ? 32 : 64;
}

// The most pages of a stream whose splits have 8 << k pages, k < SPLIT_LENGTHS.
constexpr uint32_t SPLIT_LENGTHS = 4;
DEVICE uint32_t most_pages(uint32_t k) {
    return k == 0 ? 256 : k == 1 ? 1024 : k == 2 ? 2048 : KV_NONE;
}

// What the queries of one sequence need of a stream.
struct Splits {
    uint32_t first; // splits before it lie outside every query's window
    uint32_t count;
    uint32_t pages; // of each
};

DEVICE Splits splits_of(uint32_t kept, uint32_t q_len, uint32_t sinks, uint32_t window) {
    uint32_t tokens = kept > sinks ? kept - sinks : 0;
    uint32_t pages = max_of(div_ceil(tokens, 64), 1u);
    uint32_t length = split_pages(pages);
    uint32_t first = 0;
    if (window != KV_NONE && kept > q_len + window) {
        // The first query sees the tokens from kept − q_len − window + 1 on.
        uint32_t start = kept - q_len - window + 1;
        first = start > sinks ? (start - sinks) / 64 / length : 0;
    }
    return {first, div_ceil(pages, length) - first, length};
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
    uint32_t from = k == 0 ? 0 : rows_up_to(p, kept, q_len, most_pages(k - 1));
    uint32_t to = rows_up_to(p, kept, q_len, most_pages(k));
    if (from == to) return {from, to, {}};
    uint32_t its = p.causal ? kept - (q_len - to) : kept; // the stream of its last row
    return {from, to, splits_of(its, to - from, p.sinks, p.window)};
}
