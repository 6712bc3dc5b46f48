// Halves of a sealed page of kvfold's own codecs (tile_affine.cuh): codes of 2, 3 or 4 bits
// in groups of 64, of rotated rows. A page has one scale and one zero a channel of keys,
// so folded queries serve all 64 tokens; each of 64 channels of values has those of its
// tokens.
//
// Units of four neighbouring blocks of 16 rows are read at once: along the rows, CHUNK
// elements of k at a time.
#pragma once

#include "attention/tile_affine.cuh"

template <int BITS, int D, Number N> struct RotatedLayout : AffineLayout<BITS, D, 64> {
    using Code = Codes<BITS, N>;
    static constexpr int SPAN = Code::SPAN, WORDS = Code::WORDS;
    static constexpr int CHUNK = SPAN < 32 ? 32 : SPAN; // the scales of 32 elements are one load
    static constexpr int UNITS = CHUNK / SPAN;

    // This lane's unit of each of four blocks, which begin at fragments `first`,
    // `first + apart`, …
    static DEVICE void units(const uint8_t* codes, uint32_t first, uint32_t apart, uint32_t (&unit)[4][WORDS]) {
        uint32_t lane = lane_id();
        const uint8_t* from = codes + lane / 8 * (apart * 128) + lane % 8 * 16 + first * 128;
        UNROLL
        for (int w = 0; w < WORDS; ++w) {
            uint32_t x[4];
            ldmatrix_x4(x, from + w * 128);
            UNROLL
            for (int block = 0; block < 4; ++block) unit[block][w] = x[block];
        }
    }

    // The elements x of CHUNK/32 pairs of B operands times their scales; this lane's part of
    // those begins at `scales`.
    template <int NT>
    static DEVICE void fold(const uint8_t* scales, const uint32_t (*x)[NT][2], uint32_t (&folded)[CHUNK / 16][NT][2]) {
        UNROLL
        for (int c = 0; c < CHUNK / 32; ++c) {
            uint32_t factor[4];
            ldmatrix_x4(factor, scales + c * 64);
            UNROLL
            for (int i = 0; i < 4; ++i) {
                UNROLL
                for (int n = 0; n < NT; ++n)
                    folded[2 * c + i / 2][n][i % 2] = mul_f16x2(x[2 * c + i / 2][n][i % 2], factor[i]);
            }
        }
    }

    // acc[block] += codes · folded operands.
    template <int NT>
    static DEVICE void multiply(float (*acc)[NT][4], const uint32_t (&unit)[4][WORDS], const uint32_t (*folded)[NT][2]) {
        UNROLL
        for (int block = 0; block < 4; ++block) {
            uint32_t a[Code::OPERANDS][4];
            Code::unpack(unit[block], a);
            UNROLL
            for (int o = 0; o < Code::OPERANDS; ++o) {
                UNROLL
                for (int n = 0; n < NT; ++n) mma_f16(acc[block][n], a[o], folded[o][n]);
            }
        }
    }
};

