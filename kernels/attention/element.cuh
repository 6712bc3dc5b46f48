// The two 16-bit types of activations and hot pages.
#pragma once

#include "common/ptx.cuh"

struct F16 { uint16_t bits; };
struct Bf16 { uint16_t bits; };

struct alignas(8) FloatPair { float x, y; };

template <class A, class B> struct SameType {
    static constexpr bool VALUE = false;
};
template <class A> struct SameType<A, A> {
    static constexpr bool VALUE = true;
};

template <class T> struct Element;

template <> struct Element<F16> {
    static DEVICE uint32_t pack(float low, float high) { return pack_f16(low, high); }
    static DEVICE float low(uint32_t x) { return f16_float(uint16_t(x)); }
    static DEVICE float high(uint32_t x) { return f16_float(uint16_t(x >> 16)); }
    static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_f16(d, a, b);
    }
};

template <> struct Element<Bf16> {
    static DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
    static DEVICE float low(uint32_t x) { return bf16_float(uint16_t(x)); }
    static DEVICE float high(uint32_t x) { return bf16_float(uint16_t(x >> 16)); }
    static DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_bf16(d, a, b);
    }
};
