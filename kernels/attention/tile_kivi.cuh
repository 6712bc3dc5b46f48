// Halves of a sealed KIVI page: codes in groups of 32 (tile_affine.cuh).
#pragma once

#include "attention/tile_affine.cuh"

// This lane's words of four fragments: `first`, the one behind it, and the two that lie
// `apart` fragments later. A fragment is an 8 × 8 matrix of 16-bit pairs as it stands.
DEVICE void code_words(const uint8_t* codes, uint32_t first, uint32_t apart, uint32_t (&w)[4]) {
    uint32_t lane = lane_id();
    ldmatrix_x4(w, codes + lane % 16 * 16 + lane / 16 * (apart * 128) + first * 128);
}

template <int BITS, int D, Number N = Number::SUBNORMAL> struct KiviKeys {
    using Code = Codes<BITS, N>;
    using Layout = AffineLayout<BITS, D, 32>;
    static constexpr Channels ORDER = Channels::NATURAL;
    static constexpr float UNIT = 1.0f; // of scores
    static constexpr uint32_t TOKENS = 64;
    static constexpr uint32_t BYTES = Layout::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* page) {
        issue_straight<BYTES>(shared + lane_id() * 16, page + lane_id() * 16);
    }

    // Products of 64 tokens with the queries.
    template <int NT>
    static DEVICE void scores(const uint8_t* shared, const uint32_t (&q)[D / 16][NT][2], float (&s)[4][NT][4]) {
        constexpr int WORDS = 32 * BITS / 64; // of 32 channels: 1 or 2
        constexpr int OPERANDS = Code::OPERANDS;
        constexpr int PAIR = 2 / WORDS; // blocks of 32 channels whose words are read at once
        const uint8_t* params = shared + Layout::CODES;
        float bias[NT][4];
        zeros_part<NT>(params + Layout::PARAMS, q, bias);
        params += lane_id() / 8 * 16;
        UNROLL
        for (int group = 0; group < 2; ++group) {
            float acc[2][NT][4];
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) acc[0][n][e] = acc[1][n][e] = 0.0f;
            }
            UNROLL
            for (int first = 0; first < D / 32; first += PAIR) {
                uint32_t words[4]; // [half][PAIR][WORDS]
                code_words(shared, 2 * group * (D / 32 * WORDS) + first * WORDS, D / 32 * WORDS, words);
                UNROLL
                for (int block = first; block < first + PAIR; ++block) {
                    // Eight equal rows a matrix: every g gets the 32 channels' own.
                    uint32_t factor[4], fold[2][NT][2];
                    ldmatrix_x4(factor, params + (group * D + block * 32) * 2);
                    UNROLL
                    for (int i = 0; i < 2; ++i) {
                        UNROLL
                        for (int n = 0; n < NT; ++n) {
                            fold[i][n][0] = mul_f16x2(q[2 * block + i][n][0], factor[2 * i]);
                            fold[i][n][1] = mul_f16x2(q[2 * block + i][n][1], factor[2 * i + 1]);
                        }
                    }
                    UNROLL
                    for (int half = 0; half < 2; ++half) {
                        UNROLL
                        for (int i = 0; i < WORDS; ++i) {
                            uint32_t a[OPERANDS][4];
                            const uint32_t unit[1] = {words[2 * half + (block - first) * WORDS + i]};
                            Code::unpack(unit, a);
                            UNROLL
                            for (int o = 0; o < OPERANDS; ++o) {
                                UNROLL
                                for (int n = 0; n < NT; ++n)
                                    mma_f16(acc[half][n], a[o], fold[i * OPERANDS + o][n]);
                            }
                        }
                    }
                }
            }
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    float power = e < 2 ? Code::LOW : Code::HIGH;
                    UNROLL
                    for (int half = 0; half < 2; ++half)
                        s[2 * group + half][n][e] =
                            fma_fast(acc[half][n][e], power, bias[n][2 * group + e % 2]);
                }
            }
        }
    }

    // Σ zero · query for both groups of 32 tokens: the first in rows g, which are
    // all equal, the second in rows g + 8.
    template <int NT>
    static DEVICE void zeros_part(const uint8_t* zeros, const uint32_t (&q)[D / 16][NT][2],
                                  float (&bias)[NT][4]) {
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) bias[n][e] = 0.0f;
        }
        uint32_t matrix = lane_id() / 8;
        zeros += matrix % 2 * (2 * D) + matrix / 2 * 16;
        UNROLL
        for (int j = 0; j < D / 16; ++j) {
            uint32_t z[4];
            ldmatrix_x4(z, zeros + j * 32);
            UNROLL
            for (int n = 0; n < NT; ++n) mma_f16(bias[n], z, q[j][n]);
        }
    }
};

