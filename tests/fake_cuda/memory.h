// Virtual memory and page-locked memory of libcuda.cpp. Addresses are reserved without
// access; whoever touches one that has no memory, or to which no access was granted, dies.
#pragma once

#include <map>
#include <sys/mman.h>

constexpr size_t GRANULARITY = 64 << 10;

// As in cuda.h.
struct Location {
    int type, id;
};
struct Properties {
    int type, handles;
    Location location;
    void* win32;
    unsigned char flags[8];
};
struct Access {
    Location location;
    int flags;
};
static_assert(sizeof(Properties) == 32 && sizeof(Access) == 12, "as in cuda.h");

struct Memory {
    size_t bytes;
    int holders; // its handle and its mapping
};
static std::map<uint64_t, size_t> reserved, page_locked;
static std::map<uint64_t, Memory*> mapped;

static bool ours(const Properties* p) {
    return p->type == 1 && !p->handles && p->location.type == 1 && p->location.id == 0; // pinned, on the device
}
static void let_go(Memory* memory) {
    if (--memory->holders) return;
    used -= memory->bytes;
    delete memory;
}
static bool is_page_locked(const void* memory) {
    uint64_t at = reinterpret_cast<uint64_t>(memory);
    auto next = page_locked.upper_bound(at);
    return next != page_locked.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

extern "C" {

Result cuMemGetAllocationGranularity(size_t* bytes, const Properties* properties, int) {
    IN_CONTEXT;
    return *bytes = GRANULARITY, ours(properties) ? SUCCESS : INVALID_VALUE;
}
Result cuMemAddressReserve(uint64_t* address, size_t bytes, size_t alignment, uint64_t at, unsigned long long flags) {
    IN_CONTEXT;
    if (!bytes || bytes % GRANULARITY || alignment || at || flags) return INVALID_VALUE;
    void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return OUT_OF_MEMORY;
    *address = reinterpret_cast<uint64_t>(range);
    return reserved[*address] = bytes, SUCCESS;
}
Result cuMemAddressFree(uint64_t address, size_t bytes) {
    IN_CONTEXT;
    auto found = reserved.find(address);
    if (found == reserved.end() || found->second != bytes) return INVALID_VALUE;
    auto next = mapped.lower_bound(address);
    if (next != mapped.end() && next->first < address + bytes) return INVALID_VALUE;
    reserved.erase(found);
    return munmap(reinterpret_cast<void*>(address), bytes) ? INVALID_VALUE : SUCCESS;
}
Result cuMemCreate(Memory** handle, size_t bytes, const Properties* properties, unsigned long long flags) {
    IN_CONTEXT;
    if (!bytes || bytes % GRANULARITY || !ours(properties) || flags) return INVALID_VALUE;
    if (bytes > pretend.memory - used) return OUT_OF_MEMORY;
    used += bytes;
    return *handle = new Memory{bytes, 1}, SUCCESS;
}
Result cuMemRelease(Memory* memory) {
    IN_CONTEXT;
    return let_go(memory), SUCCESS;
}
Result cuMemMap(uint64_t address, size_t bytes, size_t offset, Memory* memory, unsigned long long flags) {
    IN_CONTEXT;
    auto range = reserved.upper_bound(address);
    if (range == reserved.begin() || offset || flags || bytes != memory->bytes) return INVALID_VALUE;
    --range;
    auto next = mapped.lower_bound(address);
    bool inside = address % GRANULARITY == 0 && address + bytes <= range->first + range->second;
    bool before = next == mapped.begin() || std::prev(next)->first + std::prev(next)->second->bytes <= address;
    bool behind = next == mapped.end() || address + bytes <= next->first;
    if (!inside || !before || !behind) return INVALID_VALUE;
    ++memory->holders;
    return mapped[address] = memory, SUCCESS;
}
Result cuMemSetAccess(uint64_t address, size_t bytes, const Access* access, size_t count) {
    IN_CONTEXT;
    auto found = mapped.find(address);
    if (found == mapped.end() || found->second->bytes != bytes) return INVALID_VALUE;
    if (count != 1 || access->location.type != 1 || access->location.id || access->flags != 3) return INVALID_VALUE;
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE) ? INVALID_VALUE : SUCCESS;
}
Result cuMemUnmap(uint64_t address, size_t bytes) {
    IN_CONTEXT;
    auto found = mapped.find(address);
    if (found == mapped.end() || found->second->bytes != bytes) return INVALID_VALUE;
    let_go(found->second);
    mapped.erase(found);
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_NONE) ? INVALID_VALUE : SUCCESS;
}

Result cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    IN_CONTEXT;
    if (flags != 1) return INVALID_VALUE; // CU_MEMHOSTALLOC_PORTABLE
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*memory, 0xff, bytes);
    return page_locked[reinterpret_cast<uint64_t>(*memory)] = bytes, SUCCESS;
}
Result cuMemFreeHost(void* memory) {
    IN_CONTEXT;
    if (!page_locked.erase(reinterpret_cast<uint64_t>(memory))) return INVALID_VALUE;
    return free(memory), SUCCESS;
}
Result cuPointerGetAttribute(unsigned* kind, int attribute, uint64_t address) {
    if (attribute != 2 || !is_page_locked(reinterpret_cast<void*>(address))) return INVALID_VALUE;
    return *kind = 1, SUCCESS; // CU_MEMORYTYPE_HOST
}
}
