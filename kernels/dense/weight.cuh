// What tokens weigh in a draw: softmax numerators as integers. Sums of integers do not
// depend on their order, and the host's twin (src/backend/draw.rs) has the same bits.
#pragma once

#include "common/ptx.cuh"

namespace dense {

// The weight of the largest logit, and the bits of it.
constexpr int WEIGHT_BITS = 40;
constexpr uint64_t FULL_WEIGHT = uint64_t(1) << WEIGHT_BITS;

// Orders logits: the larger, the lower. Zeros of both signs are equal, NaN is last.
DEVICE uint32_t rank_of(float logit) {
    if (logit != logit) return 0xffffffff;
    uint32_t bits = float_bits(add_rn(logit, 0.0f));
    return bits >> 31 ? bits : ~bits & 0x7fffffff;
}
DEVICE float logit_of(uint32_t rank) { return bits_float(rank >> 31 ? rank : ~rank & 0x7fffffff); }
constexpr uint32_t RANK_OF_MINUS_INFINITY = 0xff800000;

// 2^f on [−½, ½] to 2 ulp; exactly 1 at 0. Relative minimax polynomial.
DEVICE float exp2_near_0(float f) {
    float y = 0x1.41fbbcp-13f;
    y = add_rn(mul_rn(y, f), 0x1.5f3e54p-10f);
    y = add_rn(mul_rn(y, f), 0x1.3b2d4cp-7f);
    y = add_rn(mul_rn(y, f), 0x1.c6aee8p-5f);
    y = add_rn(mul_rn(y, f), 0x1.ebfbdcp-3f);
    y = add_rn(mul_rn(y, f), 0x1.62e430p-1f);
    return add_rn(mul_rn(y, f), 1.0f);
}

// 2^((logit − top) · scale) · 2^40, to the nearest integer.
DEVICE uint64_t weight_of(float logit, float top, float scale) {
    if (logit == top) return FULL_WEIGHT; // infinities too
    float x = mul_rn(sub_rn(logit, top), scale);
    if (!(x > -42.0f)) return 0; // NaN too
    float whole = rint_rn(x);
    uint32_t bits = float_bits(exp2_near_0(sub_rn(x, whole)));
    uint64_t mantissa = (bits & 0x7fffff) | 0x800000;
    int shift = int(bits >> 23) - 127 - 23 + int(whole) + WEIGHT_BITS;
    if (shift >= 0) return mantissa << shift;
    return shift < -25 ? 0 : (mantissa + (uint64_t(1) << (-shift - 1))) >> -shift;
}

// ⌊x · share / 2^32⌋ and ⌈x · share / 2^32⌉ for x < 2^63 and share < 2^32.
DEVICE uint64_t share_below(uint64_t x, uint32_t share) {
    return (x >> 32) * share + ((x & 0xffffffff) * share >> 32);
}
DEVICE uint64_t share_above(uint64_t x, uint32_t share) {
    return (x >> 32) * share + (((x & 0xffffffff) * share + 0xffffffff) >> 32);
}

} // namespace dense