template <int BITS, int D, Number N = Number::SUBNORMAL> struct KiviValues : AffineValues<BITS, D, 32, N> {
    using Code = Codes<BITS, N>;
    using Common = AffineValues<BITS, D, 32, N>;
    template <int NT> using Extra = typename Common::template Extra<NT>;
    using Layout = AffineLayout<BITS, D, 32>;
    static constexpr uint32_t BYTES = Layout::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* page) {
        issue_straight<BYTES>(shared + lane_id() * 16, page + lane_id() * 16);
    }

    // Adds the weighted values of 64 tokens.
    template <int NT>
    static DEVICE void accumulate(const uint8_t* shared, const float (&p)[4][NT][4],
                                  State<D, NT>& state, Extra<NT>& extra) {
        constexpr int GROUPS = D / 32;
        constexpr int WORDS = 32 * BITS / 64; // along 32 tokens: 1 or 2
        constexpr int OPERANDS = Code::OPERANDS;
        constexpr int PAIR = 2 / WORDS; // groups whose words are read at once
        uint32_t lane = lane_id(), matrix = lane / 8;
        const uint8_t* scales = shared + Layout::CODES + matrix * 16;
        const uint8_t* zeros = shared + Layout::CODES + Layout::PARAMS + lane % 8 % GROUPS * 128 +
                               (matrix % 2 * 2 + matrix / 2) * 16;
        UNROLL
        for (int span = 0; span < 2; ++span) { // of 32 tokens
            // Keeps the compiler from loading both spans at once into registers that the
            // accumulators have taken.
            if constexpr (D == 256) sync_warp();
            uint32_t b[2][NT][2];
            weights_operand<F16, NT>(p[2 * span], b[0]);
            weights_operand<F16, NT>(p[2 * span + 1], b[1]);
            Common::template add_zeros<NT>(zeros + span * 64, b[0], b[1], extra);
            UNROLL
            for (int first = 0; first < GROUPS; first += PAIR) {
                uint32_t words[4]; // KIVI-2: of four blocks; KIVI-4: [i][block]
                code_words(shared, span * WORDS * (D / 16) + 2 * first, WORDS == 1 ? 2 : D / 16, words);
                UNROLL
                for (int group = first; group < first + PAIR; ++group) {
                    uint32_t factor[4], fold[2][NT][2];
                    ldmatrix_x4(factor, scales + group * 128 + span * 64);
                    UNROLL
                    for (int i = 0; i < 2; ++i) {
                        UNROLL
                        for (int n = 0; n < NT; ++n) {
                            fold[i][n][0] = mul_f16x2(b[i][n][0], factor[2 * i]);
                            fold[i][n][1] = mul_f16x2(b[i][n][1], factor[2 * i + 1]);
                        }
                    }
                    UNROLL
                    for (int half = 0; half < 2; ++half) {
                        int block = 2 * group + half;
                        UNROLL
                        for (int i = 0; i < WORDS; ++i) {
                            uint32_t a[OPERANDS][4];
                            const uint32_t unit[1] = {words[2 * (group - first + i) + half]};
                            Code::unpack(unit, a);
                            UNROLL
                            for (int o = 0; o < OPERANDS; ++o) {
                                UNROLL
                                for (int n = 0; n < NT; ++n)
                                    mma_f16(state.out[block][n], a[o], fold[i * OPERANDS + o][n]);
                            }
                        }
                    }
                }
            }
        }
    }
};
