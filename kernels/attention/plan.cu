// attend_plan: the work items of decode attention, made on the device so that a
// captured step needs nothing from the host. One block of 256 threads.
//
// 1. Each thread counts the items and parts of one (sequence, KV head); a scan
//    over the block turns the counts into offsets.
// 2. Each warp writes the items of one (sequence, KV head) at a time.
#include "attention/plan.cuh"
#include "common/ptx.cuh"

namespace {

constexpr uint32_t THREADS = 256;

struct Counts {
    uint32_t items;
    uint32_t parts;
    uint32_t splits; // the most that a column has
    uint32_t stream;
    uint32_t kept;
    uint32_t q_len; // 0 unless decode takes the rows
};

DEVICE uint32_t items_of(const AttendParams& p, const Segment& segment) {
    uint32_t columns = (segment.to - segment.from) * (p.heads / p.kv_heads);
    return segment.splits.count * div_ceil(columns, p.tile_columns);
}

DEVICE Counts count(const AttendParams& p, uint32_t entry) {
    uint32_t s = entry / p.kv_heads, head = entry % p.kv_heads;
    const KvSeq* seq = reinterpret_cast<const KvSeq*>(p.seqs) + s;
    uint32_t q_len = load(&seq->flags) & SEQ_PROMPT ? 0 : load(&seq->q_len);
    uint32_t stream = load(&seq->first_stream);
    if (load(&seq->flags) & SEQ_RAGGED) stream += p.layer * p.kv_heads + head;
    const KvStream* streams = reinterpret_cast<const KvStream*>(p.streams);
    Counts c = {0, 0, 0, stream, load(&streams[stream].kept), q_len};
    for (uint32_t k = 0; k < SPLIT_LENGTHS; ++k) {
        Segment segment = segment_of(p, c.kept, q_len, k);
        c.items += items_of(p, segment);
        c.splits = max_of(c.splits, segment.splits.count);
    }
    c.parts = c.splits > 1 ? c.splits * q_len * (p.heads / p.kv_heads) : 0;
    return c;
}

// Exclusive sums over the block of one value a thread; `total` is their sum.
DEVICE uint32_t scan(uint32_t* shared, uint32_t x, uint32_t* total) {
    shared[threadIdx.x] = x;
    for (uint32_t step = 1; step < THREADS; step *= 2) {
        sync_block();
        uint32_t before = threadIdx.x >= step ? shared[threadIdx.x - step] : 0;
        sync_block();
        shared[threadIdx.x] += before;
    }
    sync_block();
    uint32_t sum = shared[threadIdx.x] - x;
    *total = shared[THREADS - 1];
    sync_block();
    return sum;
}

DEVICE void write_items(const AttendParams& p, uint32_t index, const AttendEntry& entry) {
    Counts c = count(p, index);
    AttendItem* items = reinterpret_cast<AttendItem*>(p.items) + entry.first_item;
    for (uint32_t k = 0; k < SPLIT_LENGTHS; ++k) {
        Segment segment = segment_of(p, c.kept, c.q_len, k);
        uint32_t n = items_of(p, segment);
        for (uint32_t i = lane_id(); i < n; i += 32) {
            uint32_t split = i % segment.splits.count, tile = i / segment.splits.count;
            AttendItem item = {
                index / p.kv_heads,
                index % p.kv_heads,
                c.stream,
                segment.from * (p.heads / p.kv_heads) + tile * p.tile_columns,
                (segment.splits.first + split) * segment.splits.pages,
                segment.splits.pages,
                entry.first_part + split,
                c.splits,
            };
            // 16 bytes at a time.
            const Vec16* from = reinterpret_cast<const Vec16*>(&item);
            store(reinterpret_cast<Vec16*>(&items[i]), from[0]);
            store(reinterpret_cast<Vec16*>(&items[i]) + 1, from[1]);
        }
        items += n;
    }
}

} // namespace

KERNEL(attend_plan, AttendParams, THREADS, 1) {
    uint32_t* shared = reinterpret_cast<uint32_t*>(shared_memory());
    AttendEntry* entries = reinterpret_cast<AttendEntry*>(params.entries);
    uint32_t n = params.n_seqs * params.kv_heads;

    uint32_t n_items = 0, n_parts = 0;
    for (uint32_t first = 0; first < n; first += THREADS) {
        uint32_t e = first + threadIdx.x;
        Counts c = {};
        if (e < n) c = count(params, e);
        uint32_t items, parts;
        uint32_t item = n_items + scan(shared, c.items, &items);
        uint32_t part = n_parts + scan(shared, c.parts, &parts);
        if (e < n) {
            AttendEntry entry = {item, c.items, part, c.splits};
            store(reinterpret_cast<Vec16*>(&entries[e]), *reinterpret_cast<const Vec16*>(&entry));
        }
        n_items += items;
        n_parts += parts;
    }
    bool overflow = n_items > params.max_items || n_parts > params.max_parts;
    if (threadIdx.x == 0) {
        AttendPlan* plan = reinterpret_cast<AttendPlan*>(params.plan);
        store(&plan->n_items, overflow ? 0 : n_items);
        store(&plan->n_parts, overflow ? 0 : n_parts);
        store(&plan->overflow, uint32_t(overflow));
        store(&plan->reserved, 0u);
    }
    sync_block(); // the entries are written
    if (overflow) return;
    for (uint32_t e = warp_id(); e < n; e += THREADS / 32) {
        Vec16 raw = load(reinterpret_cast<const Vec16*>(&entries[e]));
        write_items(params, e, *reinterpret_cast<const AttendEntry*>(&raw));
    }
}
