// What asks a device for f16 subnormals (src/backend/cuda/params/subnormal.rs).
#pragma once

#include <stdint.h>

// Products of f16 matrices, one a warp, and of f16 numbers, a pair a thread.
struct SubnormalParams {
    uint64_t operands; // u32: A [n_matrices][32 lanes][4], then B [n_matrices][32 lanes][2]
    uint64_t sums;     // f32 [n_matrices][32 lanes][4]: read, and A · B added
    uint64_t factors;  // u32 [n_pairs][2]: pairs of f16
    uint64_t products; // u32 [n_pairs]
    uint32_t n_matrices;
    uint32_t n_pairs;
};
