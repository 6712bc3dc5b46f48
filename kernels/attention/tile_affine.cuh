// What tiles of codes have in common. They lie as src/codec/affine.rs has it, GROUP
// elements to a scale and a zero:
//
//   keys    | codes | scale f16 [64/GROUP][D] | zero f16 [64/GROUP][D] |
//   values  | codes | scale f16 [D/GROUP][64] | zero f16 [D/GROUP][64] |
//
// A code is used where it stands: masked out of the word, with the exponent bits
// left 0, it is the f16 subnormal code · 2^(p − 24), p being its lowest bit.
// Tensor cores take subnormals in full (Fasi et al. 2021, §3.1), so no code is
// converted: a pair costs one AND and its share of a shift. Rows g stand at one
// p, rows g + 8 at another; both powers of two leave as zeros are added
// (keys) or the accumulators (values). For devices that do not (subnormal.cu asks them),
// the same kernels are made with codes as normal numbers. With scales folded into the
// other operand and zeros into one rank-1 product,
//
//   Σ_k (code·scale_k + zero_k)·x_k  =  Σ_k code·(scale_k·x_k)  +  Σ_k zero_k·x_k
#pragma once

#include "attention/columns.cuh"
#include "attention/softmax.cuh"

// What a code is to tensor cores.
enum class Number {
    SUBNORMAL, // code · 2^(p − 24), as it stands
    NORMAL,    // code · 2^p: nothing of it is lost where subnormals count as 0
};

// The pair of codes that `mask` leaves of x. Under the mantissa of 1024 a code at bit p
// counts 2^p; one exact FMA takes the 1024 off.
template <Number N> DEVICE uint32_t code_pair_of(uint32_t x, uint32_t mask) {
    if constexpr (N == Number::SUBNORMAL) return x & mask;
    return fma_f16x2(and_or(x, mask, 0x64006400), 0x3c003c00, 0xe400e400); // · 1 − 1024
}

// What a code at this bit is to be multiplied by.
template <Number N> constexpr float code_power(int bit) {
    return (N == Number::SUBNORMAL ? 16777216.0f : 1.0f) / float(1 << bit); // 2^(24 − bit) or 2^−bit
}

// The A operands in a unit of WORDS words: SPAN elements of k for rows g and g + 8.
template <int BITS, Number N = Number::SUBNORMAL> struct Codes;

template <Number N> struct Codes<2, N> {
    static constexpr int SPAN = 32, WORDS = 1, OPERANDS = 2;
    static constexpr float LOW = code_power<N>(4);  // rows g
    static constexpr float HIGH = code_power<N>(6); // rows g + 8
    static DEVICE uint32_t at_4(uint32_t x) { return code_pair_of<N>(x, 0x00300030); }
    static DEVICE uint32_t at_6(uint32_t x) { return code_pair_of<N>(x, 0x00c000c0); }
    static DEVICE void unpack(const uint32_t (&unit)[1], uint32_t (&a)[2][4]) {
        uint32_t w = unit[0];
        a[0][0] = at_4(w << 4), a[0][1] = at_6(w << 4);
        a[0][2] = at_4(w), a[0][3] = at_6(w);
        a[1][0] = at_4(w >> 4), a[1][1] = at_6(w >> 4);
        a[1][2] = at_4(w >> 8), a[1][3] = at_6(w >> 8);
    }
};

