// Shared by the emulator's tests: parameters of every test kernel, buffers, launches.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "emulator/emulator.h"

struct TestParams {
    uint64_t in;
    uint64_t out;
    uint32_t n;
    uint32_t mode;
};

constexpr uint64_t N_SEEDS = 16;

// Global memory holding n values.
template <class T> class Buffer {
  public:
    explicit Buffer(size_t n)
        : n_(n), data_(static_cast<T*>(kvfold_emulator_alloc(n * sizeof(T)))) {}
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        memcpy(data_, values.data(), n_ * sizeof(T));
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { kvfold_emulator_free(data_); }
    uint64_t address() const { return reinterpret_cast<uint64_t>(data_); }
    const T& operator[](size_t i) const { return data_[i]; }
    std::vector<T> values() const { return std::vector<T>(data_, data_ + n_); }
    void fill(uint8_t byte) { memset(data_, byte, n_ * sizeof(T)); }

  private:
    size_t n_;
    T* data_;
};

struct Configuration {
    uint32_t threads = 32;
    uint32_t shared_bytes = 0;
    uint32_t blocks = 1;
    uint32_t host_threads = 1;
};

// The launch's error, or "".
inline std::string launch(const char* kernel, const Configuration& c, const TestParams& params,
                          uint64_t seed) {
    char error[2048] = "";
    uint32_t grid[3] = {c.blocks, 1, 1};
    int rc = kvfold_emulator_launch(kernel, grid, c.threads, c.shared_bytes, &params, sizeof params,
                                    seed, c.host_threads, 0, error, sizeof error);
    if ((rc != 0) != (error[0] != 0)) return "return code and message disagree";
    return error;
}

// Prints one line for a case; counts failures.
extern int failures;
inline void report(const std::string& name, const std::string& problem) {
    printf("%-6s %s%s%s\n", problem.empty() ? "ok" : "FAILED", name.c_str(),
           problem.empty() ? "" : ": ", problem.c_str());
    if (!problem.empty()) ++failures;
}

void test_right();
void test_wrong();
void test_numbers();
void measure();
