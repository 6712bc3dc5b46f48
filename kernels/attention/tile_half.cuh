// 16 tokens of a 16-bit page: keys, then values, each [16][D] row-major in
// shared memory. Chunk c (8 channels) of row r lies at chunk c ^ (r % 8), so that
// eight rows of one chunk column meet eight different banks.
#pragma once

#include "attention/softmax.cuh"

template <class T, int D> struct HalfTile {
    static constexpr uint32_t TOKENS = 16;
    static constexpr uint32_t ROW = 2 * D; // bytes
    static constexpr uint32_t BYTES = 2 * TOKENS * ROW;

    static constexpr uint32_t CHUNKS = ROW / 16;

    // Where chunk c of row r lies.
    static DEVICE uint32_t at(uint32_t row, uint32_t chunk) {
        return row * ROW + (chunk ^ (row % 8)) * 16;
    }

    // Starts the copy of rows [0, valid) from keys and values; the rest become 0,
    // for 0 · NaN would be NaN. Row 0 is always readable.
    static DEVICE void issue(uint8_t* shared, const uint8_t* keys, const uint8_t* values,
                             uint32_t valid) {
        if (valid == TOKENS) {
            // Where a lane's chunks lie repeats after every eight rows.
            UNROLL
            for (uint32_t i = 0; i < CHUNKS / 4; ++i) {
                uint32_t chunk = i * 32 + lane_id();
                uint8_t* to = shared + at(chunk / CHUNKS, chunk % CHUNKS);
                const uint8_t* key = keys + lane_id() * 16 + i * 512;
                const uint8_t* value = values + lane_id() * 16 + i * 512;
                cp_async16(to, key);
                cp_async16<8 * ROW>(to, key);
                cp_async16(to + TOKENS * ROW, value);
                cp_async16<8 * ROW>(to + TOKENS * ROW, value);
            }
            return;
        }
        NO_UNROLL // seldom, and addresses of all would take too many registers
        for (uint32_t i = 0; i < TOKENS * CHUNKS / 32; ++i) {
            uint32_t chunk = i * 32 + lane_id(), row = chunk / CHUNKS;
            uint32_t from = (row < valid ? row : 0) * ROW + chunk % CHUNKS * 16;
            uint8_t* to = shared + at(row, chunk % CHUNKS);
            cp_async16_or_zero(to, keys + from, row < valid);
            cp_async16_or_zero(to + TOKENS * ROW, values + from, row < valid);
        }
    }

    // Products of the 16 tokens with the queries, by lane `lane`.
    template <int NT>
    static DEVICE void scores(const uint8_t* shared, uint32_t lane, const uint32_t (&q)[D / 16][NT][2],
                              float (&s)[1][NT][4]) {
        uint32_t row = lane % 16;
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) s[0][n][e] = 0.0f;
        }
        UNROLL
        for (int j = 0; j < D / 16; ++j) {
            uint32_t a[4];
            ldmatrix_x4(a, shared + row * ROW + ((2 * j + lane / 16) ^ (row % 8)) * 16);
            UNROLL
            for (int n = 0; n < NT; ++n) Element<T>::mma(s[0][n], a, q[j][n]);
        }
    }

    // Adds the weighted values.
    template <int NT>
    static DEVICE void accumulate(const uint8_t* shared, uint32_t lane, const float (&p)[1][NT][4],
                                  State<D, NT>& state) {
        uint32_t b[NT][2];
        weights_operand<T, NT>(p[0], b);
        uint32_t row = lane % 8 + lane / 16 * 8;
        const uint8_t* values = shared + TOKENS * ROW + row * ROW;
        UNROLL
        for (int j = 0; j < D / 16; ++j) {
            uint32_t a[4];
            ldmatrix_x4_trans(a, values + ((2 * j + lane / 8 % 2) ^ (row % 8)) * 16);
            UNROLL
            for (int n = 0; n < NT; ++n) Element<T>::mma(state.out[j][n], a, b[n]);
        }
    }
};
