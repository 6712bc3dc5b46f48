// Global memory: the table of allocations, live and recently freed.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kvfold::emulator {

struct Found {
    bool any; // false: the address lies before every allocation
    bool live;
    uintptr_t begin;
    uint64_t bytes;
};

// The allocation with the highest start at or below the address.
Found find_allocation(uintptr_t address);

// Says where the address lies, in one clause.
void describe_address(uintptr_t address, char* text, size_t bytes);

// Enters a part of a reservation that has memory, or takes it out again. False if
// other allocations are in the way, or if not all of it has memory.
bool add_committed(uintptr_t begin, uint64_t bytes);
bool remove_committed(uintptr_t begin, uint64_t bytes);

} // namespace kvfold::emulator