template <int BITS, int D, Number N = Number::SUBNORMAL> struct RotatedKeys {
    using Code = Codes<BITS, N>;
    using Layout = RotatedLayout<BITS, D, N>;
    static constexpr Channels ORDER = Channels::NATURAL;
    static constexpr float UNIT = 1.0f; // of scores
    static constexpr uint32_t TOKENS = 64;
    static constexpr uint32_t BYTES = Layout::BYTES;

    // Products of 64 tokens with the queries.
    template <int NT>
    static DEVICE void scores(const uint8_t* shared, const uint32_t (&q)[D / 16][NT][2], float (&s)[4][NT][4]) {
        const uint8_t* scales = shared + Layout::CODES + lane_id() / 8 * 16;
        float bias[NT][4];
        zeros_part<NT>(scales + Layout::PARAMS, q, bias);
        UNROLL
        for (int block = 0; block < 4; ++block) {
            UNROLL
            for (int n = 0; n < NT; ++n) s[block][n][0] = s[block][n][1] = s[block][n][2] = s[block][n][3] = 0.0f;
        }
        UNROLL
        for (int channel = 0; channel < D; channel += Layout::CHUNK) {
            uint32_t folded[Layout::CHUNK / 16][NT][2];
            Layout::template fold<NT>(scales + channel * 2, &q[channel / 16], folded);
            UNROLL
            for (int u = 0; u < Layout::UNITS; ++u) {
                uint32_t unit[4][Layout::WORDS];
                uint32_t span = channel / Layout::SPAN + u;
                Layout::units(shared, span * Layout::WORDS, D / Layout::SPAN * Layout::WORDS, unit);
                Layout::template multiply<NT>(s, unit, &folded[u * Layout::SPAN / 16]);
            }
        }
        UNROLL
        for (int block = 0; block < 4; ++block) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) {
                    float power = e < 2 ? Code::LOW : Code::HIGH;
                    s[block][n][e] = fma_fast(s[block][n][e], power, bias[n][e % 2]);
                }
            }
        }
    }

    // Σ zero · query, the same in all rows.
    template <int NT>
    static DEVICE void zeros_part(const uint8_t* zeros, const uint32_t (&q)[D / 16][NT][2], float (&bias)[NT][4]) {
        UNROLL
        for (int n = 0; n < NT; ++n) bias[n][0] = bias[n][1] = bias[n][2] = bias[n][3] = 0.0f;
        UNROLL
        for (int j = 0; j < D / 16; j += 2) {
            uint32_t z[4];
            ldmatrix_x4(z, zeros + j * 32);
            UNROLL
            for (int i = 0; i < 2; ++i) {
                const uint32_t a[4] = {z[2 * i], z[2 * i], z[2 * i + 1], z[2 * i + 1]};
                UNROLL
                for (int n = 0; n < NT; ++n) mma_f16(bias[n], a, q[j + i][n]);
            }
        }
    }
};

template <int BITS, int D, Number N = Number::SUBNORMAL> struct RotatedValues : AffineValues<BITS, D, 64, N> {
    using Layout = RotatedLayout<BITS, D, N>;
    using Common = AffineValues<BITS, D, 64, N>;
    template <int NT> using Extra = typename Common::template Extra<NT>;
    static constexpr uint32_t BYTES = Layout::BYTES;

    // Adds the weighted values of 64 tokens, rotated as they are.
    template <int NT>
    static DEVICE void accumulate(const uint8_t* shared, const float (&p)[4][NT][4],
                                  State<D, NT>& state, Extra<NT>& extra) {
        uint32_t lane = lane_id(), matrix = lane / 8;
        const uint8_t* scales = shared + Layout::CODES + matrix * 16;
        const uint8_t* zeros = shared + Layout::CODES + Layout::PARAMS + lane % 8 % (D / 64) * 128 +
                               (matrix % 2 * 2 + matrix / 2) * 16;
        UNROLL
        for (int token = 0; token < 64; token += Layout::CHUNK) {
            // Keeps the compiler from loading all tokens at once into registers that the
            // accumulators have taken.
            if constexpr (D == 256) sync_warp();
            uint32_t b[Layout::CHUNK / 16][NT][2];
            UNROLL
            for (int i = 0; i < Layout::CHUNK / 16; ++i) weights_operand<F16, NT>(p[token / 16 + i], b[i]);
            UNROLL
            for (int i = 0; i < Layout::CHUNK / 16; i += 2)
                Common::template add_zeros<NT>(zeros + token * 2 + i * 32, b[i], b[i + 1], extra);
            UNROLL
            for (int group = 0; group < D / 64; ++group) {
                uint32_t folded[Layout::CHUNK / 16][NT][2];
                Layout::template fold<NT>(scales + group * 128 + token * 2, b, folded);
                UNROLL
                for (int u = 0; u < Layout::UNITS; ++u) {
                    uint32_t unit[4][Layout::WORDS];
                    uint32_t span = token / Layout::SPAN + u;
                    Layout::units(shared, (span * (D / 16) + 4 * group) * Layout::WORDS, Layout::WORDS, unit);
                    Layout::template multiply<NT>(&state.out[4 * group], unit, &folded[u * Layout::SPAN / 16]);
                }
            }
        }
    }
};
