#include "emulator/collective.h"

namespace kvfold::emulator {

template <class T> static T& operand(void* const (&operands)[WARP], uint32_t lane) {
    return *static_cast<T*>(operands[lane]);
}

// ---- shuffles and votes ---------------------------------------------------

static void shuffle(void* const (&operands)[WARP], bool exclusive_or) {
    uint32_t values[WARP];
    for (uint32_t l = 0; l < WARP; ++l) values[l] = operand<ShuffleOperands>(operands, l).value;
    for (uint32_t l = 0; l < WARP; ++l) {
        auto& o = operand<ShuffleOperands>(operands, l);
        o.result = values[(exclusive_or ? l ^ o.lane : o.lane) % WARP];
    }
}

static uint32_t votes(void* const (&operands)[WARP]) {
    uint32_t bits = 0;
    for (uint32_t l = 0; l < WARP; ++l)
        bits |= uint32_t(operand<VoteOperands>(operands, l).value) << l;
    return bits;
}

static void give_vote(void* const (&operands)[WARP], uint32_t result) {
    for (uint32_t l = 0; l < WARP; ++l) operand<VoteOperands>(operands, l).result = result;
}

// ---- 8 × 8 matrices of 16-bit elements ------------------------------------

using Matrix8 = uint16_t[8][8];

// What lane l holds of a matrix: element (l/4, 2·(l%4) + 0,1).
static uint32_t fragment(const Matrix8& m, uint32_t lane) {
    uint32_t g = lane / 4, t = lane % 4;
    return m[g][2 * t] | uint32_t(m[g][2 * t + 1]) << 16;
}
static uint32_t fragment_trans(const Matrix8& m, uint32_t lane) {
    uint32_t g = lane / 4, t = lane % 4;
    return m[2 * t][g] | uint32_t(m[2 * t + 1][g]) << 16;
}

static void ldmatrix(void* const (&operands)[WARP], bool trans) {
    Matrix8 matrices[4];
    for (uint32_t l = 0; l < WARP; ++l)
        memcpy(matrices[l / 8][l % 8], operand<LdmatrixOperands>(operands, l).row, 16);
    for (uint32_t l = 0; l < WARP; ++l)
        for (uint32_t i = 0; i < 4; ++i)
            operand<LdmatrixOperands>(operands, l).registers[i] =
                trans ? fragment_trans(matrices[i], l) : fragment(matrices[i], l);
}

static void movmatrix(void* const (&operands)[WARP]) {
    Matrix8 matrix;
    for (uint32_t l = 0; l < WARP; ++l)
        memcpy(&matrix[l / 4][2 * (l % 4)], &operand<MovmatrixOperands>(operands, l).value, 4);
    for (uint32_t l = 0; l < WARP; ++l)
        operand<MovmatrixOperands>(operands, l).result = fragment_trans(matrix, l);
}

// ---- mma ------------------------------------------------------------------

// The vector extensions that GCC and clang share, in the width that every
// x86-64 and aarch64 has.
typedef uint32_t Word4 __attribute__((vector_size(16)));
typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));

// The low or the high halves of four registers as floats.
struct F16 {
    static Float4 low(Word4 x) { return decode(x); }
    static Float4 high(Word4 x) { return decode(x >> 16); }
    // float_from_f16, four at a time.
    static Float4 decode(Word4 h) {
        Word4 magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
        magnitude += 0x38000000;
        magnitude += Word4(exponent == 0x0f800000) & 0x38000000;
        Word4 subnormal = Word4(exponent == 0);
        Word4 below = Word4(Float4(magnitude + 0x00800000) - 0x1p-14f);
        return Float4((subnormal & below) | (~subnormal & magnitude) | (h & 0x8000) << 16);
    }
};
// F16 with subnormals taken as 0.
struct FlushedF16 {
    static Float4 low(Word4 x) { return F16::low(flushed(x)); }
    static Float4 high(Word4 x) { return F16::high(flushed(x)); }
    static Word4 flushed(Word4 x) {
        Word4 low = Word4((x & 0x7c00) != 0) & 0x7fff;
        Word4 high = Word4((x & 0x7c000000) != 0) & 0x7fff0000;
        return x & (low | high | 0x80008000);
    }
};
struct Bf16 {
    static Float4 low(Word4 x) { return Float4(x << 16); }
    static Float4 high(Word4 x) { return Float4(x & 0xffff0000); }
};

// Products of 16-bit floats are exact in double; so is nearly every sum of 17
// of them. The result is rounded once, to f32.
template <class Half> static void mma(void* const (&operands)[WARP]) {
    float a[16][16];
    double b[16][8], d[16][8];
    for (uint32_t l = 0; l < WARP; ++l) {
        const auto& o = operand<MmaOperands>(operands, l);
        uint32_t g = l / 4, c = 2 * (l % 4);
        Word4 ra = {o.a[0], o.a[1], o.a[2], o.a[3]}, rb = {o.b[0], o.b[1], 0, 0};
        Float4 a_half[2] = {Half::low(ra), Half::high(ra)},
               b_half[2] = {Half::low(rb), Half::high(rb)};
        for (uint32_t i = 0; i < 2; ++i) {
            a[g][c + i] = a_half[i][0];
            a[g + 8][c + i] = a_half[i][1];
            a[g][c + 8 + i] = a_half[i][2];
            a[g + 8][c + 8 + i] = a_half[i][3];
            b[c + i][g] = b_half[i][0];
            b[c + 8 + i][g] = b_half[i][1];
            d[g][c + i] = o.d[i];
            d[g + 8][c + i] = o.d[2 + i];
        }
    }
    for (uint32_t row = 0; row < 16; ++row) {
        Double2 sum[4];
        memcpy(sum, d[row], sizeof sum);
        for (uint32_t k = 0; k < 16; ++k) {
            Double2 factor = {a[row][k], a[row][k]}, column[4];
            memcpy(column, b[k], sizeof column);
            for (uint32_t j = 0; j < 4; ++j) sum[j] += factor * column[j];
        }
        memcpy(d[row], sum, sizeof sum);
    }
    for (uint32_t l = 0; l < WARP; ++l) {
        float* out = operand<MmaOperands>(operands, l).d;
        uint32_t g = l / 4, c = 2 * (l % 4);
        for (uint32_t i = 0; i < 2; ++i) {
            out[i] = float(d[g][c + i]);
            out[2 + i] = float(d[g + 8][c + i]);
        }
    }
}

void complete(Wait collective, void* const (&operands)[WARP], bool flush_subnormals) {
    switch (collective) {
    case Wait::shuffle_xor: return shuffle(operands, true);
    case Wait::shuffle: return shuffle(operands, false);
    case Wait::ballot: return give_vote(operands, votes(operands));
    case Wait::any: return give_vote(operands, votes(operands) != 0);
    case Wait::ldmatrix_x4: return ldmatrix(operands, false);
    case Wait::ldmatrix_x4_trans: return ldmatrix(operands, true);
    case Wait::movmatrix_trans: return movmatrix(operands);
    case Wait::mma_f16:
        return flush_subnormals ? mma<FlushedF16>(operands) : mma<F16>(operands);
    case Wait::mma_bf16: return mma<Bf16>(operands);
    default: return; // sync_warp: to have met is all
    }
}

} // namespace kvfold::emulator
