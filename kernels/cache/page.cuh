// Where the halves of a page lie.
#pragma once

#include "common/half.cuh"
#include "common/params/cache.h"

// Names of this family are its own: the emulator links all families together.
namespace cache {

using namespace common;

enum Side { KEY, VALUE };

// The stream that this block serves of an item: the one that the item names, or, if
// it names none (KV_NONE), the blockIdx.y-th from `first` on. The items of a launch
// are alike in this: gridDim.y is 1, or the number of streams.
DEVICE uint32_t served_stream(uint32_t named, uint32_t first) {
    return named == KV_NONE ? first + blockIdx.y : named;
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

} // namespace cache
