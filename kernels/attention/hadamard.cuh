// The Walsh-Hadamard transform of rows that lie in registers (src/codec/hadamard.rs): what
// queries, outputs and keys go through where pages are stored rotated. A transform is a
// butterfly for each bit of the channel's number, in any order, and a factor: bits that
// count registers are added up in place, bits that count lanes by shuffles.
//
// Sums here are not those of the codec to the last bit: only sealing needs that.
#pragma once

#include "attention/element.cuh"

// 1/√D.
template <int D> DEVICE constexpr float hadamard_norm() {
    static_assert(D == 64 || D == 128 || D == 256, "a head dim with a norm");
    return D == 64 ? 0.125f : D == 128 ? 0.08838834764831845f : 0.0625f;
}

DEVICE void butterfly(float& a, float& b) {
    float sum = a + b;
    b = a - b;
    a = sum;
}

// All bits of the register's number.
template <int N> DEVICE void butterfly_registers(float (&x)[N]) {
    UNROLL
    for (int distance = 1; distance < N; distance *= 2) {
        UNROLL
        for (int i = 0; i < N; ++i) {
            if (!(i & distance)) butterfly(x[i], x[i + distance]);
        }
    }
}

// This lane's −1 or 1 in the butterfly with the lane that differs in bit `mask`. Warp.
DEVICE float butterfly_sign(uint32_t mask) { return lane_id() & mask ? -1.0f : 1.0f; }
DEVICE float butterfly_lane(float x, uint32_t mask, float sign) {
    return fma_fast(x, sign, shuffle_xor(x, mask));
}

// The bits of the lane's number below that of LANES. Warp.
template <int LANES, int N> DEVICE void butterfly_lanes(float (&x)[N]) {
    UNROLL
    for (uint32_t mask = 1; mask < LANES; mask *= 2) {
        float sign = butterfly_sign(mask);
        UNROLL
        for (int i = 0; i < N; ++i) x[i] = butterfly_lane(x[i], mask, sign);
    }
}

// Pairs of f16 of a row that four lanes hold: word i of lane t has the channels
// 8i + 2t and 8i + 2t + 1, as B operands do. Warp.
template <int D> DEVICE void rotate_words(uint32_t (&words)[D / 8]) {
    float x[D / 4];
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        x[2 * i] = Element<F16>::low(words[i]);
        x[2 * i + 1] = Element<F16>::high(words[i]);
    }
    butterfly_registers(x);
    butterfly_lanes<4>(x);
    constexpr float NORM = hadamard_norm<D>();
    UNROLL
    for (int i = 0; i < D / 8; ++i) words[i] = Element<F16>::pack(x[2 * i] * NORM, x[2 * i + 1] * NORM);
}
