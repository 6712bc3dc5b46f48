// The two 16-bit types of activations, as pairs of elements in a word.
#pragma once

#include "common/ptx.cuh"

// A namespace of its own: the emulator links all families together.
namespace common {

struct F16 {
    static DEVICE float widen(uint32_t x) { return f16_float(uint16_t(x)); }
    static DEVICE uint32_t pack(float low, float high) { return pack_f16(low, high); }
};
struct Bf16 {
    static DEVICE float widen(uint32_t x) { return bf16_float(uint16_t(x)); }
    static DEVICE uint32_t pack(float low, float high) { return pack_bf16(low, high); }
};

struct Pair {
    float low, high;
};

template <class T> DEVICE Pair unpack(uint32_t word) { return {T::widen(word & 0xffff), T::widen(word >> 16)}; }

template <class T> DEVICE T* address(uint64_t a) { return reinterpret_cast<T*>(a); }

} // namespace common
