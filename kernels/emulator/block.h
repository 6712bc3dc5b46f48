// One block of threads at a time: each thread is a fiber that runs until it must
// wait; then another one, drawn at random, goes on. All on one host thread.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "emulator/collective.h"
#include "emulator/copies.h"
#include "emulator/device.h"
#include "emulator/fiber.h"
#include "emulator/random.h"
#include "emulator/runtime.h"

namespace kvfold::emulator {

// One kernel launch, shared by the host threads that work on it.
struct Launch {
    const Kernel* kernel;
    const void* params;
    Index grid;
    uint32_t shared_bytes;
    uint64_t seed;
    bool flush_subnormals;

    std::atomic<bool> failed{false};
    std::mutex lock;
    std::string message; // of the first error; under `lock`

    void fail(const std::string& text);
};

struct Thread {
    Wait wait;
    uint8_t barrier; // if it waits at one
    Site site;       // of the wait
    Fiber fiber;
    Copies copies;
};

struct Warp {
    uint32_t arrived; // lanes, as bits
    Wait collective;  // that they wait for, with `site`
    Site site;
    void* operands[WARP];
};

struct Barrier {
    uint32_t arrived; // threads
    uint32_t expected;
};

constexpr uint32_t N_BARRIERS = 16; // 0 is sync_block's

// Everything a block needs; reused for block after block.
class Block {
  public:
    Block() = default;
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block();

    // Runs block `index` to its end or to the launch's first error.
    void run(Launch& launch, Index index);

    // ---- called by the running fiber --------------------------------------
    void meet(Wait collective, void* operands, Site site);
    void wait_at_barrier(Wait kind, uint32_t id, uint32_t threads, Site site);
    void perhaps_yield();
    [[noreturn]] void fail(Site site, const char* text);

    uint32_t n_threads() const { return n_threads_; }
    bool is_shared(const void* p, uint32_t bytes) const;

    Launch* launch = nullptr;
    Thread* running = nullptr;
    uint8_t* shared = nullptr; // shared_bytes_, in shared_buffer_
    Random random;

  private:
    static void fiber_main();
    bool prepare(Launch& launch, Index index);
    bool prepare_shared(uint32_t bytes);
    void check_guard();
    void make_runnable(uint32_t thread) { runnable_[n_runnable_++] = thread; }
    uint32_t pick();
    void run_another();
    void release(Barrier& barrier, uint32_t id);
    [[noreturn]] void exit_thread();
    [[noreturn]] void leave();

    // What the launch's error says (report.cpp).
    std::string describe_mismatch(uint32_t warp, Wait collective, Site site) const;
    std::string describe_deadlock() const;
    std::string place(const Thread* thread) const;
    uint32_t id_of(const Thread* thread) const { return uint32_t(thread - threads_.data()); }

    Stacks stacks_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::vector<uint32_t> runnable_;
    uint32_t n_runnable_ = 0;
    uint32_t n_threads_ = 0;
    uint32_t n_alive_ = 0;
    bool one_warp_ahead_ = false;
    Barrier barriers_[N_BARRIERS] = {};
    Fiber host_ = {}; // the host thread's own stack
    Fiber* left_ = nullptr;
    uint8_t* shared_buffer_ = nullptr;
    uint32_t shared_bytes_ = 0;
};

// The block that this host thread runs, or null.
extern __thread Block* current_block;

// "sync_block", "mma_f16", …
const char* name_of(Wait wait);

} // namespace kvfold::emulator
