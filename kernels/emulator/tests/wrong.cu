// Kernels that are wrong on purpose, each in one way.
#include "common/ptx.cuh"
#include "emulator/tests/harness.h"

static uint32_t* output(const TestParams& params) {
    return reinterpret_cast<uint32_t*>(params.out);
}
static const Vec16* input(const TestParams& params) {
    return reinterpret_cast<const Vec16*>(params.in);
}

// ---- races: the launch succeeds, the output is wrong under some seed ------

// out[i] = 127 − i, had there been a barrier.
KERNEL(missing_barrier, TestParams, 128, 1) {
    uint32_t* cells = reinterpret_cast<uint32_t*>(shared_memory());
    cells[threadIdx.x] = threadIdx.x;
    store(output(params) + threadIdx.x, cells[127 - threadIdx.x]);
}

// The second barrier of each round is missing: a fast thread overwrites what a slow one reads.
KERNEL(missing_second_barrier, TestParams, 128, 1) {
    uint32_t* cells = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t value = threadIdx.x;
    for (uint32_t round = 0; round < params.n; ++round) {
        cells[threadIdx.x] = value;
        sync_block();
        value = cells[(threadIdx.x + 33) % 128] + 1;
    }
    store(output(params) + threadIdx.x, value);
}

// Copies in to out, but for one step. mode 0: no wait; 1: waits for too few
// groups; 2: waits, but no barrier before another thread's copy is read.
KERNEL(careless_copy, TestParams, 64, 1) {
    Vec16* buffer = reinterpret_cast<Vec16*>(shared_memory());
    uint32_t id = threadIdx.x;
    cp_async16(buffer + id, input(params) + id);
    cp_async_commit();
    if (params.mode == 1) cp_async_wait<1>();
    if (params.mode == 2) cp_async_wait<0>();
    if (params.mode != 2) sync_block();
    Vec16 v = buffer[params.mode == 2 ? 63 - id : id];
    if (params.mode == 2) id = 63 - id;
    store(reinterpret_cast<Vec16*>(params.out) + id, v);
    cp_async_wait<0>();
}

// ---- errors: the launch says so -------------------------------------------

KERNEL(unawaited_copy, TestParams, 32, 1) {
    cp_async16(shared_memory() + threadIdx.x * 16, input(params) + threadIdx.x);
    cp_async_commit();
}

// Thread 40 of block 2 reads or writes element n, or copies from it.
KERNEL(out_of_bounds, TestParams, 64, 1) {
    if (blockIdx.x != 2 || threadIdx.x != 40) return;
    if (params.mode == 0) load(output(params) + params.n);
    if (params.mode == 1) store(output(params) + int32_t(params.n), 1u);
    if (params.mode == 2) atomic_add(output(params) + params.n, 1);
    if (params.mode == 3) cp_async16(shared_memory(), output(params) + params.n);
    if (params.mode == 4) load(reinterpret_cast<uint32_t*>(shared_memory()));
}

KERNEL(misaligned, TestParams, 32, 1) {
    if (params.mode == 0) load(reinterpret_cast<const Vec16*>(params.in + 8));
    if (params.mode == 1) cp_async16(shared_memory() + 8, input(params));
    if (params.mode == 2) cp_async16(shared_memory(), reinterpret_cast<const void*>(params.in + 8));
    uint32_t r[4];
    if (params.mode == 3) ldmatrix_x4(r, shared_memory() + 16 * lane_id() + 4);
}

// 0: lanes 16-31 exit; 1: they go to a block barrier; 2: to another collective;
// 3: to the same one elsewhere; 4: one lane of warp 1 exits before the barrier;
// 5: half of the block misses the barrier; 6: halves at two barriers in the code;
// 7: one lane of a pair of warps misses a named barrier; 8: two counts for one
// named barrier; 9: a named barrier completed by the wrong lanes; 10: id 0.
KERNEL(divergent, TestParams, 64, 1) {
    bool low = lane_id() < 16;
    switch (params.mode) {
    case 0:
        if (low) shuffle_xor(1u, 1);
        break;
    case 1:
        if (low)
            shuffle_xor(1u, 1);
        else
            sync_block();
        break;
    case 2:
        if (low)
            warp_ballot(true);
        else
            sync_warp();
        break;
    case 3:
        if (low)
            sync_warp();
        else
            sync_warp();
        break;
    case 4:
        if (threadIdx.x == 45) return;
        sync_block();
        break;
    case 5:
        if (warp_id() == 0) sync_block();
        break;
    case 6:
        if (warp_id() == 0)
            sync_block();
        else
            sync_block();
        break;
    case 7:
        if (threadIdx.x != 45) sync_named(1, 64);
        break;
    case 8: sync_named(1, warp_id() == 0 ? 32 : 64); break;
    case 9:
        if (low) sync_named(1, 32);
        break;
    case 10: sync_named(0, 64); break;
    }
}

// Writes n bytes from `mode` before the start of shared memory.
KERNEL(shared_overrun, TestParams, 32, 1) {
    if (threadIdx.x != 0) return;
    volatile uint8_t* bytes = shared_memory() - params.mode;
    for (uint32_t i = 0; i < params.n; ++i) bytes[i] = 0;
}

// mode 0: cp.async past the end of shared memory; 1: ldmatrix past it.
KERNEL(shared_out_of_bounds, TestParams, 32, 1) {
    uint8_t* row = shared_memory() + 16 * threadIdx.x;
    uint32_t r[4];
    if (params.mode == 0) cp_async16(row, input(params));
    if (params.mode == 1) ldmatrix_x4(r, row);
    cp_async_commit();
    cp_async_wait<0>();
}

KERNEL(sign_selector, TestParams, 32, 1) { store(output(params), byte_permute(1, 2, 0x8000)); }
