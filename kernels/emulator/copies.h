// The cp.async copies of one thread. What is copied arrives at the thread's own
// wait and not before: until then the destination reads as NaN.
#pragma once

#include <stdint.h>
#include <string.h>

#include <vector>

namespace kvfold::emulator {

class Copies {
  public:
    void clear() {
        copies_.clear();
        landed_ = 0;
        open_group_ = 0;
    }

    bool in_flight() const { return landed_ < copies_.size(); }

    // 16 bytes to `to`; of zeros if `from` is null. The hardware may read the
    // source at any time until the wait: at once, or as late as that.
    void issue(void* to, const void* from, bool read_at_once) {
        memset(to, 0xff, 16);
        Copy copy = {to, read_at_once ? nullptr : from, open_group_, {}};
        if (from && read_at_once) memcpy(copy.bytes, from, 16);
        copies_.push_back(copy);
    }

    void commit() { ++open_group_; }

    // Lands all committed groups but the `newest`.
    void wait(uint32_t newest) {
        while (in_flight() && uint64_t(copies_[landed_].group) + newest < open_group_) {
            Copy& copy = copies_[landed_++];
            memcpy(copy.to, copy.from ? copy.from : copy.bytes, 16);
        }
        if (!in_flight()) {
            copies_.clear();
            landed_ = 0;
        }
    }

  private:
    struct Copy {
        void* to;
        const void* from; // null: the data is in `bytes`
        uint32_t group;
        uint8_t bytes[16];
    };
    std::vector<Copy> copies_;
    size_t landed_ = 0; // of copies_, in order of issue
    uint32_t open_group_ = 0;
};

} // namespace kvfold::emulator
