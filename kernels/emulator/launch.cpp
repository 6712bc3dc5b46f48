#include <stdio.h>
#include <string.h>

#include <memory>
#include <system_error>
#include <thread>

#include "emulator/block.h"
#include "emulator/emulator.h"

namespace kvfold::emulator {

namespace {

// What an H100 gives a block at most. Older devices give less; the launchers
// of the real thing check that.
constexpr uint32_t MAX_SHARED = 227 * 1024;
constexpr uint32_t MAX_THREADS = 1024;

// Blocks' working memory, kept between launches.
class BlockPool {
  public:
    std::unique_ptr<Block> take() {
        std::lock_guard<std::mutex> guard(lock_);
        if (free_.empty()) return std::make_unique<Block>();
        std::unique_ptr<Block> block = std::move(free_.back());
        free_.pop_back();
        return block;
    }
    void give(std::unique_ptr<Block> block) {
        std::lock_guard<std::mutex> guard(lock_);
        if (free_.size() < 16) free_.push_back(std::move(block));
    }

  private:
    std::mutex lock_;
    std::vector<std::unique_ptr<Block>> free_;
};

BlockPool& pool() {
    static BlockPool* p = new BlockPool; // outlives whatever still runs at exit
    return *p;
}

// Numbers 0..n in an order of their own for each seed, without a list:
// i → (start + i · step) mod n with step and n coprime.
class Order {
  public:
    Order(uint64_t n, Random& random) : n_(n), start_(random.next() % n), step_(random.next() % n) {
        while (common_divisor(step_, n_) != 1) step_ = (step_ + 1) % n_;
    }
    uint64_t at(uint64_t i) const {
        return uint64_t((unsigned __int128)(i)*step_ % n_ + start_) % n_;
    }

  private:
    static uint64_t common_divisor(uint64_t a, uint64_t b) {
        while (b) {
            uint64_t r = a % b;
            a = b;
            b = r;
        }
        return a;
    }
    uint64_t n_, start_, step_;
};

std::string configuration_error(const Kernel* k, const uint32_t grid[3], uint32_t threads,
                                uint32_t shared_bytes, uint64_t params_bytes) {
    auto text = [](uint64_t n) { return std::to_string(n); };
    std::string kernel = "kernel '" + std::string(k->name) + "': ";
    if (params_bytes != k->params_bytes)
        return kernel + "params of " + text(params_bytes) + " bytes, not " + text(k->params_bytes);
    if (threads != k->threads)
        return kernel + "launched with " + text(threads) + " threads, declared with " +
               text(k->threads);
    if (threads == 0 || threads % WARP != 0 || threads > MAX_THREADS)
        return kernel + text(threads) + " threads are not 1 to 32 whole warps";
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 ||
        grid[2] > 65535)
        return kernel + "grid (" + text(grid[0]) + "," + text(grid[1]) + "," + text(grid[2]) + ")";
    if (shared_bytes > MAX_SHARED)
        return kernel + text(shared_bytes) + " bytes of shared memory, at most " + text(MAX_SHARED);
    return "";
}

// Null with a message if there is no such kernel, or more than one.
const Kernel* find_kernel(const char* name, std::string& message) {
    const Kernel* found = nullptr;
    for (const Kernel* k = first_kernel(); k; k = k->next) {
        if (strcmp(k->name, name) != 0) continue;
        if (found) {
            message = "kernel '" + std::string(name) + "' is defined twice";
            return nullptr;
        }
        found = k;
    }
    if (!found) message = "no kernel '" + std::string(name) + "' is linked in";
    return found;
}

void run_blocks(Launch& launch, uint32_t host_threads) {
    uint64_t n = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    Random random(launch.seed);
    Order order(n, random);
    std::atomic<uint64_t> next{0};
    auto work = [&] {
        std::unique_ptr<Block> block = pool().take();
        uint64_t i;
        while (!launch.failed && (i = next++) < n) {
            uint64_t b = order.at(i), row = b / launch.grid.x;
            block->run(launch, {uint32_t(b % launch.grid.x), uint32_t(row % launch.grid.y),
                                uint32_t(row / launch.grid.y)});
        }
        pool().give(std::move(block));
    };
    std::vector<std::thread> helpers;
    try {
        for (uint32_t t = 1; t < host_threads && t < n; ++t) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // No more threads to be had: those there are do all the work.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

// The message of what went wrong, or "".
std::string launch(const char* name, const uint32_t grid[3], uint32_t threads,
                   uint32_t shared_bytes, const void* params, uint64_t params_bytes, uint64_t seed,
                   uint32_t host_threads, bool flush_subnormals) {
    std::string message;
    const Kernel* kernel = find_kernel(name, message);
    if (!kernel) return message;
    message = configuration_error(kernel, grid, threads, shared_bytes, params_bytes);
    if (!message.empty()) return message;
    // A copy, as a launch makes one: aligned, and the caller's may go.
    std::vector<max_align_t> copy(params_bytes / sizeof(max_align_t) + 1);
    memcpy(copy.data(), params, params_bytes);
    Launch launch;
    launch.kernel = kernel;
    launch.params = copy.data();
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.shared_bytes = shared_bytes;
    launch.seed = seed;
    launch.flush_subnormals = flush_subnormals;
    run_blocks(launch, host_threads);
    return launch.message;
}

} // namespace

} // namespace kvfold::emulator

extern "C" int kvfold_emulator_launch(const char* kernel, const uint32_t grid[3], uint32_t threads,
                                      uint32_t shared_bytes, const void* params,
                                      uint64_t params_bytes, uint64_t seed, uint32_t host_threads,
                                      uint32_t flush_subnormals, char* error,
                                      uint64_t error_bytes) {
    // The host's own failures (no memory, no threads) must not cross into Rust.
    std::string message;
    try {
        message = kvfold::emulator::launch(kernel, grid, threads, shared_bytes, params,
                                           params_bytes, seed, host_threads,
                                           flush_subnormals != 0);
    } catch (const std::exception& failure) {
        message = std::string("the host failed: ") + failure.what();
    }
    if (message.empty()) return 0;
    if (error && error_bytes) snprintf(error, error_bytes, "%s", message.c_str());
    return 1;
}
