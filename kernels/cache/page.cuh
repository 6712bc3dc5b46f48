// Where the halves of a page lie, and the 16-bit types that pages are written in.
#pragma once

#include "common/params.h"
#include "common/ptx.cuh"

enum Side { KEY, VALUE };

// IEEE half precision and bfloat16: a pair of elements is a word.
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

// The stream that this block (its blockIdx.y) serves of an item that names `wanted`,
// among `n` streams from `first` on; KV_NONE: nothing to do. KV_NONE as `wanted` means
// all of them, one for each blockIdx.y; a named one falls to blockIdx.y = 0.
DEVICE uint32_t served_stream(uint32_t wanted, uint32_t first, uint32_t n) {
    if (wanted == KV_NONE) return first + blockIdx.y;
    bool mine = blockIdx.y == 0 && wanted - first < n;
    return mine ? wanted : KV_NONE;
}

// Address of one half of a stream's page.
template <Side SIDE>
DEVICE uint64_t page_half(uint64_t arenas, uint32_t index, uint32_t block, uint32_t stream) {
    const KvArena* arena = address<const KvArena>(arenas) + index;
    uint64_t in_block = load(&arena->ragged) ? 0 : uint64_t(stream) * load(&arena->page_bytes);
    uint64_t in_page = SIDE == KEY ? 0 : load(&arena->key_bytes);
    return load(&arena->base) + uint64_t(block) * load(&arena->block_bytes) + in_block + in_page;
}

// Copies `bytes`, a multiple of 16, with threads `thread`, `thread + threads`, …
DEVICE void copy_vectors(uint64_t from, uint64_t to, uint32_t bytes, uint32_t thread, uint32_t threads) {
    for (uint32_t i = thread; i < bytes / 16; i += threads) {
        store(address<Vec16>(to) + i, load(address<const Vec16>(from) + i));
    }
}
