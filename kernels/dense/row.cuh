// A row of logits and how a block of 1024 threads goes over it.
#pragma once

#include "common/half.cuh"
#include "common/params/dense.h"
#include "dense/weight.cuh"

namespace dense {

using namespace common;

constexpr uint32_t SAMPLE_THREADS = 1024, SAMPLE_WARPS = SAMPLE_THREADS / 32;

struct Row {
    const float* logits;
    uint32_t vocab;
    bool aligned; // to 16 bytes

    static DEVICE Row of(const SampleParams& p) {
        const float* logits = address<const float>(p.logits) + size_t(blockIdx.x) * p.stride;
        return {logits, p.vocab, p.stride % 4 == 0};
    }

    DEVICE uint32_t quads() const { return div_ceil(vocab, 4); }

    // Calls f(token, logit) for the four tokens of a quad, as far as they exist.
    template <class F> DEVICE void each(uint32_t quad, F f) const {
        uint32_t first = 4 * quad;
        if (aligned && first + 4 <= vocab) {
            Vec16 v = load(reinterpret_cast<const Vec16*>(logits) + quad);
            UNROLL
            for (uint32_t i = 0; i < 4; ++i) f(first + i, bits_float(v.w[i]));
        } else {
            for (uint32_t i = first; i < min_of(first + 4, vocab); ++i) f(i, load(logits + i));
        }
    }

    // Calls f(token, logit) for all tokens, shared out to the block's threads.
    template <class F> DEVICE void all(F f) const {
        for (uint32_t quad = threadIdx.x; quad < quads(); quad += SAMPLE_THREADS) each(quad, f);
    }
};

DEVICE uint64_t shuffle64(uint64_t x, uint32_t lane) {
    uint32_t low = shuffle(uint32_t(x), lane), high = shuffle(uint32_t(x >> 32), lane);
    return uint64_t(high) << 32 | low;
}

// The sum of the lanes up to this one. Warp.
DEVICE uint64_t scan(uint64_t x) {
    UNROLL
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t before = shuffle64(x, lane_id() - min_of(lane_id(), step));
        if (lane_id() >= step) x += before;
    }
    return x;
}

// The first set lane of a ballot.
DEVICE uint32_t first_lane(uint32_t ballot) { return popcount((ballot & (0 - ballot)) - 1); }

} // namespace dense
