// Halves of a sealed KIVI page, as they lie in memory (src/codec/affine.rs):
//
//   keys    | codes | scale f16 [64/32][D] | zero f16 [64/32][D] |
//   values  | codes | scale f16 [D/32][64] | zero f16 [D/32][64] |
//
// A code is used where it stands: masked out of the word, with the exponent bits
// left 0, it is the f16 subnormal code · 2^(p − 24), p being its lowest bit.
// Tensor cores take subnormals in full (Fasi et al. 2021, §3.1), so no code is
// converted: a pair costs one AND and its share of a shift. Rows g stand at one
// p, rows g + 8 at another; both powers of two leave through the score's factor
// (keys) or the accumulators (values). With scales folded into the other
// operand and zeros into one rank-1 product,
//
//   Σ_k (code·scale_k + zero_k)·x_k  =  Σ_k code·(scale_k·x_k)  +  Σ_k zero_k·x_k
#pragma once

#include "attention/columns.cuh"
#include "attention/softmax.cuh"

// The A operands in a word: 64/BITS elements of k for rows g and g + 8.
template <int BITS> struct Codes;

template <> struct Codes<2> {
    static constexpr int OPERANDS = 2;
    static constexpr float LOW = 1048576.0f; // 2^20: rows g, code at bit 4
    static constexpr float HIGH = 262144.0f; // 2^18: rows g + 8, code at bit 6
    static DEVICE void unpack(uint32_t w, uint32_t (&a)[2][4]) {
        constexpr uint32_t AT4 = 0x00300030, AT6 = 0x00c000c0;
        a[0][0] = (w << 4) & AT4, a[0][1] = (w << 4) & AT6;
        a[0][2] = w & AT4, a[0][3] = w & AT6;
        a[1][0] = (w >> 4) & AT4, a[1][1] = (w >> 4) & AT6;
        a[1][2] = (w >> 8) & AT4, a[1][3] = (w >> 8) & AT6;
    }
};

template <> struct Codes<4> {
    static constexpr int OPERANDS = 1;
    static constexpr float LOW = 16777216.0f; // 2^24: rows g, code at bit 0
    static constexpr float HIGH = 1048576.0f; // 2^20: rows g + 8, code at bit 4
    static DEVICE void unpack(uint32_t w, uint32_t (&a)[1][4]) {
        constexpr uint32_t AT0 = 0x000f000f, AT4 = 0x00f000f0;
        a[0][0] = w & AT0, a[0][1] = w & AT4;
        a[0][2] = (w >> 8) & AT0, a[0][3] = (w >> 8) & AT4;
    }
};

template <int BITS, int D> struct KiviLayout {
    static constexpr uint32_t CODES = 64 * D * BITS / 8; // bytes
    static constexpr uint32_t PARAMS = 64 * D / 32 * 2;  // bytes of scales, and of zeros
    static constexpr uint32_t BYTES = CODES + 2 * PARAMS;
};

// Starts the copy of the bytes [AT, BYTES) as they lie, by one warp; this lane's part
// begins at both addresses.
template <uint32_t BYTES, uint32_t AT = 0>
DEVICE void issue_straight(uint8_t* shared, const uint8_t* from) {
    static_assert(BYTES % 512 == 0, "a warp copies 512 bytes at a time");
    if constexpr (AT < BYTES) {
        cp_async16<AT>(shared, from);
        issue_straight<BYTES, AT + 512>(shared, from);
    }
}

// This lane's words of four fragments: `first`, the one behind it, and the two that lie
// `apart` fragments later. A fragment is an 8 × 8 matrix of 16-bit pairs as it stands.
DEVICE void code_words(const uint8_t* codes, uint32_t first, uint32_t apart, uint32_t (&w)[4]) {
    uint32_t lane = lane_id();
    ldmatrix_x4(w, codes + lane % 16 * 16 + lane / 16 * (apart * 128) + first * 128);
}

