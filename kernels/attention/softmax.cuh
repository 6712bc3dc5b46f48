// Online softmax over columns: scores come as m16n8 accumulators with tokens as
// rows, so a column lies in the eight lanes of equal t.
#pragma once

#include "attention/element.cuh"

// Weights are 2^(score − base), and the base lies so far below the largest score that the
// largest weight is between 2^11 and 2^12: weights become f16, which has full precision down
// to 2^−14 only, and beside a strong sink all others are near 2^−20 of the largest. Sums and
// outputs have the same factor, and log-sum-exps are base + log2(sum), so it leaves by itself.
//
// A base is an integer. So sums shrink by powers of two, which is exact and rare, and to which
// base a weight was rounded to 16 bits changes none of its bits.
constexpr float WEIGHTS_LIFT = 12.0f;
DEVICE float base_of(float top) { return rint_rn(top - (WEIGHTS_LIFT - 0.5f)); }
// The base of what has seen nothing: below every score, and finite, so that differences
// of bases are numbers.
constexpr float NO_BASE = -1e30f;

// The state of a warp: what weights are relative to, this lane's share of their sum, and
// O^T, unnormalised, as accumulators: block b has channels 16b + g and 16b + g + 8.
template <int D, int NT> struct State {
    float base[NT][2];
    float sum[NT][2];
    float out[D / 16][NT][4];

    DEVICE void clear() {
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e) base[n][e] = NO_BASE, sum[n][e] = 0.0f;
            UNROLL
            for (int b = 0; b < D / 16; ++b) {
                UNROLL
                for (int e = 0; e < 4; ++e) out[b][n][e] = 0.0f;
            }
        }
    }

    // Multiplies the rows g by `low` and the rows g + 8 by `high`.
    DEVICE void scale_rows(float low, float high) {
        UNROLL
        for (int b = 0; b < D / 16; ++b) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                out[b][n][0] *= low, out[b][n][1] *= low;
                out[b][n][2] *= high, out[b][n][3] *= high;
            }
        }
    }
};

// Turns scores times `scale`, which is positive, into weights. Everything summed so far
// shrinks by `factor`, which is applied to the state; true if it is not 1.
template <int BLOCKS, int D, int NT>
DEVICE bool softmax_step(float (&s)[BLOCKS][NT][4], float scale, State<D, NT>& state, float (&factor)[NT][2]) {
    bool shrinks = false;
    UNROLL
    for (int n = 0; n < NT; ++n) {
        UNROLL
        for (int e = 0; e < 2; ++e) {
            float top = fmaxf(s[0][n][e], s[0][n][e + 2]);
            UNROLL
            for (int b = 1; b < BLOCKS; ++b) top = fmaxf(top, fmaxf(s[b][n][e], s[b][n][e + 2]));
            UNROLL
            for (uint32_t mask = 4; mask < 32; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask));
            float base = fmaxf(base_of(top * scale), state.base[n][e]);
            factor[n][e] = exp2_fast(state.base[n][e] - base);
            shrinks |= factor[n][e] != 1.0f;
            state.base[n][e] = base;
            float sum = state.sum[n][e] * factor[n][e];
            UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                UNROLL
                for (int h = 0; h < 4; h += 2) {
                    s[b][n][e + h] = exp2_fast(fma_fast(s[b][n][e + h], scale, -base));
                    sum += s[b][n][e + h];
                }
            }
            state.sum[n][e] = sum;
        }
    }
    shrinks = warp_any(shrinks);
    if (shrinks) {
        UNROLL
        for (int b = 0; b < D / 16; ++b) {
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) state.out[b][n][e] *= factor[n][e % 2];
            }
        }
    }
    return shrinks;
}

// Weights of 16 tokens as the B operand of O^T = V^T · P^T.
template <class T, int NT>
DEVICE void weights_operand(const float (&p)[NT][4], uint32_t (&b)[NT][2]) {
    UNROLL
    for (int n = 0; n < NT; ++n) {
        b[n][0] = movmatrix_trans(Element<T>::pack(p[n][0], p[n][1]));
        b[n][1] = movmatrix_trans(Element<T>::pack(p[n][2], p[n][3]));
    }
}
