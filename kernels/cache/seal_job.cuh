// Which page half a block of a seal kernel encodes.
#pragma once

#include "cache/page.cuh"

namespace cache {

constexpr uint32_t TILE_TOKENS = 64;
constexpr uint32_t SEAL_THREADS = 128;

struct SealHalf {
    uint64_t from;
    uint64_t to;
    uint32_t stream;
};

template <Side SIDE> DEVICE SealHalf seal_half(const SealParams& p, const SealJob* job, uint32_t nth) {
    uint32_t named = load(&job->stream);
    uint32_t stream = named == KV_NONE ? p.first_layer * p.kv_heads + nth : named;
    return {page_half<SIDE>(p.arenas, load(&job->from_arena), load(&job->from_block), stream),
            page_half<SIDE>(p.arenas, load(&job->to_arena), load(&job->to_block), stream), stream};
}

// Calls `seal` with each half that this block takes: of all streams of all jobs, every
// gridDim.x-th. Jobs without a block keep the grid of a captured step the same. They come
// last, so a step without a page to seal costs each block the read of one word.
template <Side SIDE, class Seal> DEVICE void for_halves(const SealParams& p, Seal seal) {
    for (uint32_t item = blockIdx.x; item < p.n_jobs * p.streams; item += gridDim.x) {
        const SealJob* job = address<const SealJob>(p.jobs) + item / p.streams;
        if (load(&job->from_block) == KV_NONE) return;
        seal(seal_half<SIDE>(p, job, item % p.streams));
        sync_block(); // the next half takes the same shared memory
    }
}

} // namespace cache
