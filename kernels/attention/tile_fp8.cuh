// 32 tokens of a half of a sealed e4m3 page, row-major [32][D] bytes. A byte in the high half
// of 16 bits, shifted right by one below its sign, is an f16 of 2^−8 its value: a subnormal
// below 2^−6. As a Number::NORMAL it is multiplied by 2^8, which is exact and leaves no
// subnormal.
//
// Keys: a thread takes four consecutive channels of a row as its k, so queries
// are loaded in the same order. Values: a transposing load of 16-bit pairs gives
// row g the channels 2g and 2g + 1 of 16, so the accumulators' rows are permuted
// while a run of fp8 pages is read.
#pragma once

#include "attention/tile_affine.cuh"

template <int D, Number N> struct Fp8Tile {
    static constexpr uint32_t CHUNKS = D / 16; // 16 bytes each, of a row
    static constexpr uint32_t TOKENS = 32;
    static constexpr uint32_t BYTES = TOKENS * D;
    static constexpr float POWER = N == Number::SUBNORMAL ? 256.0f : 1.0f; // of a value, over that of its f16

    // Where chunk c of row r lies: eight rows of one chunk column meet different banks.
    static DEVICE uint32_t at(uint32_t row, uint32_t chunk) {
        uint32_t turn = CHUNKS >= 8 ? row % 8 : row / 2 % 4;
        return row * D + (chunk ^ turn) * 16;
    }

    // Starts the copy, 512 bytes at a time. Where a lane's chunks lie repeats after
    // every eight rows, which is PERIOD steps.
    static DEVICE void issue(uint8_t* shared, const uint8_t* tile) {
        const uint8_t* from = tile + lane_id() * 16;
        constexpr uint32_t PERIOD = CHUNKS / 4;
        UNROLL
        for (uint32_t i = 0; i < PERIOD; ++i) {
            uint32_t chunk = i * 32 + lane_id();
            // The step's own distance is an offset of the copy.
            issue_steps(shared + at(chunk / CHUNKS, chunk % CHUNKS), from + i * 512);
        }
    }
    template <uint32_t AT = 0> static DEVICE void issue_steps(uint8_t* shared, const uint8_t* from) {
        if constexpr (AT < BYTES) {
            cp_async16<AT>(shared, from);
            issue_steps<AT + 8 * D>(shared, from);
        }
    }

    // Two bytes of x, chosen by the selector into the high bytes, as f16 / POWER.
    static DEVICE uint32_t halves(uint32_t x, uint32_t selector) {
        constexpr uint32_t POWER_8 = 0x5c005c00; // 2^8
        uint32_t y = byte_permute(x, 0, selector);
        uint32_t half = (y & 0x80008000) | ((y >> 1) & 0x3f803f80);
        return N == Number::SUBNORMAL ? half : mul_f16x2(half, POWER_8);
    }
};

template <int D, Number N = Number::SUBNORMAL> struct Fp8Keys {
    using Tile = Fp8Tile<D, N>;
    static constexpr Channels ORDER = Channels::BY_FOUR;
    static constexpr float UNIT = Tile::POWER; // of scores
    static constexpr uint32_t TOKENS = Tile::TOKENS;
    static constexpr uint32_t BYTES = Tile::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* tile) { Tile::issue(shared, tile); }

    // Products of 32 tokens with the queries, times 2^−8.
    template <int NT>
    static DEVICE void scores(const uint8_t* shared, const uint32_t (&q)[D / 16][NT][2], float (&s)[2][NT][4]) {
        uint32_t lane = lane_id();
        UNROLL
        for (int b = 0; b < 2; ++b) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) s[b][n][e] = 0.0f;
            }
            UNROLL
            for (int j = 0; j < D / 16; j += 2) {
                // Words t of rows g and g + 8 of chunk j, then of chunk j + 1.
                uint32_t x[4];
                ldmatrix_x4(x, shared + Tile::at(16 * b + lane % 16, j + lane / 16));
                UNROLL
                for (int i = 0; i < 2; ++i) {
                    const uint32_t a[4] = {
                        Tile::halves(x[2 * i], 0x1404), Tile::halves(x[2 * i + 1], 0x1404),
                        Tile::halves(x[2 * i], 0x3424), Tile::halves(x[2 * i + 1], 0x3424)};
                    UNROLL
                    for (int n = 0; n < NT; ++n) mma_f16(s[b][n], a, q[j + i][n]);
                }
            }
        }
    }
};

