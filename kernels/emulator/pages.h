// Pages of the host: mapped where callers choose, and surrounded by what nobody may
// touch. To AddressSanitizer parts are poisoned exactly.
#pragma once

#include <stdint.h>

namespace kvfold::emulator {

// What chosen addresses are multiples of, and how much is left free behind a range at
// least: a multiple of every page size in use.
constexpr uint64_t PLACE = 64 << 10;

// Bytes to map for a range: up to a multiple of PLACE, and one more.
inline uint64_t with_surroundings(uint64_t bytes) {
    return (bytes + PLACE - 1) / PLACE * PLACE + PLACE;
}

// Maps `bytes` bytes at the address, a multiple of PLACE; at any address if it is 0.
// Null if memory is short or the address taken.
void* map_pages(uint64_t address, uint64_t bytes, int protection);

// Nobody may touch these bytes from now on, or whoever owns them may.
void poison(uintptr_t address, uint64_t bytes);
void unpoison(uintptr_t address, uint64_t bytes);

} // namespace kvfold::emulator
