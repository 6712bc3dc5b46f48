// The seam between the twins in ptx.h, inlined into kernels, and the scheduler.
// Everything here is called by the fiber of one thread of a kernel. An error
// ends the launch: the call does not return.
#pragma once

#include <stdint.h>
#include <string.h>

namespace kvfold::emulator {

// Where in the sources something was called.
struct Site {
    const char* file;
    int line;

    // As a default argument: the line of the outermost call.
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// What a thread may wait for.
enum class Wait : uint8_t {
    none, // it runs or may run
    exited,
    // barriers
    sync_block,
    sync_named,
    // collectives of a warp
    sync_warp,
    shuffle_xor,
    shuffle,
    ballot,
    any,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    movmatrix_trans,
    mma_f16,
    mma_bf16,
};

// Returns when all lanes of the warp have come to this collective at this site
// and it is done. `operands` is what collective.h says for it.
void meet(Wait collective, void* operands, Site site);

// Returns when `threads` threads have come to barrier `id`; 0 is sync_block's.
void wait_at_barrier(uint32_t id, uint32_t threads, Site site);
void sync_block_at(Site site);

// Lets other threads go first, if the seed says so.
void perhaps_yield();

void copy_issue(void* shared, const void* global, bool valid, Site site);
void copy_commit();
void copy_wait(uint32_t newest);

// An error unless `bytes` bytes lie in the block's shared memory, aligned to as many.
void check_shared(const void* address, uint32_t bytes, const char* what, Site site);

[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- global memory --------------------------------------------------------

// The allocations that this host thread touched last in this block, newest first.
struct Recent {
    uintptr_t begin;
    uint64_t bytes; // 0: none
};
constexpr uint32_t N_RECENT = 8;
extern __thread Recent recent[N_RECENT];

inline bool holds(const Recent& r, uintptr_t address, uint64_t bytes) {
    uint64_t offset = address - r.begin;
    return offset < r.bytes && r.bytes - offset >= bytes;
}

void check_global_slowly(uintptr_t address, uint32_t bytes, uint32_t align, const char* what,
                         Site site);

// An error unless the bytes lie in one live allocation, aligned.
inline void check_global(const void* pointer, uint32_t bytes, uint32_t align, const char* what,
                         Site site) {
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address % align == 0 &&
        (holds(recent[0], address, bytes) || holds(recent[1], address, bytes)))
        return;
    check_global_slowly(address, bytes, align, what, site);
}

} // namespace kvfold::emulator
