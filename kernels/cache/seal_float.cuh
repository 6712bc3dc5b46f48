// One half of a page as plain floats (src/codec/float.rs), [token][channel]: fp8
// e4m3, or one of the 16-bit types.
#pragma once

#include "cache/seal_job.cuh"

// Rounds to the nearest e4m3 number, ties to even, saturating at ±448.
DEVICE uint32_t float_fp8(float x) {
    uint32_t sign = float_bits(x) >> 24 & 0x80;
    float a = bits_float(float_bits(x) & 0x7fffffff);
    if (a != a) return sign | 0x7f;
    if (a >= 448.0f) return sign | 0x7e;
    // Adding a power of two whose last mantissa bit is worth the wanted unit rounds
    // to that unit. Subnormals have unit 2^-9; biased exponents below.
    uint32_t unit = max_of(float_bits(a) >> 23, 127u - 6) - 3;
    float magic = bits_float((unit + 23) << 23);
    float rounded = sub_rn(add_rn(a, magic), magic);
    // Multiplying by 1/unit is exact. A count of 16 carries into the exponent.
    uint32_t count = uint32_t(mul_rn(rounded, bits_float((254 - unit) << 23)));
    return sign | (count + ((unit + 9 - 127) << 3));
}

struct alignas(8) Vec8 {
    uint32_t w[2];
};

// What a thread makes of eight elements.
struct ToFp8 {
    template <class T> static DEVICE Vec8 convert(Vec16 x) {
        Vec8 y;
        UNROLL
        for (uint32_t w = 0; w < 2; ++w) {
            Pair a = unpack<T>(x.w[2 * w]), b = unpack<T>(x.w[2 * w + 1]);
            y.w[w] = float_fp8(a.low) | float_fp8(a.high) << 8 | float_fp8(b.low) << 16 | float_fp8(b.high) << 24;
        }
        return y;
    }
};
template <class To> struct To16 {
    template <class T> static DEVICE Vec16 convert(Vec16 x) {
        Vec16 y;
        UNROLL
        for (uint32_t w = 0; w < 4; ++w) {
            Pair a = unpack<T>(x.w[w]);
            y.w[w] = To::pack(a.low, a.high);
        }
        return y;
    }
};

template <class T, class To> DEVICE void seal_float(uint64_t from, uint64_t to, uint32_t head_dim) {
    using Vector = decltype(To::template convert<T>(Vec16{}));
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * head_dim / 8; i += SEAL_THREADS) {
        store(address<Vector>(to) + i, To::template convert<T>(load(address<const Vec16>(from) + i)));
    }
}