template <int BITS, int D> struct KiviKeys {
    using Layout = KiviLayout<BITS, D>;
    static constexpr Channels ORDER = Channels::NATURAL;
    static constexpr uint32_t TOKENS = 64;
    static constexpr uint32_t BYTES = Layout::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* page) {
        issue_straight<BYTES>(shared + lane_id() * 16, page + lane_id() * 16);
    }

    // Scores of 64 tokens, times `scale`.
    template <int NT>
    static DEVICE void scores(const uint8_t* shared, const uint32_t (&q)[D / 16][NT][2], float scale,
                              float (&s)[4][NT][4]) {
        constexpr int WORDS = 32 * BITS / 64; // of 32 channels: 1 or 2
        constexpr int OPERANDS = Codes<BITS>::OPERANDS;
        constexpr int PAIR = 2 / WORDS; // blocks of 32 channels whose words are read at once
        const uint8_t* params = shared + Layout::CODES;
        float bias[NT][4];
        zeros_part<NT>(params + Layout::PARAMS, q, bias);
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) bias[n][e] *= scale;
        }
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
                            Codes<BITS>::unpack(words[2 * half + (block - first) * WORDS + i], a);
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
                    float power = e < 2 ? Codes<BITS>::LOW : Codes<BITS>::HIGH;
                    UNROLL
                    for (int half = 0; half < 2; ++half)
                        s[2 * group + half][n][e] =
                            fma_fast(acc[half][n][e], power * scale, bias[n][2 * group + e % 2]);
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

template <int BITS, int D> struct KiviValues {
    using Layout = KiviLayout<BITS, D>;
    static constexpr uint32_t BYTES = Layout::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* page) {
        issue_straight<BYTES>(shared + lane_id() * 16, page + lane_id() * 16);
    }

    // Σ zero · weight: row g is channel group g % (D/32). The even blocks of 16 tokens
    // count in rows g of the first, the odd ones in rows g + 8 of the second; the other
    // rows mean nothing.
    template <int NT> struct Extra {
        float bias[2][NT][4];
    };

    // From here on the accumulators hold codes' powers of two.
    template <int NT> static DEVICE void enter(State<D, NT>& state, Extra<NT>& extra) {
        state.scale_rows(1.0f / Codes<BITS>::LOW, 1.0f / Codes<BITS>::HIGH);
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) extra.bias[0][n][e] = extra.bias[1][n][e] = 0.0f;
        }
    }

    template <int NT> static DEVICE void leave(State<D, NT>& state, Extra<NT>& extra) {
        state.scale_rows(Codes<BITS>::LOW, Codes<BITS>::HIGH);
        UNROLL
        for (int block = 0; block < D / 16; ++block) {
            uint32_t lane = block / 2 * 4 + lane_id() % 4;
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float bias = shuffle(extra.bias[0][n][e] + extra.bias[1][n][e + 2], lane);
                    state.out[block][n][e] += bias;
                    state.out[block][n][e + 2] += bias;
                }
            }
        }
    }

    template <int NT>
    static DEVICE void rescale(Extra<NT>& extra, const float (&factor)[NT][2]) {
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) extra.bias[e / 2][n][e] *= factor[n][e % 2];
        }
    }

    // Adds the weighted values of 64 tokens.
    template <int NT>
    static DEVICE void accumulate(const uint8_t* shared, const float (&p)[4][NT][4],
                                  State<D, NT>& state, Extra<NT>& extra) {
        constexpr int GROUPS = D / 32;
        constexpr int WORDS = 32 * BITS / 64; // along 32 tokens: 1 or 2
        constexpr int OPERANDS = Codes<BITS>::OPERANDS;
        constexpr int PAIR = 2 / WORDS; // groups whose words are read at once
        uint32_t lane = lane_id(), matrix = lane / 8;
        const uint8_t* scales = shared + Layout::CODES + matrix * 16;
        // Matrices 0, 2, 1, 3 of a span: tokens 0–15 in rows g, 16–31 in rows g + 8.
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
            uint32_t zero[4];
            ldmatrix_x4(zero, zeros + span * 64);
            UNROLL
            for (int i = 0; i < 2; ++i) {
                UNROLL
                for (int n = 0; n < NT; ++n) mma_f16(extra.bias[i][n], zero, b[i][n]);
            }
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
                            Codes<BITS>::unpack(words[2 * (group - first + i) + half], a);
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
