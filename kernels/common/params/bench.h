// What measures a device (src/backend/cuda/params/bench.rs).
#pragma once

#include <stdint.h>

// The exclusive or of all words of some memory.
struct BenchReadParams {
    uint64_t from;    // n_slabs · 32 KiB
    uint64_t sums;    // u32 [blocks · 8], one a warp
    uint64_t n_slabs;
};

// Products of matrices in registers.
struct BenchMmaParams {
    uint64_t operands; // u32: A [4 tiles][32 lanes][4], then B [4 tiles][32 lanes][2]
    uint64_t sums;     // f32 [blocks · 256], one a thread
    uint32_t rounds;   // of 4 × 4 products a warp
    uint32_t reserved;
};
