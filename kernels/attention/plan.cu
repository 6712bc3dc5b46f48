// attend_plan: the work items of decode attention, made on the device so that a
// captured step needs nothing from the host.
//
// A block makes the items of OWN entries, (sequence, KV head) pairs. Where they begin
// says the count of all items before, which each block adds up for itself: to count an
// entry is cheaper than to wait for another block or launch. So, without shared memory
// but for one sum:
//
// 1. threads share the entries before the block's, and add up over the block;
// 2. each warp counts all of the block's own, a lane one, and adds up over the lanes;
// 3. each warp writes the items of a share of them, a lane one.
#include "attention/columns.cuh"
#include "attention/plan.cuh"
#include "attention/record.cuh"

namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t OWN = 32; // src/backend/cuda/attend/launch.rs has it too
constexpr uint32_t DEPTH = 4; // entries that a thread reads at a time

// What the items of an entry depend on.
struct Lengths {
    uint32_t stream;
    uint32_t kept;
    uint32_t q_len; // 0 unless decode takes the rows
    uint32_t first_row;
};

DEVICE Lengths lengths_of(const AttendParams& p, uint32_t entry) {
    uint32_t s = entry / p.kv_heads, head = entry % p.kv_heads;
    KvSeq seq = load_struct<KvSeq>(p.seqs, s);
    uint32_t stream = seq.first_stream;
    if (seq.flags & SEQ_RAGGED) stream += p.layer * p.kv_heads + head;
    uint32_t kept = load(&reinterpret_cast<const KvStream*>(p.streams)[stream].kept);
    return {stream, kept, seq.flags & SEQ_PROMPT ? 0 : seq.q_len, seq.first_row};
}

DEVICE uint32_t tiles_of(const AttendParams& p, const Segment& segment) {
    return div_ceil((segment.to - segment.from) * (p.heads / p.kv_heads), p.tile_columns);
}

struct Counts {
    uint32_t items;
    uint32_t parts;
    uint32_t splits; // the most that a column has
};

DEVICE Counts count(const AttendParams& p, const Lengths& of) {
    Counts c = {0, 0, 0};
    UNROLL
    for (uint32_t k = 0; k < SPLIT_LENGTHS; ++k) {
        Segment segment = segment_of(p, of.kept, of.q_len, k);
        if (segment.from == segment.to) continue;
        c.items += segment.splits.count * tiles_of(p, segment);
        c.splits = max_of(c.splits, segment.splits.count);
    }
    if (c.splits > 1) c.parts = c.splits * of.q_len * (p.heads / p.kv_heads);
    return c;
}

// The sum over the warp. Warp.
DEVICE uint32_t warp_sum(uint32_t x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// The sum over this lane and those before it. Warp.
DEVICE uint32_t warp_scan(uint32_t x) {
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint32_t before = shuffle(x, (lane_id() - step) % 32);
        if (lane_id() >= step) x += before;
    }
    return x;
}

// Items and parts of the entries before `end`, which all threads of the block get.
DEVICE Counts count_before(const AttendParams& p, uint32_t end) {
    Counts sum = {0, 0, 0};
    for (uint32_t first = threadIdx.x; first < end; first += DEPTH * THREADS) {
        Lengths of[DEPTH];
        UNROLL
        for (uint32_t i = 0; i < DEPTH; ++i) of[i] = lengths_of(p, min_of(first + i * THREADS, end - 1));
        UNROLL
        for (uint32_t i = 0; i < DEPTH; ++i) {
            if (first + i * THREADS >= end) continue;
            Counts c = count(p, of[i]);
            sum.items += c.items, sum.parts += c.parts;
        }
    }
    uint32_t* shared = reinterpret_cast<uint32_t*>(shared_memory()); // [WARPS][2]
    uint32_t items = warp_sum(sum.items), parts = warp_sum(sum.parts);
    if (lane_id() == 0) shared[2 * warp_id()] = items, shared[2 * warp_id() + 1] = parts;
    sync_block();
    sum = {0, 0, 0};
    UNROLL
    for (uint32_t w = 0; w < WARPS; ++w) sum.items += shared[2 * w], sum.parts += shared[2 * w + 1];
    return sum;
}

// The runs of a stream from the first to the last that has some of an item's pages.
struct Span {
    uint32_t first;
    uint32_t count;
    uint32_t arena; // of the first
};

