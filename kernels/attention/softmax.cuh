// Online softmax over columns: scores come as m16n8 accumulators with tokens as
// rows, so a column lies in the eight lanes of equal t.
#pragma once

#include "attention/element.cuh"

// The state of a warp: running maximum, this lane's share of the sum, and O^T,
// unnormalised, as accumulators: block b has channels 16b + g and 16b + g + 8.
template <int D, int NT> struct State {
    float max[NT][2];
    float sum[NT][2];
    float out[D / 16][NT][4];

    DEVICE void clear() {
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e) max[n][e] = -INFINITY, sum[n][e] = 0.0f;
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

// Turns scores into weights relative to the running maximum. Everything summed
// so far shrinks by `factor`, which is applied to the state; true if it is not 1.
template <int BLOCKS, int D, int NT>
DEVICE bool softmax_step(float (&s)[BLOCKS][NT][4], State<D, NT>& state, float (&factor)[NT][2]) {
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
            top = fmaxf(top, state.max[n][e]);
            // Nothing seen yet: any finite base gives weights of 0.
            float base = top == -INFINITY ? 0.0f : top;
            factor[n][e] = exp2_fast(state.max[n][e] - base);
            shrinks |= top != state.max[n][e];
            state.max[n][e] = top;
            float sum = 0.0f;
            UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                UNROLL
                for (int h = 0; h < 4; h += 2) {
                    s[b][n][e + h] = exp2_fast(s[b][n][e + h] - base);
                    sum += s[b][n][e + h];
                }
            }
            state.sum[n][e] = fma_fast(state.sum[n][e], factor[n][e], sum);
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