// Registers stand at bits 0, 3, 6, 9 and 12 of a word; with these two places seven shifts
// serve fifteen of them. The last one's bits are the highest of each word.
template <Number N> struct Codes<3, N> {
    static constexpr int SPAN = 64, WORDS = 3, OPERANDS = 4;
    static constexpr float LOW = code_power<N>(6);  // rows g
    static constexpr float HIGH = code_power<N>(3); // rows g + 8
    static DEVICE uint32_t at_3(uint32_t x) { return code_pair_of<N>(x, 0x00380038); }
    static DEVICE uint32_t at_6(uint32_t x) { return code_pair_of<N>(x, 0x01c001c0); }
    static DEVICE void unpack(const uint32_t (&w)[3], uint32_t (&a)[4][4]) {
        a[0][0] = at_6(w[0] << 6), a[0][1] = at_3(w[0]);
        a[0][2] = at_6(w[0]), a[0][3] = at_3(w[0] >> 6);
        a[1][0] = at_6(w[0] >> 6), a[1][1] = at_3(w[1] << 3);
        a[1][2] = at_6(w[1] << 3), a[1][3] = at_3(w[1] >> 3);
        a[2][0] = at_6(w[1] >> 3), a[2][1] = at_3(w[1] >> 9);
        a[2][2] = at_6(w[2] << 6), a[2][3] = at_3(w[2]);
        a[3][0] = at_6(w[2]), a[3][1] = at_3(w[2] >> 6);
        a[3][2] = at_6(w[2] >> 6);
        a[3][3] = at_3(((w[0] >> 12) & 0x00080008) | ((w[1] >> 11) & 0x00100010) | ((w[2] >> 10) & 0x00200020));
    }
};

template <Number N> struct Codes<4, N> {
    static constexpr int SPAN = 16, WORDS = 1, OPERANDS = 1;
    static constexpr float LOW = code_power<N>(0);  // rows g
    static constexpr float HIGH = code_power<N>(4); // rows g + 8
    static DEVICE uint32_t at_0(uint32_t x) { return code_pair_of<N>(x, 0x000f000f); }
    static DEVICE uint32_t at_4(uint32_t x) { return code_pair_of<N>(x, 0x00f000f0); }
    static DEVICE void unpack(const uint32_t (&unit)[1], uint32_t (&a)[1][4]) {
        uint32_t w = unit[0];
        a[0][0] = at_0(w), a[0][1] = at_4(w);
        a[0][2] = at_0(w >> 8), a[0][3] = at_4(w >> 8);
    }
};

template <int BITS, int D, int GROUP> struct AffineLayout {
    static constexpr uint32_t CODES = 64 * D * BITS / 8;    // bytes
    static constexpr uint32_t PARAMS = 64 * D / GROUP * 2; // bytes of scales, and of zeros
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

// What halves of values share: the zeros' part of the output, and the powers of two.
template <int BITS, int D, int GROUP, Number N> struct AffineValues {
    using Code = Codes<BITS, N>;
    static constexpr bool FOLDS = true; // weights are multiplied by scales

    // Σ zero · weight: row g is channel group g % (D/GROUP). The even blocks of 16 tokens
    // count in rows g of the first, the odd ones in rows g + 8 of the second; the other
    // rows mean nothing.
    template <int NT> struct Extra {
        float bias[2][NT][4];
    };

    // From here on the accumulators hold codes' powers of two.
    template <int NT> static DEVICE void enter(State<D, NT>& state, Extra<NT>& extra) {
        state.scale_rows(1.0f / Code::LOW, 1.0f / Code::HIGH);
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) extra.bias[0][n][e] = extra.bias[1][n][e] = 0.0f;
        }
    }

    template <int NT> static DEVICE void leave(State<D, NT>& state, Extra<NT>& extra) {
        state.scale_rows(Code::LOW, Code::HIGH);
        UNROLL
        for (int block = 0; block < D / 16; ++block) {
            uint32_t lane = block / (GROUP / 16) * 4 + lane_id() % 4;
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

    // The zeros of 32 tokens times their weights. `zeros` is this lane's part of matrices 0,
    // 2, 1, 3: tokens 0–15 in rows g, 16–31 in rows g + 8.
    template <int NT>
    static DEVICE void add_zeros(const uint8_t* zeros, const uint32_t (&low)[NT][2], const uint32_t (&high)[NT][2],
                                 Extra<NT>& extra) {
        uint32_t zero[4];
        ldmatrix_x4(zero, zeros);
        UNROLL
        for (int n = 0; n < NT; ++n) mma_f16(extra.bias[0][n], zero, low[n]);
        UNROLL
        for (int n = 0; n < NT; ++n) mma_f16(extra.bias[1][n], zero, high[n]);
    }
};
