// bench_read: the exclusive or of a stretch of memory, the roof of everything that
// only reads: how fast this device can deliver bytes to its multiprocessors.
//
// A block takes slabs of THREADS · DEPTH vectors of 16 bytes in turn with all other
// blocks; a thread has DEPTH loads in flight. One word a warp is written, so that
// no load is optimised away. Must move `n_slabs` slabs, once.

#include "common/params/bench.h"
#include "common/ptx.cuh"

namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t DEPTH = 8; // mirrored in src/backend/cuda/roofs.rs

} // namespace

KERNEL(bench_read, BenchReadParams, THREADS, 4) {
    const Vec16* from = reinterpret_cast<const Vec16*>(params.from) + threadIdx.x;
    uint32_t sum = 0;
    for (uint64_t slab = blockIdx.x; slab < params.n_slabs; slab += gridDim.x) {
        const Vec16* first = from + slab * (THREADS * DEPTH);
        Vec16 batch[DEPTH];
        UNROLL
        for (uint32_t i = 0; i < DEPTH; ++i) batch[i] = load(first + i * THREADS);
        UNROLL
        for (uint32_t i = 0; i < DEPTH; ++i) {
            sum ^= batch[i].w[0] ^ batch[i].w[1] ^ batch[i].w[2] ^ batch[i].w[3];
        }
    }
    UNROLL
    for (uint32_t mask = 16; mask > 0; mask /= 2) sum ^= shuffle_xor(sum, mask);
    uint32_t warp = blockIdx.x * (THREADS / 32) + warp_id();
    if (lane_id() == 0) store(reinterpret_cast<uint32_t*>(params.sums) + warp, sum);
}
