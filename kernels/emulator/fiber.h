// Fibers: stacks of their own that take turns on one host thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#define KVFOLD_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVFOLD_ASAN 1
#endif
#endif

#if !defined(__linux__) || !(defined(__x86_64__) || defined(__aarch64__))
#define KVFOLD_FIBER_UCONTEXT 1 // slower: it calls the kernel at every switch
#endif

#ifdef KVFOLD_FIBER_UCONTEXT
#include <ucontext.h>
#endif

namespace kvfold::emulator {

// A fiber that does not run, or the host thread's own stack while fibers run.
struct Fiber {
#ifdef KVFOLD_FIBER_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
#ifdef KVFOLD_ASAN
    void* fake_stack;
    const void* bottom;
    size_t bytes;
#endif
};

// Makes `fiber` start at `entry`, which calls fiber_entered first and never
// returns, on this stack, whatever ran there before.
void fiber_prepare(Fiber& fiber, uint8_t* stack, size_t bytes, void (*entry)());

// `from` is the fiber that was left to enter this one for the first time.
void fiber_entered(Fiber& from);

// Leaves `from`, the fiber that runs, for `to`. With `for_good`, `from` is not
// entered again; what it has on its stack is dropped without destructors.
void fiber_switch(Fiber& from, Fiber& to, bool for_good = false);

// Stacks of equal size with a guard page below each, kept until destruction.
class Stacks {
  public:
    Stacks() = default;
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    ~Stacks();
    // At least `count` stacks; false if memory is short.
    bool reserve(uint32_t count);
    void prepare(Fiber& fiber, uint32_t index, void (*entry)());

  private:
    uint8_t* base_ = nullptr;
    uint32_t count_ = 0;
};

} // namespace kvfold::emulator
