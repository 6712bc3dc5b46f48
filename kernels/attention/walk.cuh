// The tiles of a run that one warp reads, and where they are.
#pragma once

#include "attention/columns.cuh"
#include "common/params/cache.h"

// Tiles of ROWS tokens of a run are numbered over the grid: a page has PER_PAGE of
// them, the sink page at most that. Warp w takes those with number % warps = w,
// whatever the split, so the order of additions depends on the stream alone.
template <uint32_t ROWS> struct Walk {
    static constexpr uint32_t PER_PAGE = 64 / ROWS;

    const uint32_t* table; // of the run
    const uint64_t* masks; // of the run; null: all live
    const uint8_t* base;   // page of this stream in block 0
    uint64_t block_bytes;
    uint32_t key_bytes;
    uint32_t first_page; // on the grid, of the run's first entry
    uint32_t first;      // number of this warp's first tile
    uint32_t step;       // to its next one
    uint32_t count;
    int32_t origin; // kept index of the run's first token, sinks included
    uint32_t n_tokens;
    uint32_t kind;

    DEVICE uint32_t entry(uint32_t k) const { return (first + step * k) / PER_PAGE - first_page; }
    DEVICE uint32_t part(uint32_t k) const { return (first + step * k) % PER_PAGE; }

    // What tile k holds.
    DEVICE TileView view(uint32_t k) const {
        uint32_t e = entry(k), row = part(k) * ROWS, offset = e * 64 + row;
        uint64_t live = masks ? load(&masks[e]) : ~0ull;
        if (ROWS < 64) live = live >> row | ~0ull << ROWS % 64;
        uint32_t left = offset < n_tokens ? n_tokens - offset : 0;
        return {origin + int32_t(offset), min_of(ROWS, left), first_page + e, kind, live};
    }
};

// The part of a run that an item's columns read, shared by `warps` warps.
template <uint32_t ROWS>
DEVICE Walk<ROWS> walk_of(const AttendParams& p, const KvStream& stream, const KvRun& run,
                    const KvArena& arena, uint32_t head_stream, const AttendItem& item,
                    const Columns& columns, uint32_t warps) {
    Walk<ROWS> w;
    w.table = reinterpret_cast<const uint32_t*>(p.table) + stream.first_entry + run.first;
    w.masks = run.live == KV_NONE
                  ? nullptr
                  : reinterpret_cast<const uint64_t*>(p.masks) + stream.first_mask + run.live;
    w.base = reinterpret_cast<const uint8_t*>(arena.base) +
             (arena.ragged ? 0 : uint64_t(head_stream) * arena.page_bytes);
    w.block_bytes = arena.block_bytes;
    w.key_bytes = arena.key_bytes;
    w.first_page = run.start / 64;
    w.n_tokens = run.n_tokens;
    w.kind = run.kind;

    uint32_t entries = div_ceil(run.n_tokens, 64);
    uint32_t from = w.first_page, to = w.first_page + entries;
    if (run.kind == RUN_SINK) {
        w.origin = 0;
        if (item.first_page > 0) to = from; // the first split has the sinks
    } else {
        w.origin = int32_t(p.sinks + run.start);
        from = max_of(from, item.first_page);
        to = min_of(to, item.first_page + item.n_pages);
        if (run.kind == RUN_SEALED) to = min_of(to, columns.last.sealed);
        else from = max_of(from, columns.first.sealed);
        // Pages behind the last token in sight, or before the first window, show nothing.
        int32_t last = columns.last.query - int32_t(p.sinks);
        to = last < 0 ? from : min_of(to, uint32_t(last) / 64 + 1);
        if (p.window != KV_NONE) {
            int64_t start = int64_t(columns.first.query) - p.window + 1 - p.sinks;
            if (start > 0) from = max_of(from, uint32_t(start / 64));
        }
    }
    to = max_of(to, from);
    // Tiles [from, to) · per_page with number % warps = warp; warps is a power of 2.
    // Tiles behind the run's last token are left out: a sink page ends before them.
    uint32_t end = w.first_page * w.PER_PAGE + div_ceil(run.n_tokens, ROWS);
    uint32_t low = from * w.PER_PAGE, high = max_of(min_of(to * w.PER_PAGE, end), low);
    w.first = low + (warp_id() - low) % warps;
    w.step = warps;
    w.count = high > w.first ? div_ceil(high - w.first, warps) : 0;
    return w;
}

// Runs `compute(stage, k)` for each tile of the walk, with STAGES − 1 tiles in
// flight; `issue(stage, block, k)` starts the copies of one.
template <int STAGES, uint32_t BYTES, class Tiles, class Issue, class Compute>
DEVICE void pipeline(const Tiles& walk, uint8_t* shared, Issue issue, Compute compute) {
    static_assert(STAGES >= 2, "one tile is read while another is copied");
    uint32_t blocks = 0; // those of 32 tiles, one a lane
    uint32_t issued = 0, write = 0, read = 0;
    auto start_next = [&]() {
        if (issued < walk.count) {
            if (issued % 32 == 0) {
                uint32_t k = min_of(issued + lane_id(), walk.count - 1);
                blocks = load(&walk.table[walk.entry(k)]);
            }
            issue(shared + write * BYTES, shuffle(blocks, issued % 32), issued);
        }
        cp_async_commit();
        ++issued;
        write = write + 1 == STAGES ? 0 : write + 1;
    };
    NO_UNROLL
    for (int i = 0; i < STAGES - 1; ++i) start_next();
    for (uint32_t k = 0; k < walk.count; ++k) {
        cp_async_wait<STAGES - 2>();
        sync_warp(); // tile k is here for all lanes, and tile k − 1 is done with
        start_next();
        compute(shared + read * BYTES, k);
        read = read + 1 == STAGES ? 0 : read + 1;
    }
    cp_async_wait<0>();
    sync_warp();
}
