// A key or value half of a page as a tile in shared memory: [64][D] 16-bit
// elements, row-major, its chunks swizzled (rows.cuh). 16-bit pages are copied to
// it as they are, fp8 pages converted.
//
// Tiles are named by their offset in shared memory. Operands come as four words:
// B operands (16 × 8) of two neighbouring n = 8 blocks.
#pragma once

#include "attention/rows.cuh"

template <int D> struct RowTile {
    static constexpr uint32_t ROW = 2 * D; // bytes
    static constexpr uint32_t BYTES = 64 * ROW;

    // A lane gives ldmatrix one row of 16 × 16 elements. The next ones along the
    // row are at (this ^ 32 · (j % 4)) + 128 · (j / 4), for the swizzle is an
    // exclusive or within 128 bytes; `tile` is a multiple of 128.
    // n: tokens 16·block + 0..15, k: channels 16·j + 0..15.
    static DEVICE void keys(uint32_t (&b)[4], uint32_t tile, int block, int j) {
        uint32_t lane = lane_id();
        uint32_t at = tile + swizzled<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
        ldmatrix_x4(b, shared_memory() + (at ^ (j % 4 * 32)) + j / 4 * 128 + block * (16 * ROW));
    }
    // n: channels 16·block + 0..15, k: tokens 16·j + 0..15.
    static DEVICE void values(uint32_t (&b)[4], uint32_t tile, int block, int j) {
        uint32_t at = tile + swizzled<D>(lane_id() % 16, lane_id() / 16);
        ldmatrix_x4_trans(b, shared_memory() + (at ^ (block % 4 * 32)) + block / 4 * 128 + j * (16 * ROW));
    }

    // Starts the block's copy of rows [0, valid) of a page's half; the rest become
    // 0, for 0 · NaN would be NaN.
    static DEVICE void issue(uint8_t* tile, const uint8_t* from, uint32_t valid) {
        constexpr uint32_t CHUNKS = D / 8, STEP = 128 / CHUNKS; // rows at a time
        uint32_t row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        UNROLL
        for (uint32_t i = 0; i < 64 / STEP; ++i) {
            uint32_t r = row + i * STEP;
            // Row 0 is always readable.
            const uint8_t* source = from + (r < valid ? r : 0) * ROW + chunk * 16;
            cp_async16_or_zero(tile + swizzled<D>(r, chunk), source, r < valid);
        }
    }
    // As issue, of all rows.
    static DEVICE void issue(uint8_t* tile, const uint8_t* from) {
        constexpr uint32_t CHUNKS = D / 8, STEP = 128 / CHUNKS;
        uint32_t row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        UNROLL
        for (uint32_t i = 0; i < 64 / STEP; ++i)
            cp_async16(tile + swizzled<D>(row + i * STEP, chunk), from + (row + i * STEP) * ROW + chunk * 16);
    }
};
