#include "emulator/replay/replay.h"

#include <string.h>

#include <map>

#include "emulator/emulator.h"
#include "emulator/memory.h"

namespace kvfold::replay {

namespace {

class Device {
  public:
    explicit Device(uint64_t seed) : seed_(seed) {}

    // What went wrong, or "".
    std::string make(const Record& r) {
        switch (r.kind) {
        case Kind::alloc:
            if (kvfold_emulator_alloc_at(r.address, r.bytes)) return "";
            return "allocates " + unavailable(r.bytes);
        case Kind::free:
            return kvfold_emulator_free(pointer(r.address)) ? "frees what is not allocated" : "";
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
        case Kind::reserve:
            if (!r.address || !kvfold_emulator_reserve(r.address, r.bytes))
                return "reserves " + unavailable(r.bytes);
            reserved_[r.address] = r.bytes;
            return "";
        case Kind::commit:
            if (reserves(r) && kvfold_emulator_commit(pointer(r.address), r.bytes) == 0) return "";
            return "commits what is not reserved, or has memory";
        case Kind::decommit:
            if (kvfold_emulator_decommit(pointer(r.address), r.bytes) == 0) return "";
            return "decommits what has no memory";
        case Kind::release: return release(r);
        case Kind::end: break;
        }
        return "a record of an unknown kind";
    }

  private:
    static void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

    static std::string unavailable(uint64_t bytes) {
        return std::to_string(bytes) + " bytes, and they cannot be had at their address";
    }

    static bool holds(uint64_t address, uint64_t bytes) {
        emulator::Found at = emulator::find_allocation(address);
        return at.any && at.live && within(at.begin, at.bytes, address, bytes);
    }

    bool reserves(const Record& r) const {
        auto after = reserved_.upper_bound(r.address);
        if (after == reserved_.begin()) return false;
        auto [begin, size] = *std::prev(after);
        return within(begin, size, r.address, r.bytes);
    }

    static bool within(uint64_t begin, uint64_t size, uint64_t address, uint64_t bytes) {
        return address - begin <= size && bytes <= size - (address - begin);
    }

    std::string release(const Record& r) {
        auto at = reserved_.find(r.address);
        if (at == reserved_.end() || at->second != r.bytes) return "releases what is not reserved";
        reserved_.erase(at);
        return kvfold_emulator_release(pointer(r.address), r.bytes) ? "cannot release" : "";
    }

    std::string launch(const Record& r) {
        char error[1024] = "";
        last_ = ", last launched: " + r.kernel;
        int failed = kvfold_emulator_launch(r.kernel.c_str(), r.grid, r.threads, r.shared_bytes,
                                            r.data.data(), r.data.size(), r.seed + seed_, 1, 0, error,
                                            sizeof error);
        if (!failed) return "";
        return std::string(error) + " (seed " + std::to_string(r.seed + seed_) + ")";
    }

    uint64_t seed_;
    std::map<uint64_t, uint64_t> reserved_; // bytes by address
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
