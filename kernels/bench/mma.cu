// bench_mma: products of 16-bit matrices from registers alone, the roof of every
// kernel that multiplies with mma.sync. It is the rate of mma.sync m16n8k16 with f32
// accumulators, not that of wgmma, which is higher on devices that have it.
//
// A warp holds TILES × TILES independent accumulators, so that no product waits for
// the one before it. All warps use the same operands. A thread writes the sum of its
// accumulators. Work: blocks · 8 warps · rounds · 16 products of 4096 operations.

#include "common/params/bench.h"
#include "common/ptx.cuh"

namespace {

constexpr uint32_t THREADS = 256;
constexpr int TILES = 4; // mirrored in src/backend/cuda/roofs.rs

DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16) {
    if (bf16) mma_bf16(d, a, b);
    else mma_f16(d, a, b);
}

template <bool BF16> DEVICE void products(const BenchMmaParams& p) {
    const uint32_t* operands = reinterpret_cast<const uint32_t*>(p.operands);
    uint32_t a[TILES][4], b[TILES][2];
    UNROLL
    for (int i = 0; i < TILES; ++i) {
        UNROLL
        for (int w = 0; w < 4; ++w) a[i][w] = load(operands + (i * 32 + lane_id()) * 4 + w);
    }
    operands += TILES * 32 * 4;
    UNROLL
    for (int i = 0; i < TILES; ++i) {
        UNROLL
        for (int w = 0; w < 2; ++w) b[i][w] = load(operands + (i * 32 + lane_id()) * 2 + w);
    }
    float d[TILES][TILES][4] = {};
    for (uint32_t round = 0; round < p.rounds; ++round) {
        UNROLL
        for (int m = 0; m < TILES; ++m) {
            UNROLL
            for (int n = 0; n < TILES; ++n) multiply(d[m][n], a[m], b[n], BF16);
        }
    }
    float sum = 0.0f;
    UNROLL
    for (int m = 0; m < TILES; ++m) {
        UNROLL
        for (int n = 0; n < TILES; ++n) sum += d[m][n][0] + d[m][n][1] + d[m][n][2] + d[m][n][3];
    }
    store(reinterpret_cast<float*>(p.sums) + blockIdx.x * THREADS + threadIdx.x, sum);
}

} // namespace

KERNEL(bench_mma_f16, BenchMmaParams, THREADS, 2) { products<false>(params); }
KERNEL(bench_mma_bf16, BenchMmaParams, THREADS, 2) { products<true>(params); }
