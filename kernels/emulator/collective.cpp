#include "emulator/collective.h"

#include "emulator/half.h"

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
    for (uint32_t l = 0; l < WARP; ++l) bits |= uint32_t(operand<VoteOperands>(operands, l).value) << l;
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

// A row of B or D, in the vector extension that GCC and clang share.
typedef double Row8 __attribute__((vector_size(64)));

// Products of 16-bit floats are exact in double; so is nearly every sum of 17
// of them. The result is rounded once, to f32.
template <float (*to_float)(uint16_t)> static void mma(void* const (&operands)[WARP]) {
    double a[16][16];
    Row8 b[16], d[16];
    for (uint32_t l = 0; l < WARP; ++l) {
        const auto& o = operand<MmaOperands>(operands, l);
        uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 2; ++i) { // the low and the high half of a register
            auto half = [i](uint32_t x) { return double(to_float(uint16_t(x >> 16 * i))); };
            uint32_t c = 2 * t + i;
            a[g][c] = half(o.a[0]);
            a[g + 8][c] = half(o.a[1]);
            a[g][c + 8] = half(o.a[2]);
            a[g + 8][c + 8] = half(o.a[3]);
            b[c][g] = half(o.b[0]);
            b[c + 8][g] = half(o.b[1]);
            d[g][c] = o.d[i];
            d[g + 8][c] = o.d[2 + i];
        }
    }
    for (uint32_t row = 0; row < 16; ++row) {
        Row8 sum = d[row];
        for (uint32_t k = 0; k < 16; ++k) sum += a[row][k] * b[k];
        d[row] = sum;
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

void complete(Wait collective, void* const (&operands)[WARP]) {
    switch (collective) {
    case Wait::shuffle_xor: return shuffle(operands, true);
    case Wait::shuffle: return shuffle(operands, false);
    case Wait::ballot: return give_vote(operands, votes(operands));
    case Wait::any: return give_vote(operands, votes(operands) != 0);
    case Wait::ldmatrix_x4: return ldmatrix(operands, false);
    case Wait::ldmatrix_x4_trans: return ldmatrix(operands, true);
    case Wait::movmatrix_trans: return movmatrix(operands);
    case Wait::mma_f16: return mma<float_from_f16>(operands);
    case Wait::mma_bf16: return mma<float_from_bf16>(operands);
    default: return; // sync_warp: to have met is all
    }
}

} // namespace kvfold::emulator
