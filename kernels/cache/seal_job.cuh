// Which page half a block of a seal kernel encodes.
#pragma once

#include "cache/page.cuh"

constexpr uint32_t TILE_TOKENS = 64;
constexpr uint32_t SEAL_THREADS = 128;

struct SealHalf {
    uint64_t from; // 0: nothing to do, the job is of another layer's stream
    uint64_t to;
};

template <Side SIDE> DEVICE SealHalf seal_half(const SealParams& p) {
    const SealJob* job = address<const SealJob>(p.jobs) + blockIdx.x;
    uint32_t stream = served_stream(load(&job->stream), p.first_layer * p.kv_heads, p.n_layers * p.kv_heads);
    if (stream == KV_NONE) return {0, 0};
    return {page_half<SIDE>(p.arenas, load(&job->from_arena), load(&job->from_block), stream),
            page_half<SIDE>(p.arenas, load(&job->to_arena), load(&job->to_block), stream)};
}
