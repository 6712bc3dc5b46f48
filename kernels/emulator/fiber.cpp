#include "emulator/fiber.h"

#include <sys/mman.h>

#ifdef KVFOLD_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvfold::emulator {

// ---- the switch -----------------------------------------------------------

#ifdef KVFOLD_FIBER_UCONTEXT

static void context_prepare(Fiber& fiber, uint8_t* stack, size_t bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}
static void context_switch(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#else

// Pushes the registers that a call preserves, stores the stack pointer at
// `*save`, and goes on with what `load` points to.
extern "C" void kvfold_fiber_switch(void** save, void* load);

static void context_switch(Fiber& from, Fiber& to) {
    kvfold_fiber_switch(&from.stack_pointer, to.stack_pointer);
}

#if defined(__x86_64__)

asm(R"(
    .text
    .globl kvfold_fiber_switch
    .hidden kvfold_fiber_switch
    .type kvfold_fiber_switch, @function
kvfold_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size kvfold_fiber_switch, . - kvfold_fiber_switch
)");

static void context_prepare(Fiber& fiber, uint8_t* stack, size_t bytes, void (*entry)()) {
    // Six registers, the address that `ret` takes, and a null return address
    // for `entry`, which finds the stack aligned as after a call.
    void** top = reinterpret_cast<void**>(stack + bytes);
    for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = top - 8;
}

#else // aarch64

asm(R"(
    .text
    .globl kvfold_fiber_switch
    .hidden kvfold_fiber_switch
    .type kvfold_fiber_switch, %function
kvfold_fiber_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size kvfold_fiber_switch, . - kvfold_fiber_switch
)");

static void context_prepare(Fiber& fiber, uint8_t* stack, size_t bytes, void (*entry)()) {
    void** frame = reinterpret_cast<void**>(stack + bytes) - 20;
    for (int i = 0; i < 20; ++i) frame[i] = nullptr;
    frame[11] = reinterpret_cast<void*>(entry); // x30, where `ret` goes
    fiber.stack_pointer = frame;
}

#endif
#endif

// ---- the same, told to AddressSanitizer -----------------------------------

void fiber_prepare(Fiber& fiber, uint8_t* stack, size_t bytes, void (*entry)()) {
#ifdef KVFOLD_ASAN
    __asan_unpoison_memory_region(stack, bytes); // frames that were dropped
    fiber.fake_stack = nullptr;
    fiber.bottom = stack;
    fiber.bytes = bytes;
#endif
    context_prepare(fiber, stack, bytes, entry);
}

void fiber_entered([[maybe_unused]] Fiber& from) {
#ifdef KVFOLD_ASAN
    // Where the host thread's own stack lies becomes known here.
    __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#endif
}

void fiber_switch(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
#ifdef KVFOLD_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
    context_switch(from, to);
#ifdef KVFOLD_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// ---- stacks ---------------------------------------------------------------

constexpr size_t GUARD = 65536; // a multiple of every page size in use
constexpr size_t STACK = 4 * 65536;

static void unmap([[maybe_unused]] uint8_t* base, size_t bytes) {
#ifdef KVFOLD_ASAN
    __asan_unpoison_memory_region(base, bytes); // whoever gets these addresses next
#endif
    munmap(base, bytes);
}

Stacks::~Stacks() {
    if (base_) unmap(base_, count_ * (GUARD + STACK));
}

bool Stacks::reserve(uint32_t count) {
    if (count <= count_) return true;
    void* base = mmap(nullptr, count * (GUARD + STACK), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    if (base_) unmap(base_, count_ * (GUARD + STACK));
    base_ = static_cast<uint8_t*>(base);
    count_ = count;
    for (uint32_t i = 0; i < count; ++i) mprotect(base_ + i * (GUARD + STACK), GUARD, PROT_NONE);
    return true;
}

void Stacks::prepare(Fiber& fiber, uint32_t index, void (*entry)()) {
    // Tops at equal offsets would all compete for the same few cache sets.
    size_t colour = index % 64 * (17 * 64);
    uint8_t* stack = base_ + index * (GUARD + STACK) + GUARD;
    fiber_prepare(fiber, stack, STACK - colour, entry);
}

} // namespace kvfold::emulator
