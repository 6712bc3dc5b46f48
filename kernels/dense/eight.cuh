// Eight neighbouring channels: two 16-byte words of f32, one of a 16-bit type.
#pragma once

#include "common/half.cuh"
#include "common/params/dense.h"

namespace dense {

using namespace common;

struct Eight {
    float x[8];
};

// The unit-th eight of a row of f32.
DEVICE Eight load_floats(const float* row, uint32_t unit) {
    const Vec16* at = reinterpret_cast<const Vec16*>(row) + 2 * unit;
    Vec16 low = load(at), high = load(at + 1);
    Eight e;
    UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
        e.x[i] = bits_float(low.w[i]);
        e.x[4 + i] = bits_float(high.w[i]);
    }
    return e;
}

DEVICE void store_floats(float* row, uint32_t unit, const Eight& e) {
    Vec16* at = reinterpret_cast<Vec16*>(row) + 2 * unit;
    Vec16 low, high;
    UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
        low.w[i] = float_bits(e.x[i]);
        high.w[i] = float_bits(e.x[4 + i]);
    }
    store(at, low);
    store(at + 1, high);
}

template <class T> DEVICE Eight load_halves(const Vec16* at) {
    Vec16 v = load(at);
    Eight e;
    UNROLL
    for (uint32_t w = 0; w < 4; ++w) {
        Pair pair = unpack<T>(v.w[w]);
        e.x[2 * w] = pair.low;
        e.x[2 * w + 1] = pair.high;
    }
    return e;
}

template <class T> DEVICE void store_halves(Vec16* at, const Eight& e) {
    Vec16 v;
    UNROLL
    for (uint32_t w = 0; w < 4; ++w) v.w[w] = T::pack(e.x[2 * w], e.x[2 * w + 1]);
    store(at, v);
}

// The sum of all lanes, the same in each. Warp.
DEVICE float warp_sum(float x) {
    UNROLL
    for (uint32_t mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// Of a block whose threads take an eight each; src/backend/cuda/dense/mod.rs has it too.
constexpr uint32_t EIGHT_THREADS = 256;

// Where this thread's eight is among those of a matrix of `cols` columns.
struct Place {
    uint32_t row, unit;
};
DEVICE Place place_of(uint32_t index, uint32_t cols) { return {index / (cols / 8), index % (cols / 8)}; }

} // namespace dense
