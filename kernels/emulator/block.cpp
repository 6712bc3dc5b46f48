#include "emulator/block.h"

#include <stdlib.h>

#include <utility>

__thread kvfold::emulator::Index threadIdx, blockIdx, gridDim, blockDim;

namespace kvfold::emulator {

__thread Block* current_block;
__thread Recent recent[N_RECENT];

void Launch::fail(const std::string& text) {
    std::lock_guard<std::mutex> guard(lock);
    if (!failed) message = text;
    failed = true;
}

// ---- a block from start to end --------------------------------------------

// Bytes before and after shared memory that no kernel may change; what it reads
// there is NaN. AddressSanitizer does better: the heap's own red zones.
#ifdef KVFOLD_ASAN
constexpr uint32_t GUARD_BYTES = 0;
#else
constexpr uint32_t GUARD_BYTES = 1024;
#endif
// 0xfffb is NaN in f16 and bf16, twice it is in f32, and rarely written by mistake.
static uint8_t guard_byte(uint32_t i) { return i % 2 ? 0xff : 0xfb; }

Block::~Block() { free(shared_buffer_); }

bool Block::prepare_shared(uint32_t bytes) {
    size_t all = size_t(bytes) + 2 * GUARD_BYTES;
    if (!shared_buffer_ || shared_bytes_ != bytes) {
        free(std::exchange(shared_buffer_, nullptr));
        void* memory = nullptr;
        if (posix_memalign(&memory, 128, all ? all : 1) != 0) return false;
        shared_buffer_ = static_cast<uint8_t*>(memory);
        shared = shared_buffer_ + GUARD_BYTES;
        shared_bytes_ = bytes;
    }
    for (uint32_t i = 0; i < GUARD_BYTES; ++i) {
        shared_buffer_[i] = guard_byte(i);
        shared[bytes + i] = guard_byte(i);
    }
    memset(shared, 0xff, bytes);
    return true;
}

void Block::check_guard() {
    for (uint32_t i = 0; i < GUARD_BYTES; ++i) {
        bool before = shared_buffer_[i] != guard_byte(i),
             after = shared[shared_bytes_ + i] != guard_byte(i);
        if (!before && !after) continue;
        return launch->fail(
            place(nullptr) + ": wrote outside shared memory, at offset " +
            std::to_string(before ? int64_t(i) - GUARD_BYTES : int64_t(shared_bytes_) + i) +
            " of " + std::to_string(shared_bytes_) + " bytes");
    }
}

bool Block::prepare(Launch& new_launch, Index index) {
    launch = &new_launch;
    n_threads_ = launch->kernel->threads;
    if (!stacks_.reserve(n_threads_) || !prepare_shared(launch->shared_bytes)) {
        launch->fail("the host's memory is too short for a block");
        return false;
    }
    if (threads_.size() < n_threads_) {
        threads_.resize(n_threads_);
        runnable_.resize(n_threads_);
        warps_.resize(n_threads_ / WARP);
    }
    uint64_t linear = (uint64_t(index.z) * launch->grid.y + index.y) * launch->grid.x + index.x;
    random = Random(Random(launch->seed ^ linear * 0xd1342543de82ef95).next());
    one_warp_ahead_ = random.below(2);
    for (Barrier& b : barriers_) b = {};
    for (Warp& w : warps_) w.arrived = 0;
    for (Recent& r : recent) r = {};
    n_alive_ = n_threads_;
    n_runnable_ = 0;
    for (uint32_t i = 0; i < n_threads_; ++i) {
        threads_[i].wait = Wait::none;
        threads_[i].copies.clear();
        stacks_.prepare(threads_[i].fiber, i, fiber_main);
        make_runnable(i);
    }
    blockIdx = index;
    gridDim = launch->grid;
    blockDim = {n_threads_, 1, 1};
    return true;
}

void Block::run(Launch& new_launch, Index index) {
    if (!prepare(new_launch, index)) return;
    current_block = this;
    uint32_t first = pick();
    running = &threads_[first];
    threadIdx = {first, 0, 0};
    left_ = &host_;
    fiber_switch(host_, running->fiber);
    current_block = nullptr;
    if (!launch->failed) check_guard();
}

void Block::fiber_main() {
    Block& block = *current_block;
    fiber_entered(*block.left_);
    block.launch->kernel->body(block.launch->params);
    block.exit_thread();
}

void Block::exit_thread() {
    if (running->copies.in_flight())
        fail({nullptr, 0}, "exited with cp.async copies that it never waited for");
    running->wait = Wait::exited;
    if (--n_alive_ == 0) leave();
    run_another();
    __builtin_unreachable(); // nobody makes this thread runnable again
}

// Back to the host's stack. Fibers that have not finished stay as they are;
// kernels hold nothing that needs a destructor.
void Block::leave() {
    fiber_switch(running->fiber, host_, true);
    __builtin_unreachable();
}

void Block::fail(Site site, const char* text) {
    { // leave() runs no destructors
        std::string message = place(running) + ": " + text;
        if (site.file)
            message += std::string(", at ") + site.file + ":" + std::to_string(site.line);
        launch->fail(message);
    }
    leave();
}

// ---- who runs next --------------------------------------------------------

// Takes a runnable thread out of the list. Half of the blocks draw from all
// threads; in the others one warp runs as far ahead as it can (those made
// runnable last go first), with a rare change of mind.
uint32_t Block::pick() {
    uint32_t from = 0;
    if (one_warp_ahead_ && n_runnable_ > WARP && random.below(256) != 0) from = n_runnable_ - WARP;
    uint32_t at = from + random.below(n_runnable_ - from);
    uint32_t thread = runnable_[at];
    runnable_[at] = runnable_[--n_runnable_];
    return thread;
}

// Called by a thread that waits, is runnable, or has exited.
void Block::run_another() {
    if (n_runnable_ == 0) {
        launch->fail(describe_deadlock());
        leave();
    }
    uint32_t next = pick();
    Thread* self = running;
    if (self == &threads_[next]) return;
    running = &threads_[next];
    threadIdx.x = next;
    left_ = &self->fiber;
    fiber_switch(self->fiber, running->fiber, self->wait == Wait::exited);
}

void Block::perhaps_yield() {
    if (random.below(2)) return;
    make_runnable(id_of(running));
    run_another();
}

// ---- collectives and barriers ---------------------------------------------

static bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

void Block::meet(Wait collective, void* operands, Site site) {
    uint32_t thread = id_of(running), w = thread / WARP, lane = thread % WARP;
    Warp& warp = warps_[w];
    if (warp.arrived == 0) {
        warp.collective = collective;
        warp.site = site;
    } else if (warp.collective != collective || !same(warp.site, site)) {
        launch->fail(describe_mismatch(w, collective, site));
        leave();
    }
    warp.operands[lane] = operands;
    warp.arrived |= 1u << lane;
    running->wait = collective;
    running->site = site;
    if (warp.arrived == ~0u) {
        complete(collective, warp.operands, launch->flush_subnormals);
        warp.arrived = 0;
        for (uint32_t l = 0; l < WARP; ++l) {
            threads_[w * WARP + l].wait = Wait::none;
            make_runnable(w * WARP + l);
        }
    }
    run_another();
}

void Block::wait_at_barrier(Wait kind, uint32_t id, uint32_t threads, Site site) {
    Barrier& barrier = barriers_[id];
    if (barrier.arrived == 0) barrier.expected = threads;
    if (barrier.expected != threads)
        emulator::fail(site, "sync_named(%u, %u) while others wait there for %u threads", id,
                       threads, barrier.expected);
    running->wait = kind;
    running->barrier = uint8_t(id);
    running->site = site;
    if (++barrier.arrived == barrier.expected) release(barrier, id);
    run_another();
}

// Whole warps must have come, each to one call; to sync_block, all to the same.
void Block::release(Barrier& barrier, uint32_t id) {
    auto waits = [&](uint32_t i) {
        Wait w = threads_[i].wait;
        return (w == Wait::sync_block || w == Wait::sync_named) && threads_[i].barrier == id;
    };
    // From a random warp on: who is made runnable last may go first.
    uint32_t start = random.below(n_threads_ / WARP) * WARP;
    for (uint32_t k = 0; k < n_threads_; ++k) {
        uint32_t i = (start + k) % n_threads_;
        uint32_t leader = id == 0 ? 0 : i / WARP * WARP;
        if (waits(leader) != waits(i) ||
            (waits(i) && !same(threads_[i].site, threads_[leader].site))) {
            launch->fail(describe_deadlock());
            leave();
        }
    }
    for (uint32_t k = 0; k < n_threads_; ++k) {
        uint32_t i = (start + k) % n_threads_;
        if (!waits(i)) continue;
        threads_[i].wait = Wait::none;
        make_runnable(i);
    }
    barrier = {};
}

bool Block::is_shared(const void* p, uint32_t bytes) const {
    return holds({reinterpret_cast<uintptr_t>(shared), shared_bytes_},
                 reinterpret_cast<uintptr_t>(p), bytes);
}

} // namespace kvfold::emulator
