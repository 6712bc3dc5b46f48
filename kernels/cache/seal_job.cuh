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

// Jobs without a block keep the grid of a captured step the same.
DEVICE bool nothing_to_seal(const SealParams& p) {
    const SealJob* job = address<const SealJob>(p.jobs) + blockIdx.x;
    return load(&job->from_block) == KV_NONE;
}

template <Side SIDE> DEVICE SealHalf seal_half(const SealParams& p) {
    const SealJob* job = address<const SealJob>(p.jobs) + blockIdx.x;
    uint32_t stream = served_stream(load(&job->stream), p.first_layer * p.kv_heads);
    return {page_half<SIDE>(p.arenas, load(&job->from_arena), load(&job->from_block), stream),
            page_half<SIDE>(p.arenas, load(&job->to_arena), load(&job->to_block), stream), stream};
}

} // namespace cache
