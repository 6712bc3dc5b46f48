// Traces: what a program asked of an emulated device, and what it read from it.
// Written by src/backend/driver/trace.rs.
//
//   file    "kvftrace", u32 version = 1, records, the last of them an end
//   record  u8 kind, then
//     1 alloc   u64 address, u64 bytes       at a multiple of 64 KiB, never used before
//     2 free    u64 address
//     3 write   u64 address, u64 bytes, the bytes
//     4 fill    u64 address, u64 bytes, u8 value
//     5 copy    u64 from, u64 to, u64 bytes  which do not overlap
//     6 launch  u32 grid[3], u32 threads, u32 shared_bytes, u64 seed,
//               u32 name_bytes, u32 params_bytes, name, params
//     7 read    u64 address, u64 bytes, u64 hash_of(the bytes)
//     8 reserve, 9 commit, 10 decommit, 11 release
//               u64 address, u64 bytes       of virtual memory; reserve as alloc
//     12 end    u64 number of records before it
//
// All little-endian, without padding. It holds what was done, when it was done: not
// what failed; of a graph, the work of each launch; of a copy from pinned memory, a
// write when the device made it; of one to it, a read of the bytes that it took.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

namespace kvfold::replay {

enum class Kind : uint8_t {
    alloc = 1,
    free,
    write,
    fill,
    copy,
    launch,
    read,
    reserve,
    commit,
    decommit,
    release,
    end
};

struct Record {
    Kind kind;
    uint8_t value = 0; // fill
    uint64_t address = 0;
    uint64_t bytes = 0;
    uint64_t to = 0;   // copy
    uint64_t hash = 0; // read
    // launch
    uint32_t grid[3] = {};
    uint32_t threads = 0;
    uint32_t shared_bytes = 0;
    uint64_t seed = 0;
    std::string kernel = {};
    std::string data = {}; // of a write, or the parameters of a launch
};

using Trace = std::vector<Record>; // without the end

// Words of 8 bytes, the last one filled up with zeros, multiplied in one after the
// other, after their count.
uint64_t hash_of(const void* bytes, uint64_t n);

// What is wrong with the file, in one clause, or "".
std::string parse(const std::string& file, Trace& trace);

// The same of the file at `path`.
std::string read_trace(const char* path, Trace& trace);

} // namespace kvfold::replay
