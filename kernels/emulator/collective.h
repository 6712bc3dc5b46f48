// The arithmetic of a warp's collectives: done once, for all lanes, by the lane
// that comes last.
#pragma once

#include "emulator/runtime.h"

namespace kvfold::emulator {

constexpr uint32_t WARP = 32;

struct ShuffleOperands {
    uint32_t value;
    uint32_t lane; // or the mask of shuffle_xor
    uint32_t result;
};
struct VoteOperands {
    bool value;
    uint32_t result; // of `any`: 0 or 1
};
struct LdmatrixOperands {
    const void* row;
    uint32_t* registers; // 4
};
struct MovmatrixOperands {
    uint32_t value;
    uint32_t result;
};
struct MmaOperands {
    float* d;          // 4
    const uint32_t* a; // 4
    const uint32_t* b; // 2
};

// Reads and writes the operands of all lanes. With `flush_subnormals`, products of f16 take
// subnormal elements as 0.
void complete(Wait collective, void* const (&operands)[WARP], bool flush_subnormals);

} // namespace kvfold::emulator
