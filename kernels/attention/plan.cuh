// How a stream's pages are shared among blocks. Only the stream's own length
// counts (ARCHITECTURE, rule 4), so results do not depend on the batch, and a query
// verified among others gives the bits that it gives alone.
#pragma once

#include "common/kernel.cuh"
#include "common/params.h"

// Pages of one split of a stream of `pages` pages: at most 64 splits up to
// 262,144 tokens.
DEVICE uint32_t split_pages(uint32_t pages) {
    return pages <= 256 ? 8 : pages <= 1024 ? 16 : pages <= 2048 ? 32 : 64;
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
