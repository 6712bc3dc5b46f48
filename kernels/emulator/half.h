// 16-bit floats by integer arithmetic: round to nearest even, subnormals,
// infinities; NaN becomes 0x7fff, as cvt.rn does it.
#pragma once

#include <stdint.h>
#include <string.h>

namespace kvfold::emulator {

inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
inline float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

inline float float_from_f16(uint16_t h) {
    uint32_t magnitude = uint32_t(h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    magnitude += 0x38000000;                             // 127 − 15 exponents
    if (exponent == 0x0f800000) magnitude += 0x38000000; // all ones stay all ones
    if (exponent == 0) // the mantissa alone: put a one before it, subtract the one
        magnitude = bits_of(float_of(magnitude + 0x00800000) - 0x1p-14f);
    return float_of(magnitude | uint32_t(h & 0x8000) << 16);
}

inline uint16_t f16_from_float(float x) {
    uint32_t sign = bits_of(x) >> 16 & 0x8000;
    uint32_t u = bits_of(x) & 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;
    if (u >= 0x47800000) return uint16_t(sign | 0x7c00); // 2^16 and more
    // Below 2^−14 the result counts steps of 2^−24: the last bit of 0.5 + x.
    if (u < 0x38800000) return uint16_t(sign | (bits_of(float_of(u) + 0.5f) - bits_of(0.5f)));
    u += 0xfff + (u >> 13 & 1); // may carry into the exponent, up to infinity
    return uint16_t(sign | (u - 0x38000000) >> 13);
}

inline float float_from_bf16(uint16_t h) { return float_of(uint32_t(h) << 16); }

inline uint16_t bf16_from_float(float x) {
    uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

} // namespace kvfold::emulator
