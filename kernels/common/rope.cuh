// RoPE, half-split: channel i turns with channel i + d/2 by position · inv_freq. The
// angle is reduced in f64 (positions go to 10^6 and beyond), rotated in f32.
#pragma once

#include "common/half.cuh"

namespace common {

// The cosines and sines of one position, side by side in shared memory.
struct Angles {
    float* cos; // [d/2]
    float* sin; // [d/2]
};

DEVICE Angles angles_in(uint8_t* shared, uint32_t head_dim) {
    float* cos = reinterpret_cast<float*>(shared);
    return {cos, cos + head_dim / 2};
}

// With all `threads` threads of the block; a barrier makes them visible.
// inv_turns: f64 [d/2], inv_freq / 2π.
DEVICE void compute_angles(uint64_t inv_turns, uint32_t position, uint32_t head_dim, uint32_t threads, Angles to) {
    for (uint32_t i = threadIdx.x; i < head_dim / 2; i += threads) {
        double turns = mul_rn(double(position), load(address<const double>(inv_turns) + i));
        float fraction = float(sub_rn(turns, rint_rn(turns))); // −½ … ½
        sincos_pi(2.0f * fraction, &to.sin[i], &to.cos[i]);
    }
}

// Turns eight pairs of channels (i.., i + d/2..) in place.
template <class T> DEVICE void rotate(Vec16& low, Vec16& high, const float* cos, const float* sin) {
    UNROLL
    for (uint32_t w = 0; w < 4; ++w) {
        Pair a = unpack<T>(low.w[w]), b = unpack<T>(high.w[w]);
        float c0 = cos[2 * w], c1 = cos[2 * w + 1], s0 = sin[2 * w], s1 = sin[2 * w + 1];
        low.w[w] = T::pack(fma_fast(a.low, c0, -mul_rn(b.low, s0)), fma_fast(a.high, c1, -mul_rn(b.high, s1)));
        high.w[w] = T::pack(fma_fast(b.low, c0, mul_rn(a.low, s0)), fma_fast(b.high, c1, mul_rn(a.high, s1)));
    }
}

} // namespace common