template <int D, Number N = Number::SUBNORMAL> struct Fp8Values {
    using Tile = Fp8Tile<D, N>;
    static constexpr bool FOLDS = false; // weights are multiplied by nothing
    static constexpr uint32_t BYTES = Tile::BYTES;
    template <int NT> struct Extra {};

    static DEVICE void issue(uint8_t* shared, const uint8_t* tile) { Tile::issue(shared, tile); }

    template <int NT> static DEVICE void enter(State<D, NT>& state, Extra<NT>&) {
        uint32_t g = lane_id() / 4, t = lane_id() % 4;
        uint32_t even = (2 * g) % 8 * 4 + t;
        UNROLL
        for (int b = 0; b < D / 16; ++b) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float x = state.out[b][n][e] / Tile::POWER;
                    float y = state.out[b][n][e + 2] / Tile::POWER;
                    float x0 = shuffle(x, even), x1 = shuffle(x, even + 4);
                    float y0 = shuffle(y, even), y1 = shuffle(y, even + 4);
                    state.out[b][n][e] = g < 4 ? x0 : y0;
                    state.out[b][n][e + 2] = g < 4 ? x1 : y1;
                }
            }
        }
    }

    template <int NT> static DEVICE void leave(State<D, NT>& state, Extra<NT>&) {
        uint32_t g = lane_id() / 4, t = lane_id() % 4;
        uint32_t from = g / 2 * 4 + t;
        UNROLL
        for (int b = 0; b < D / 16; ++b) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float x = state.out[b][n][e] * Tile::POWER;
                    float y = state.out[b][n][e + 2] * Tile::POWER;
                    float x0 = shuffle(x, from), x1 = shuffle(x, from + 16);
                    float y0 = shuffle(y, from), y1 = shuffle(y, from + 16);
                    state.out[b][n][e] = g % 2 ? y0 : x0;
                    state.out[b][n][e + 2] = g % 2 ? y1 : x1;
                }
            }
        }
    }

    template <int NT> static DEVICE void rescale(Extra<NT>&, const float (&)[NT][2]) {}

    template <int NT>
    static DEVICE void accumulate(const uint8_t* shared, const float (&p)[2][NT][4],
                                  State<D, NT>& state, Extra<NT>&) {
        uint32_t lane = lane_id();
        UNROLL
        for (int b = 0; b < 2; ++b) { // of 16 tokens
            uint32_t w[NT][2];
            weights_operand<F16, NT>(p[b], w);
            UNROLL
            for (int j = 0; j < D / 16; j += 2) {
                // Matrices: tokens 0–7 and 8–15 of chunk j, then of chunk j + 1.
                uint32_t row = 16 * b + lane % 16, x[4];
                ldmatrix_x4_trans(x, shared + Tile::at(row, j + lane / 16));
                UNROLL
                for (int i = 0; i < 2; ++i) {
                    const uint32_t a[4] = {
                        Tile::halves(x[2 * i], 0x2404), Tile::halves(x[2 * i], 0x3414),
                        Tile::halves(x[2 * i + 1], 0x2404), Tile::halves(x[2 * i + 1], 0x3414)};
                    UNROLL
                    for (int n = 0; n < NT; ++n) mma_f16(state.out[j + i][n], a, w[n]);
                }
            }
        }
    }
};
