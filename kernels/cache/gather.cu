// gather: copies kept 16-bit rows of one stream into ragged blocks, key and value.
// No row of a launch is read from a block that the launch writes.
//
// Grid (⌈n_rows / 4⌉), 128 threads: a warp copies one row.
// Must move 8·head_dim bytes a row, half of them reads.
//
// sass: gather wide=2

#include "cache/page.cuh"

namespace cache {

constexpr uint32_t GATHER_WARPS = 4;

template <Side SIDE> DEVICE void copy_row(const GatherParams& p, const GatherRow* row) {
    uint32_t bytes = 2 * p.head_dim, stream = load(&row->stream);
    uint64_t from = page_half<SIDE>(p.arenas, load(&row->from_arena), load(&row->from_block), stream);
    uint64_t to = page_half<SIDE>(p.arenas, load(&row->to_arena), load(&row->to_block), stream);
    copy_vectors(from + uint64_t(load(&row->from_slot)) * bytes, to + uint64_t(load(&row->to_slot)) * bytes,
                 bytes, lane_id(), 32);
}

} // namespace cache

using namespace cache;

KERNEL(gather, GatherParams, GATHER_WARPS * 32, 8) {
    uint32_t i = blockIdx.x * GATHER_WARPS + warp_id();
    if (i >= params.n_rows) return;
    const GatherRow* row = address<const GatherRow>(params.rows) + i;
    copy_row<KEY>(params, row);
    copy_row<VALUE>(params, row);
}
