// What the twins call, for the block that this host thread runs.
#include "emulator/runtime.h"

#include <stdarg.h>
#include <stdio.h>

#include "emulator/block.h"
#include "emulator/memory.h"

namespace kvfold::emulator {

uint8_t* shared_memory_of_block() { return current_block->shared; }

void fail(Site site, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    current_block->fail(site, text);
}

void meet(Wait collective, void* operands, Site site) {
    current_block->meet(collective, operands, site);
}

void sync_block_at(Site site) {
    current_block->wait_at_barrier(Wait::sync_block, 0, current_block->n_threads(), site);
}

void wait_at_barrier(uint32_t id, uint32_t threads, Site site) {
    if (id == 0 || id >= N_BARRIERS)
        fail(site, "sync_named(%u, %u): barriers are 1 to 15", id, threads);
    if (threads == 0 || threads % WARP != 0 || threads > current_block->n_threads())
        fail(site, "sync_named(%u, %u): not a number of whole warps of this block", id, threads);
    current_block->wait_at_barrier(Wait::sync_named, id, threads, site);
}

void perhaps_yield() { current_block->perhaps_yield(); }

// ---- copies ---------------------------------------------------------------

void copy_issue(void* shared, const void* global, bool valid, Site site) {
    check_shared(shared, 16, "cp_async16 destination", site);
    check_global(global, 16, 16, "cp_async16 source", site);
    Block& block = *current_block;
    block.running->copies.issue(shared, valid ? global : nullptr, block.random.below(2));
}
void copy_commit() { current_block->running->copies.commit(); }
void copy_wait(uint32_t newest) { current_block->running->copies.wait(newest); }

// ---- addresses ------------------------------------------------------------

void check_shared(const void* address, uint32_t bytes, const char* what, Site site) {
    Block& block = *current_block;
    long long offset = static_cast<const uint8_t*>(address) - block.shared;
    if (!block.is_shared(address, bytes))
        fail(site, "%s: %u bytes at offset %lld of %u bytes of shared memory", what, bytes, offset,
             block.launch->shared_bytes);
    if (offset % bytes != 0)
        fail(site, "%s: misaligned, offset %lld of shared memory is not a multiple of %u", what,
             offset, bytes);
}

void check_global_slowly(uintptr_t address, uint32_t bytes, uint32_t align, const char* what,
                         Site site) {
    uint32_t at = 0;
    while (at < N_RECENT && !holds(recent[at], address, bytes)) ++at;
    bool known = at < N_RECENT;
    Recent allocation = known ? recent[at] : Recent{};
    if (!known) {
        at = N_RECENT - 1;
        Found found = find_allocation(address);
        allocation = {found.begin, found.bytes};
        known = found.any && found.live && holds(allocation, address, bytes);
    }
    if (known) { // it moves to the front
        for (; at > 0; --at) recent[at] = recent[at - 1];
        recent[0] = allocation;
    }
    if (known && address % align == 0) return;
    auto shown = static_cast<unsigned long long>(address);
    if (current_block->is_shared(reinterpret_cast<const void*>(address), 1))
        fail(site, "%s: 0x%llx is in shared memory, not global", what, shown);
    char where[160];
    describe_address(address, where, sizeof where);
    if (!known) fail(site, "%s: %u bytes out of bounds at 0x%llx, %s", what, bytes, shown, where);
    fail(site, "%s: %u bytes misaligned at 0x%llx, not a multiple of %u, %s", what, bytes, shown,
         align, where);
}

} // namespace kvfold::emulator
