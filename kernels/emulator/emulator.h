// The C interface of the emulated device: launch a kernel on the host, own its
// global memory, list what is linked in. Thread-safe.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Runs `kernel` to its end on `host_threads` threads (0 counts as 1), in an
// order of threads and blocks that `seed` decides. Params are `params_bytes`
// bytes at `params`; `threads` is what the kernel was declared with.
// Returns 0, or 1 with a message of one line in `error` (cut to `error_bytes`,
// which may be 0): an unknown kernel, a wrong configuration, or what the kernel
// did wrong. After an error the contents of the kernel's outputs are unspecified.
// With `flush_subnormals` not 0, products of f16 matrices take subnormal elements as 0, as
// a device might.
int kvfold_emulator_launch(const char* kernel, const uint32_t grid[3], uint32_t threads,
                           uint32_t shared_bytes, const void* params, uint64_t params_bytes,
                           uint64_t seed, uint32_t host_threads, uint32_t flush_subnormals,
                           char* error, uint64_t error_bytes);

// Global memory: 256-byte aligned, filled with 0xff (NaN in every float type).
// Kernels may touch nothing else. Null if memory is short.
void* kvfold_emulator_alloc(uint64_t bytes);

// As kvfold_emulator_alloc, at this address, a multiple of 64 KiB: recorded calls are
// replayed where they were made (replay/trace.h). At least 64 KiB behind the allocation
// are taken too and belong to nobody. Null if memory is short or the address taken.
void* kvfold_emulator_alloc_at(uint64_t address, uint64_t bytes);

// Fills with 0xff and frees. Null is ignored. Returns 0, or 1 if the address is
// not one of a live allocation.
int kvfold_emulator_free(void* address);

// Virtual memory: a range of addresses, multiples of 4096, whose parts are given memory
// (filled with 0xff) and lose it again. Kernels may touch parts with memory only, and
// the 64 KiB behind the range belong to nobody. It begins at the address, a multiple of
// 64 KiB, or anywhere if that is 0. Null if addresses are short or this one is taken; 1
// if memory is short or the part has (or lacks) it already.
void* kvfold_emulator_reserve(uint64_t address, uint64_t bytes);
int kvfold_emulator_commit(void* address, uint64_t bytes);
int kvfold_emulator_decommit(void* address, uint64_t bytes);
// Gives up a range without memory. Returns 0, or 1 if the system refuses.
int kvfold_emulator_release(void* address, uint64_t bytes);

struct KvfoldEmulatorKernel {
    const char* name;
    uint64_t params_bytes;
    uint32_t threads;
    uint32_t blocks; // that fit a multiprocessor at once, as promised to nvcc
};

// The kernel of this index, in no particular order: 0, or 1 past the last one.
int kvfold_emulator_kernel(uint32_t index, struct KvfoldEmulatorKernel* kernel);

#ifdef __cplusplus
}
#endif
