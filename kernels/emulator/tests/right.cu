// Kernels that are right.
#include "common/ptx.cuh"
#include "emulator/tests/harness.h"

// out[thread][10]: what each collective gives.
KERNEL(collectives, TestParams, 64, 1) {
    uint32_t* out = reinterpret_cast<uint32_t*>(params.out) + threadIdx.x * 10;
    uint32_t lane = lane_id(), id = threadIdx.x;
    store(out + 0, shuffle_xor(id * 10, 5));
    store(out + 1, float_bits(shuffle_xor(float(id) + 0.5f, 3)));
    store(out + 2, shuffle(id * 3, (lane * 7 + 1) % 32));
    store(out + 3, float_bits(shuffle(float(id), 31 - lane)));
    store(out + 4, warp_ballot(lane % 3 == 0));
    store(out + 5, uint32_t(warp_any(lane == 17)));
    store(out + 6, uint32_t(warp_any(false)));
    sync_warp();
    store(out + 7, warp_ballot(id < 40));
    store(out + 8, warp_min(id * 13 % 64 + 5));
    store(out + 9, warp_max(id * 13 % 64 + 5));
}

// in: A [16][16], B [16][8] (16-bit), then C [16][8] f32; out: D [16][8].
KERNEL(mma, TestParams, 32, 1) {
    const uint16_t* a = reinterpret_cast<const uint16_t*>(params.in);
    const uint16_t* b = a + 256;
    const float* c = reinterpret_cast<const float*>(b + 128);
    float* out = reinterpret_cast<float*>(params.out);
    uint32_t g = lane_id() / 4, t = lane_id() % 4;
    auto pair = [](uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; };
    auto a_pair = [&](uint32_t row, uint32_t k) {
        return pair(load(a + row * 16 + k), load(a + row * 16 + k + 1));
    };
    auto b_pair = [&](uint32_t k) { return pair(load(b + k * 8 + g), load(b + (k + 1) * 8 + g)); };
    uint32_t ra[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                      a_pair(g + 8, 2 * t + 8)};
    uint32_t rb[2] = {b_pair(2 * t), b_pair(2 * t + 8)};
    float d[4];
    for (uint32_t i = 0; i < 4; ++i) d[i] = load(c + (g + i / 2 * 8) * 8 + 2 * t + i % 2);
    if (params.mode == 0)
        mma_f16(d, ra, rb);
    else
        mma_bf16(d, ra, rb);
    for (uint32_t i = 0; i < 4; ++i) store(out + (g + i / 2 * 8) * 8 + 2 * t + i % 2, d[i]);
}

// in: 4 matrices [8][8] of 16-bit; out: [lane][4] words, twice: plain and transposed.
KERNEL(matrices, TestParams, 32, 1) {
    uint16_t* tile = reinterpret_cast<uint16_t*>(shared_memory());
    uint32_t lane = lane_id();
    for (uint32_t i = lane; i < 256; i += 32)
        tile[i] = load(reinterpret_cast<const uint16_t*>(params.in) + i);
    sync_warp();
    uint32_t r[4], rt[4];
    ldmatrix_x4(r, tile + lane * 8);
    ldmatrix_x4_trans(rt, tile + lane * 8);
    uint32_t* out = reinterpret_cast<uint32_t*>(params.out) + lane * 12;
    for (uint32_t i = 0; i < 4; ++i) {
        store(out + i, r[i]);
        store(out + 4 + i, rt[i]);
        store(out + 8 + i, movmatrix_trans(r[i]));
    }
}

// Sums n tiles of 128 × 16 bytes through two buffers; each thread reads what another copied.
KERNEL(double_buffer, TestParams, 128, 1) {
    Vec16* buffer = reinterpret_cast<Vec16*>(shared_memory());
    const Vec16* in = reinterpret_cast<const Vec16*>(params.in);
    uint32_t id = threadIdx.x, other = 127 - id, sum = 0;
    cp_async16(buffer + id, in + id);
    cp_async_commit();
    for (uint32_t tile = 0; tile < params.n; ++tile) {
        if (tile + 1 < params.n)
            cp_async16(buffer + (tile + 1) % 2 * 128 + id, in + (tile + 1) * 128 + id);
        cp_async_commit();
        cp_async_wait<1>();
        sync_block();
        const Vec16& v = buffer[tile % 2 * 128 + other];
        sum += v.w[0] + 2 * v.w[1] + 3 * v.w[2] + 4 * v.w[3];
        sync_block();
    }
    store(reinterpret_cast<uint32_t*>(params.out) + id, sum);
}

// Odd threads copy zeros.
KERNEL(copy_or_zero, TestParams, 64, 1) {
    Vec16* buffer = reinterpret_cast<Vec16*>(shared_memory());
    cp_async16_or_zero(buffer + threadIdx.x,
                       reinterpret_cast<const Vec16*>(params.in) + threadIdx.x,
                       threadIdx.x % 2 == 0);
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    store(reinterpret_cast<Vec16*>(params.out) + threadIdx.x, buffer[63 - threadIdx.x]);
}

// n rounds in which every thread takes its neighbour's number and adds one.
KERNEL(ring, TestParams, 256, 1) {
    uint32_t* cells = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t id = threadIdx.x, value = id;
    for (uint32_t round = 0; round < params.n; ++round) {
        cells[id] = value;
        sync_block();
        value = cells[(id + 33) % 256] + 1;
        sync_block();
    }
    store(reinterpret_cast<uint32_t*>(params.out) + id, value);
}

// As ring, in two halves of the block that know nothing of each other; warp 0
// of each half makes one round more alone.
KERNEL(named_rings, TestParams, 128, 1) {
    uint32_t half = threadIdx.x / 64, id = threadIdx.x % 64, value = id;
    uint32_t* cells = reinterpret_cast<uint32_t*>(shared_memory()) + half * 64;
    for (uint32_t round = 0; round < params.n + half * 3; ++round) {
        cells[id] = value;
        sync_named(1 + half, 64);
        value = cells[(id + 33) % 64] + 1;
        sync_named(1 + half, 64);
    }
    if (warp_id() % 2 == 0) {
        cells[id] = value;
        sync_named(8 + half, 32);
        value = cells[31 - id];
    }
    store(reinterpret_cast<uint32_t*>(params.out) + threadIdx.x, value);
}

// out[0] counts; out[1 + ticket] names who drew the ticket.
KERNEL(tickets, TestParams, 64, 1) {
    uint32_t* out = reinterpret_cast<uint32_t*>(params.out);
    uint32_t ticket = atomic_add(out, 1);
    store(out + 1 + ticket, blockIdx.x * blockDim.x + threadIdx.x);
}

// out[z][y][x] = its own index, from every block of a three-dimensional grid.
KERNEL(grid_indices, TestParams, 32, 1) {
    uint32_t linear = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) store(reinterpret_cast<uint32_t*>(params.out) + linear, linear);
}

// n times one thing, to be timed: mode 0 mma_f16, 1 sync_block, 2 shuffle_xor, 3 load.
KERNEL(costs, TestParams, 128, 1) {
    uint32_t a[4] = {}, b[2] = {}, x = threadIdx.x;
    float d[4] = {};
    for (uint32_t i = 0; i < params.n; ++i) {
        if (params.mode == 0) mma_f16(d, a, b);
        if (params.mode == 1) sync_block();
        if (params.mode == 2) x += shuffle_xor(x, 1);
        if (params.mode == 3) x += load(reinterpret_cast<const uint32_t*>(params.in) + threadIdx.x);
    }
    store(reinterpret_cast<float*>(params.out) + threadIdx.x, d[0] + float(x));
}
