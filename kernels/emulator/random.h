// The seeded random numbers behind every choice of the scheduler.
#pragma once

#include <stdint.h>

namespace kvfold::emulator {

// splitmix64: any seed will do, and neighbouring seeds give unrelated numbers.
class Random {
  public:
    explicit Random(uint64_t seed = 0) : state_(seed) {}

    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    // Below n.
    uint32_t below(uint32_t n) { return uint32_t((next() >> 32) * n >> 32); }

  private:
    uint64_t state_;
};

} // namespace kvfold::emulator
