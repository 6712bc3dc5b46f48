// Halves of a sealed e4m3 page, row-major [64][D] bytes, converted to f16.
#pragma once

#include "attention/page_half.cuh"

template <int D> struct Fp8Half {
    using Tile = RowTile<D>;
    static constexpr uint32_t BYTES = 64 * D;

    // Two bytes of x, chosen by the selector into the high bytes, as f16: shifted
    // right by one below its sign, a byte is 2^−8 its value.
    static DEVICE uint32_t halves(uint32_t x, uint32_t selector) {
        constexpr uint32_t POWER = 0x5c005c00; // 2^8
        uint32_t y = byte_permute(x, 0, selector);
        return mul_f16x2((y & 0x80008000) | ((y >> 1) & 0x3f803f80), POWER);
    }

    // The block converts a half from `raw` to `tile`; exact.
    static DEVICE void unpack(uint8_t* tile, const uint8_t* raw) {
        constexpr uint32_t CHUNKS = D / 16, STEP = 128 / CHUNKS; // rows at a time
        uint32_t chunk = threadIdx.x % CHUNKS;
        UNROLL
        for (uint32_t i = 0; i < 64 / STEP; ++i) {
            uint32_t row = threadIdx.x / CHUNKS + i * STEP;
            Vec16 x = reinterpret_cast<const Vec16*>(raw)[i * 128 + threadIdx.x];
            UNROLL
            for (uint32_t h = 0; h < 2; ++h) {
                Vec16 y;
                UNROLL
                for (uint32_t w = 0; w < 2; ++w) {
                    y.w[2 * w] = halves(x.w[2 * h + w], 0x1404);
                    y.w[2 * w + 1] = halves(x.w[2 * h + w], 0x3424);
                }
                *reinterpret_cast<Vec16*>(tile + swizzled<D>(row, 2 * chunk + h)) = y;
            }
        }
    }
};
