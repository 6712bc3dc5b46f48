#include "emulator/memory.h"

#include <deque>
#include <map>
#include <mutex>
#include <shared_mutex>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "emulator/emulator.h"
#include "emulator/pages.h"

namespace kvfold::emulator {

namespace {

constexpr uint64_t MAX_GRAVES = 64 << 20;

struct Allocation {
    uint64_t bytes;
    bool live;
    bool committed = false; // a part of a reservation: see reservation.cpp
    uint64_t mapped = 0;    // at an address of the caller's choice; 0: from the heap
};

struct Table {
    std::shared_mutex lock;
    std::map<uintptr_t, Allocation> allocations;
    // Freed ones, oldest first: kept for a while, so that their use is named.
    std::deque<uintptr_t> graves;
    uint64_t grave_bytes = 0;
};

Table& table() {
    static Table* t = new Table; // never destroyed: buffers may outlive static objects
    return *t;
}

void* enter(void* memory, Allocation allocation) {
    memset(memory, 0xff, allocation.bytes);
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    t.allocations[reinterpret_cast<uintptr_t>(memory)] = allocation;
    return memory;
}

void give_back(uintptr_t address, const Allocation& a) {
    void* memory = reinterpret_cast<void*>(address);
    unpoison(address, a.mapped ? a.mapped : a.bytes);
    if (a.mapped)
        munmap(memory, a.mapped);
    else
        free(memory);
}

} // namespace

Found find_allocation(uintptr_t address) {
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    auto after = t.allocations.upper_bound(address);
    if (after == t.allocations.begin()) return {};
    auto at = std::prev(after);
    return {true, at->second.live, at->first, at->second.bytes};
}

void describe_address(uintptr_t address, char* text, size_t bytes) {
    Found below = find_allocation(address);
    if (below.any && address - below.begin < below.bytes) {
        snprintf(text, bytes, "byte %" PRIu64 " of %s of %" PRIu64 " bytes",
                 uint64_t(address - below.begin),
                 below.live ? "an allocation" : "a freed allocation", below.bytes);
        return;
    }
    Table& t = table();
    std::shared_lock<std::shared_mutex> guard(t.lock);
    auto above = t.allocations.upper_bound(address);
    uint64_t past = below.any ? address - below.begin - below.bytes : UINT64_MAX;
    uint64_t before = above == t.allocations.end() ? UINT64_MAX : above->first - address;
    if (past == UINT64_MAX && before == UINT64_MAX)
        snprintf(text, bytes, "nothing is allocated");
    else if (past <= before)
        snprintf(text, bytes, "%" PRIu64 " bytes past the end of %s of %" PRIu64 " bytes", past,
                 below.live ? "an allocation" : "a freed allocation", below.bytes);
    else
        snprintf(text, bytes, "%" PRIu64 " bytes before %s of %" PRIu64 " bytes", before,
                 above->second.live ? "an allocation" : "a freed allocation", above->second.bytes);
}

bool add_committed(uintptr_t begin, uint64_t bytes) {
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    auto after = t.allocations.lower_bound(begin);
    if (after != t.allocations.end() && after->first < begin + bytes) return false;
    auto before = after == t.allocations.begin() ? t.allocations.end() : std::prev(after);
    bool joins = false;
    if (before != t.allocations.end()) {
        uintptr_t end = before->first + before->second.bytes;
        if (end > begin) return false;
        joins = before->second.committed && end == begin;
    }
    // Parts that touch are one: accesses may cross their border.
    if (after != t.allocations.end() && after->second.committed && after->first == begin + bytes) {
        bytes += after->second.bytes;
        t.allocations.erase(after);
    }
    if (joins)
        before->second.bytes += bytes;
    else
        t.allocations[begin] = {bytes, true, true};
    return true;
}

bool remove_committed(uintptr_t begin, uint64_t bytes) {
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    auto at = t.allocations.upper_bound(begin);
    if (at == t.allocations.begin()) return false;
    --at;
    uintptr_t first = at->first, end = at->first + at->second.bytes;
    if (!at->second.committed || end < begin + bytes) return false;
    t.allocations.erase(at);
    if (first < begin) t.allocations[first] = {begin - first, true, true};
    if (begin + bytes < end) t.allocations[begin + bytes] = {end - begin - bytes, true, true};
    return true;
}

} // namespace kvfold::emulator

using namespace kvfold::emulator;

extern "C" void* kvfold_emulator_alloc(uint64_t bytes) {
    void* memory = nullptr;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&memory, 256, bytes ? bytes : 1) != 0)
        return nullptr;
    return enter(memory, {bytes, true});
}

extern "C" void* kvfold_emulator_alloc_at(uint64_t address, uint64_t bytes) {
    if (address == 0 || bytes > SIZE_MAX / 2) return nullptr;
    uint64_t mapped = with_surroundings(bytes);
    void* memory = map_pages(address, mapped, PROT_READ | PROT_WRITE);
    if (!memory) return nullptr;
    poison(address + bytes, mapped - bytes);
    return enter(memory, {bytes, true, false, mapped});
}

extern "C" int kvfold_emulator_free(void* address) {
    if (!address) return 0;
    Table& t = table();
    std::unique_lock<std::shared_mutex> guard(t.lock);
    auto at = t.allocations.find(reinterpret_cast<uintptr_t>(address));
    if (at == t.allocations.end() || !at->second.live || at->second.committed) return 1;
    memset(address, 0xff, at->second.bytes);
    poison(at->first, at->second.bytes); // until it is given back
    at->second.live = false;
    t.graves.push_back(at->first);
    t.grave_bytes += at->second.bytes;
    while (t.grave_bytes > MAX_GRAVES || t.graves.size() > 4096) {
        auto oldest = t.allocations.find(t.graves.front());
        t.graves.pop_front();
        t.grave_bytes -= oldest->second.bytes;
        give_back(oldest->first, oldest->second);
        t.allocations.erase(oldest);
    }
    return 0;
}