DEVICE Span span_of(const AttendParams& p, const KvStream& stream, uint32_t first_page, uint32_t n_pages) {
    const KvRun* runs = reinterpret_cast<const KvRun*>(p.runs) + stream.first_run;
    Span span = {stream.first_run, 0, 0};
    uint32_t from = stream.n_runs;
    for (uint32_t r = 0; r < stream.n_runs; ++r) {
        uint32_t start = load(&runs[r].start) / 64, end = start + div_ceil(load(&runs[r].n_tokens), 64);
        bool meets = start < first_page + n_pages && first_page < end;
        // The first split has the sinks (walk.cuh).
        if (load(&runs[r].kind) == RUN_SINK) meets = first_page == 0;
        uint32_t arena = load(&runs[r].arena);
        if (!meets) continue;
        if (from == stream.n_runs) from = r, span.arena = arena;
        span.first = stream.first_run + from, span.count = r + 1 - from;
    }
    return span;
}

// Writes the items of one entry, whose first ones have these numbers. Warp.
DEVICE void write_items(const AttendParams& p, uint32_t kv_head, const Lengths& of, uint32_t first_item,
                        uint32_t first_part, uint32_t n_splits) {
    KvStream stream = load_struct<KvStream>(p.streams, of.stream);
    AttendItem* items = reinterpret_cast<AttendItem*>(p.items) + first_item;
    uint32_t group = p.heads / p.kv_heads;
    for (uint32_t k = 0; k < SPLIT_LENGTHS; ++k) {
        Segment segment = segment_of(p, of.kept, of.q_len, k);
        if (segment.from == segment.to) continue;
        Splits splits = segment.splits;
        uint32_t n = splits.count * tiles_of(p, segment);
        for (uint32_t i = lane_id(); i < n; i += 32) {
            uint32_t split = i % splits.count, tile = i / splits.count;
            uint32_t column = segment.from * group + tile * p.tile_columns;
            uint32_t first_page = (splits.first + split) * splits.pages;
            Span runs = span_of(p, stream, first_page, splits.pages);
            // Rows behind the segment share its splits no more.
            uint32_t most = min_of(p.tile_columns, segment.to * group - column);
            Columns c = columns_of(p, stream, of.q_len, column, most);
            AttendItem item = {
                c.first.query, c.first.sealed, c.last.query,      c.last.sealed,      c.column,
                c.count,       c.group,        c.base,            c.sealed_bound,     of.first_row,
                kv_head,       first_page,     splits.pages,      first_part + split, n_splits,
                runs.first,    runs.count,     runs.arena,        stream.first_entry, stream.first_mask,
            };
            static_assert(sizeof(AttendItem) % 16 == 0, "written 16 bytes at a time");
            const Vec16* from = reinterpret_cast<const Vec16*>(&item);
            UNROLL
            for (uint32_t w = 0; w < sizeof(AttendItem) / 16; ++w) store(reinterpret_cast<Vec16*>(&items[i]) + w, from[w]);
        }
        items += n;
    }
}

} // namespace

KERNEL(attend_plan, AttendParams, THREADS, 1) {
    uint32_t n = params.n_seqs * params.kv_heads;
    uint32_t first = blockIdx.x * OWN, own = min_of(n - first, OWN);
    // Read now, counted when those before have come.
    Lengths mine = lengths_of(params, first + min_of(lane_id(), own - 1));
    Counts before = count_before(params, first);
    Counts c = {0, 0, 0};
    if (lane_id() < own) c = count(params, mine);
    uint32_t end_item = before.items + warp_scan(c.items), end_part = before.parts + warp_scan(c.parts);
    AttendEntry entry = {end_item - c.items, c.items, end_part - c.parts, c.splits};
    if (warp_id() == 0 && lane_id() < own) {
        AttendEntry* entries = reinterpret_cast<AttendEntry*>(params.entries);
        store(reinterpret_cast<Vec16*>(&entries[first + lane_id()]), *reinterpret_cast<const Vec16*>(&entry));
    }
    // The last block has counted all.
    uint32_t n_items = shuffle(end_item, 31), n_parts = shuffle(end_part, 31);
    if (first + own == n && threadIdx.x == 0) {
        bool overflow = n_items > params.max_items || n_parts > params.max_parts;
        AttendPlan* plan = reinterpret_cast<AttendPlan*>(params.plan);
        store(&plan->n_items, overflow ? 0 : n_items);
        store(&plan->n_parts, overflow ? 0 : n_parts);
        store(&plan->overflow, uint32_t(overflow));
        store(&plan->reserved, 0u);
    }
    for (uint32_t e = warp_id(); e < own; e += WARPS) {
        Lengths of = {shuffle(mine.stream, e), shuffle(mine.kept, e), shuffle(mine.q_len, e),
                      shuffle(mine.first_row, e)};
        uint32_t item = shuffle(entry.first_item, e), count = shuffle(entry.n_items, e);
        uint32_t part = shuffle(entry.first_part, e), splits = shuffle(entry.n_splits, e);
        // Otherwise the plan overflows, and nobody reads it.
        if (item + count <= params.max_items) write_items(params, (first + e) % params.kv_heads, of, item, part, splits);
    }
}
