// Virtual memory: addresses are the host's own, so that parts without memory
// are out of bounds for kernels and fault for everybody else.
#include <string.h>
#include <sys/mman.h>

#include "emulator/emulator.h"
#include "emulator/memory.h"

using namespace kvfold::emulator;

namespace {

constexpr int NOTHING = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

uintptr_t number(void* address) { return reinterpret_cast<uintptr_t>(address); }

} // namespace

extern "C" void* kvfold_emulator_reserve(uint64_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_NONE, NOTHING, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

extern "C" int kvfold_emulator_commit(void* address, uint64_t bytes) {
    if (!add_committed(number(address), bytes)) return 1;
    if (mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0) {
        remove_committed(number(address), bytes);
        return 1;
    }
    memset(address, 0xff, bytes);
    return 0;
}

extern "C" int kvfold_emulator_decommit(void* address, uint64_t bytes) {
    if (!remove_committed(number(address), bytes)) return 1;
    // New pages without access in their place: the old ones go back to the system.
    void* gone = mmap(address, bytes, PROT_NONE, NOTHING | MAP_FIXED, -1, 0);
    return gone == MAP_FAILED ? 1 : 0;
}

extern "C" int kvfold_emulator_release(void* address, uint64_t bytes) {
    return munmap(address, bytes) == 0 ? 0 : 1;
}
