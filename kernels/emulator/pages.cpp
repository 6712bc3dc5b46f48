#include "emulator/pages.h"

#include <sys/mman.h>

#include "emulator/fiber.h"

#ifdef KVFOLD_ASAN
#include <sanitizer/asan_interface.h>
#endif

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0 // a hint, then
#endif

namespace kvfold::emulator {

void* map_pages(uint64_t address, uint64_t bytes, int protection) {
    if (address % PLACE != 0) return nullptr;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (address) flags |= MAP_FIXED_NOREPLACE;
    void* wanted = reinterpret_cast<void*>(address);
    void* memory = mmap(wanted, bytes, protection, flags, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    if (address && memory != wanted) {
        munmap(memory, bytes);
        return nullptr;
    }
    return memory;
}

void poison([[maybe_unused]] uintptr_t address, [[maybe_unused]] uint64_t bytes) {
#ifdef KVFOLD_ASAN
    __asan_poison_memory_region(reinterpret_cast<void*>(address), bytes);
#endif
}

void unpoison([[maybe_unused]] uintptr_t address, [[maybe_unused]] uint64_t bytes) {
#ifdef KVFOLD_ASAN
    __asan_unpoison_memory_region(reinterpret_cast<void*>(address), bytes);
#endif
}

} // namespace kvfold::emulator
