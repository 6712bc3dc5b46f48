// Virtual memory: addresses are the host's own, so that parts without memory
// are out of bounds for kernels and fault for everybody else.
#include <string.h>
#include <sys/mman.h>

#include "emulator/emulator.h"
#include "emulator/memory.h"
#include "emulator/pages.h"

using namespace kvfold::emulator;

namespace {

uintptr_t number(void* address) { return reinterpret_cast<uintptr_t>(address); }

} // namespace

extern "C" void* kvfold_emulator_reserve(uint64_t address, uint64_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    uint64_t mapped = with_surroundings(bytes);
    void* memory = map_pages(address, mapped, PROT_NONE);
    if (memory) poison(number(memory), mapped);
    return memory;
}

extern "C" int kvfold_emulator_commit(void* address, uint64_t bytes) {
    if (!add_committed(number(address), bytes)) return 1;
    if (mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0) {
        remove_committed(number(address), bytes);
        return 1;
    }
    unpoison(number(address), bytes);
    memset(address, 0xff, bytes);
    return 0;
}

extern "C" int kvfold_emulator_decommit(void* address, uint64_t bytes) {
    if (!remove_committed(number(address), bytes)) return 1;
    poison(number(address), bytes);
    // New pages without access in their place: the old ones go back to the system.
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap(address, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED ? 1 : 0;
}

extern "C" int kvfold_emulator_release(void* address, uint64_t bytes) {
    uint64_t mapped = with_surroundings(bytes);
    unpoison(number(address), mapped);
    return munmap(address, mapped) == 0 ? 0 : 1;
}
