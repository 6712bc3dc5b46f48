// What common/kernel.cuh needs of a device, for the host's C++ compiler.
// Kernels are plain functions here; each of a block's threads runs them in a
// fiber of its own (block.h).
//
// Kernel sources see one memory as several types, so they are compiled with
// -fno-strict-aliasing; and with -ffp-contract=off (ARCHITECTURE, rule 5).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "emulator/registry.h"

#ifdef __FAST_MATH__
#error "kernels need IEEE arithmetic: compile without -ffast-math"
#endif

namespace kvfold::emulator {
struct Index {
    uint32_t x, y, z;
};
uint8_t* shared_memory_of_block();
} // namespace kvfold::emulator

// Set by the scheduler at every switch. A block stays on one host thread, so
// these addresses are the same throughout a kernel. (__thread, not thread_local:
// no initialiser, so no wrapper call.)
extern __thread kvfold::emulator::Index threadIdx, blockIdx, gridDim, blockDim;

// Defines the kernel and enters it in the table.
#define KERNEL(name, Params, threads, blocks)                                                      \
    static void name(const Params& params);                                                        \
    static void name##_body(const void* params) { name(*static_cast<const Params*>(params)); }     \
    static ::kvfold::emulator::Kernel name##_kernel(#name, name##_body, sizeof(Params), (threads), \
                                                    (blocks));                                     \
    static void name(const Params& params)

inline uint8_t* shared_memory() { return kvfold::emulator::shared_memory_of_block(); }
