// copy: copies whole blocks within their arenas (copy-on-write), and pages of uniform
// blocks to ragged ones (compaction). No block of a launch is both read and written.
//
// Grid (n_copies, blocks a copy), 256 threads: the blocks of a copy stride over it
// in vectors of 16 bytes, four in flight a thread.
// Must move twice the bytes of a block a copy.
//
// sass: copy wide=4

#include "cache/page.cuh"

namespace cache {

constexpr uint32_t COPY_THREADS = 256;
constexpr uint32_t COPY_DEPTH = 4;

// Copies vectors first, first + stride, … below n; all loads before all stores.
DEVICE void copy_batch(const Vec16* from, Vec16* to, uint64_t first, uint64_t stride, uint64_t n) {
    Vec16 batch[COPY_DEPTH];
    UNROLL
    for (uint32_t i = 0; i < COPY_DEPTH; ++i) {
        if (first + i * stride < n) batch[i] = load(from + first + i * stride);
    }
    UNROLL
    for (uint32_t i = 0; i < COPY_DEPTH; ++i) {
        if (first + i * stride < n) store(to + first + i * stride, batch[i]);
    }
}

} // namespace cache

using namespace cache;

KERNEL(copy, CopyParams, COPY_THREADS, 4) {
    const CopyJob* job = address<const CopyJob>(params.copies) + blockIdx.x;
    const KvArena* read = address<const KvArena>(params.arenas) + load(&job->from_arena);
    const KvArena* written = address<const KvArena>(params.arenas) + load(&job->to_arena);
    uint64_t stride_bytes = load(&written->block_bytes), bytes = stride_bytes - load(&job->gap);
    uint64_t source = load(&read->base) + load(&job->from) * uint64_t(load(&read->block_bytes)) +
                      load(&job->page) * uint64_t(load(&read->page_bytes));
    const Vec16* from = address<const Vec16>(source);
    Vec16* to = address<Vec16>(load(&written->base) + load(&job->to) * stride_bytes);
    uint64_t stride = uint64_t(gridDim.y) * COPY_THREADS;
    uint64_t first = uint64_t(blockIdx.y) * COPY_THREADS + threadIdx.x;
    for (; first < bytes / 16; first += COPY_DEPTH * stride) {
        copy_batch(from, to, first, stride, bytes / 16);
    }
}
