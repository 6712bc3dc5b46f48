#include "emulator/replay/replay.h"

#include <string.h>

#include <map>

#include "emulator/emulator.h"

namespace kvfold::replay {

namespace {

class Device {
  public:
    explicit Device(uint64_t seed) : seed_(seed) {}
    Device(const Device&) = delete;
    ~Device() {
        for (auto [address, bytes] : live_) kvfold_emulator_free(pointer(address));
    }

    // What went wrong, or "".
    std::string make(const Record& r) {
        switch (r.kind) {
        case Kind::alloc: return alloc(r);
        case Kind::free:
            if (!live_.erase(r.address)) return "frees what is not allocated";
            kvfold_emulator_free(pointer(r.address));
            return "";
        case Kind::write:
            if (!holds(r.address, r.bytes)) return "writes outside of all allocations";
            memcpy(pointer(r.address), r.data.data(), r.bytes);
            return "";
        case Kind::fill:
            if (!holds(r.address, r.bytes)) return "fills outside of all allocations";
            memset(pointer(r.address), r.value, r.bytes);
            return "";
        case Kind::copy:
            if (!holds(r.address, r.bytes) || !holds(r.to, r.bytes))
                return "copies outside of all allocations";
            memcpy(pointer(r.to), pointer(r.address), r.bytes);
            return "";
        case Kind::launch: return launch(r);
        case Kind::read:
            if (!holds(r.address, r.bytes)) return "reads outside of all allocations";
            if (hash_of(pointer(r.address), r.bytes) == r.hash) return "";
            return "reads other bytes than were recorded" + last_;
        case Kind::end: break;
        }
        return "a record of an unknown kind";
    }

  private:
    static void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

    bool holds(uint64_t address, uint64_t bytes) const {
        auto after = live_.upper_bound(address);
        if (after == live_.begin()) return false;
        auto [begin, size] = *std::prev(after);
        return address - begin <= size && bytes <= size - (address - begin);
    }

    std::string alloc(const Record& r) {
        if (!kvfold_emulator_alloc_at(r.address, r.bytes))
            return "allocates " + std::to_string(r.bytes) +
                   " bytes, and they cannot be had at their address";
        live_[r.address] = r.bytes;
        return "";
    }

    std::string launch(const Record& r) {
        char error[1024] = "";
        last_ = ", last launched: " + r.kernel;
        int failed = kvfold_emulator_launch(r.kernel.c_str(), r.grid, r.threads, r.shared_bytes,
                                            r.data.data(), r.data.size(), r.seed + seed_, 1, error,
                                            sizeof error);
        if (!failed) return "";
        return std::string(error) + " (seed " + std::to_string(r.seed + seed_) + ")";
    }

    uint64_t seed_;
    std::map<uint64_t, uint64_t> live_; // bytes by address
    std::string last_;
};

} // namespace

std::string replay(const Trace& trace, uint64_t seed) {
    Device device(seed);
    for (size_t i = 0; i < trace.size(); ++i) {
        std::string problem = device.make(trace[i]);
        if (!problem.empty()) return "record " + std::to_string(i) + ": " + problem;
    }
    return "";
}

} // namespace kvfold::replay
