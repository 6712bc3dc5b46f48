// subnormal: does this device multiply f16 subnormals in full? Decode reads codes of 2 to 4
// bits and e4m3 as such numbers (tile_affine.cuh, tile_fp8.cuh). Published studies of single
// bits say that tensor cores take them (Fasi et al. 2021, §3.1, for V100, T4 and A100, and
// later ones for H100 and B200); the PTX ISA does not promise it. Of mul.f16x2 it does: that
// is what the kernels without subnormals rest on, so it is asked here too.
//
// src/backend/cuda/subnormal.rs knows what comes out. Work: a product a warp.

#include "common/params/subnormal.h"
#include "common/ptx.cuh"

constexpr uint32_t SUBNORMAL_THREADS = 128; // mirrored there

KERNEL(subnormal, SubnormalParams, SUBNORMAL_THREADS, 1) {
    uint32_t thread = blockIdx.x * SUBNORMAL_THREADS + threadIdx.x;
    uint32_t matrix = thread / 32;
    if (matrix < params.n_matrices) {
        const uint32_t* operands = reinterpret_cast<const uint32_t*>(params.operands);
        const Vec16 a = load(reinterpret_cast<const Vec16*>(operands) + thread);
        operands += size_t(params.n_matrices) * (32 * 4) + thread * 2;
        const uint32_t a_words[4] = {a.w[0], a.w[1], a.w[2], a.w[3]};
        const uint32_t b_words[2] = {load(operands), load(operands + 1)};
        Vec16* at = reinterpret_cast<Vec16*>(params.sums) + thread;
        Vec16 sums = load(at);
        float d[4];
        for (int e = 0; e < 4; ++e) d[e] = bits_float(sums.w[e]);
        mma_f16(d, a_words, b_words);
        for (int e = 0; e < 4; ++e) sums.w[e] = float_bits(d[e]);
        store(at, sums);
    }
    if (thread < params.n_pairs) {
        const uint32_t* pair = reinterpret_cast<const uint32_t*>(params.factors) + 2 * thread;
        store(reinterpret_cast<uint32_t*>(params.products) + thread, mul_f16x2(load(pair), load(pair + 1)));
    }
}
