// What every kernel is written with. The same sources are compiled by nvcc and,
// with KVFOLD_EMULATED, by the host's C++ compiler (kernels/emulator/).
//
// Rules that make this possible:
//  - a kernel is defined with KERNEL and takes one struct of params/;
//  - shared memory comes from shared_memory(), never from __shared__ variables;
//  - global memory is read and written through load() and store() or cp_async;
//  - inline assembly and intrinsics live in ptx.cuh only;
//  - a collective (ptx.cuh) is reached by all 32 lanes of a warp.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef KVFOLD_EMULATED

#include "emulator/device.h" // threadIdx, blockIdx, gridDim, blockDim, KERNEL, shared_memory

#define DEVICE inline
#define UNROLL
#define NO_UNROLL

#else

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

// KERNEL(name, Params, threads, blocks) { … params … }: `threads` a block; at
// least `blocks` of them fit a multiprocessor at once.
#define KERNEL(name, Params, threads, blocks)                                                      \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ Params params)

// The block's dynamic shared memory, 128-byte aligned.
DEVICE uint8_t* shared_memory() {
    extern __shared__ __align__(128) uint8_t kvfold_shared[];
    return kvfold_shared;
}

#endif

// Lane within the warp and warp within the block; blocks are one-dimensional.
DEVICE uint32_t lane_id() { return threadIdx.x % 32; }
DEVICE uint32_t warp_id() { return threadIdx.x / 32; }

template <class T> DEVICE T min_of(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T max_of(T a, T b) { return a > b ? a : b; }
DEVICE uint32_t div_ceil(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
