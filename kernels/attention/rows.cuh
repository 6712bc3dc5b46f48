// The queries of a prefill tile. Row c of a KV head is head c % group of query
// c / group (the columns of decode), so a tile of keys serves the whole group:
//
//   S = Q · K^T     O = P · V
//
// A warp has MT blocks of 16 rows. In accumulators a thread holds rows g and
// g + 8 of each and tokens (S) or channels (O) 8n + 2t and 8n + 2t + 1, with
// g = lane / 4, t = lane % 4.
#pragma once

#include "attention/columns.cuh"
#include "attention/softmax.cuh"

// The running softmax of a warp's rows, as State (softmax.cuh): what weights are relative
// to, this lane's share of their sum, and the unnormalised output.
template <int D, int MT> struct RowState {
    float base[MT][2];
    float sum[MT][2];
    float out[MT][D / 8][4];

    DEVICE void clear() {
        UNROLL
        for (int m = 0; m < MT; ++m) {
            UNROLL
            for (int h = 0; h < 2; ++h) base[m][h] = NO_BASE, sum[m][h] = 0.0f;
            UNROLL
            for (int n = 0; n < D / 8; ++n) {
                UNROLL
                for (int e = 0; e < 4; ++e) out[m][n][e] = 0.0f;
            }
        }
    }
};

// Bytes from the start of a tile to chunk (16 bytes) `chunk` of row `row`: eight
// rows of one chunk column lie in different banks.
template <int D> DEVICE uint32_t swizzled(uint32_t row, uint32_t chunk) {
    return row * (2 * D) + (chunk ^ (row % 8)) * 16;
}

// Where rows begin in memory.
struct RowPlace {
    uint32_t query; // row of q and out
    uint32_t head;
};

DEVICE RowPlace row_place(const Columns& columns, uint32_t first_row, uint32_t kv_head, uint32_t row) {
    uint32_t c = columns.column + row;
    return {first_row + c / columns.group, kv_head * columns.group + c % columns.group};
}

// Four words of this lane's share of a fragment: operands in the order of lanes.
DEVICE void load_fragment(uint32_t (&x)[4], const uint8_t* fragments, int index) {
    Vec16 v = reinterpret_cast<const Vec16*>(fragments)[index * 32 + lane_id()];
    UNROLL
    for (int i = 0; i < 4; ++i) x[i] = v.w[i];
}

// Rotates a row that D/16 neighbouring lanes hold: eight f16 channels of each half a lane.
// Warp.
template <int D> DEVICE void rotate_chunks(Vec16& low, Vec16& high) {
    float x[16];
    UNROLL
    for (int w = 0; w < 4; ++w) {
        x[2 * w] = Element<F16>::low(low.w[w]), x[2 * w + 1] = Element<F16>::high(low.w[w]);
        x[2 * w + 8] = Element<F16>::low(high.w[w]), x[2 * w + 9] = Element<F16>::high(high.w[w]);
    }
    butterfly_registers(x);
    butterfly_lanes<D / 16>(x);
    UNROLL
    for (int i = 0; i < 16; ++i) x[i] *= hadamard_norm<D>();
    UNROLL
    for (int w = 0; w < 4; ++w) {
        low.w[w] = Element<F16>::pack(x[2 * w], x[2 * w + 1]);
        high.w[w] = Element<F16>::pack(x[2 * w + 8], x[2 * w + 9]);
    }
}

// Copies rows [first, first + 16·MT) of the tile to this warp's part of shared
// memory as A operands (16 × 16) of type To, j·MT + m for channels 16j on of rows
// 16m on, turned by −Δ if `rotation` names a row of p.rotations, then HADAMARD if pages
// are stored so. Rows not in use are 0.
template <class From, class To, int D, int MT, bool HADAMARD = false>
DEVICE void load_rows(const AttendParams& p, const Columns& columns, uint32_t first_row, uint32_t kv_head,
                      uint32_t first, uint32_t rotation, uint8_t* shared) {
    constexpr uint32_t CHUNKS = D / 16; // of half a row: channel i turns with channel i + D/2
    const FloatPair* turn = reinterpret_cast<const FloatPair*>(p.rotations) + size_t(rotation) * (D / 2);
    UNROLL
    for (uint32_t i = 0; i < 16 * MT * CHUNKS / 32; ++i) {
        uint32_t row = (i * 32 + lane_id()) / CHUNKS, chunk = lane_id() % CHUNKS;
        Vec16 low = {}, high = {};
        if (first + row < columns.count) {
            RowPlace at = row_place(columns, first_row, kv_head, first + row);
            const From* from = reinterpret_cast<const From*>(p.q) + size_t(at.query) * p.q_stride + at.head * D;
            low = load(reinterpret_cast<const Vec16*>(from + 8 * chunk));
            high = load(reinterpret_cast<const Vec16*>(from + 8 * chunk + D / 2));
        }
        if (rotation != KV_NONE || !SameType<From, To>::VALUE) {
            UNROLL
            for (uint32_t w = 0; w < 4; ++w) {
                FloatPair r0 = {1.0f, 0.0f}, r1 = {1.0f, 0.0f};
                if (rotation != KV_NONE) {
                    r0 = load(&turn[8 * chunk + 2 * w]);
                    r1 = load(&turn[8 * chunk + 2 * w + 1]);
                }
                float a0 = Element<From>::low(low.w[w]), a1 = Element<From>::high(low.w[w]);
                float b0 = Element<From>::low(high.w[w]), b1 = Element<From>::high(high.w[w]);
                low.w[w] = Element<To>::pack(a0 * r0.x - b0 * r0.y, a1 * r1.x - b1 * r1.y);
                high.w[w] = Element<To>::pack(b0 * r0.x + a0 * r0.y, b1 * r1.x + a1 * r1.y);
            }
        }
        if constexpr (HADAMARD) rotate_chunks<D>(low, high);
        *reinterpret_cast<Vec16*>(shared + swizzled<D>(row, chunk)) = low;
        *reinterpret_cast<Vec16*>(shared + swizzled<D>(row, chunk + CHUNKS)) = high;
    }
    sync_warp();
    uint32_t a[D / 16 * MT][4];
    UNROLL
    for (int i = 0; i < D / 16 * MT; ++i)
        ldmatrix_x4(a[i], shared + swizzled<D>(i % MT * 16 + lane_id() % 16, i / MT * 2 + lane_id() / 16));
    sync_warp();
    UNROLL
    for (int i = 0; i < D / 16 * MT; ++i)
        reinterpret_cast<Vec16*>(shared)[i * 32 + lane_id()] = {a[i][0], a[i][1], a[i][2], a[i][3]};
    sync_warp();
}

// d += a · b for two neighbouring blocks of n = 8.
template <class E, int MT, int BLOCKS>
DEVICE void multiply(float (&d)[MT][BLOCKS][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[4], int block) {
    const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    UNROLL
    for (int m = 0; m < MT; ++m) {
        Element<E>::mma(d[m][2 * block], a[m], low);
        Element<E>::mma(d[m][2 * block + 1], a[m], high);
    }
}

// s = Q · K^T for queries that load_rows left and the keys in `tile`.
template <class E, class Tile, int D, int MT>
DEVICE void row_scores(const uint8_t* queries, uint32_t tile, float (&s)[MT][8][4]) {
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int n = 0; n < 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
    }
    UNROLL
    for (int j = 0; j < D / 16; ++j) {
        uint32_t a[MT][4];
        UNROLL
        for (int m = 0; m < MT; ++m) load_fragment(a[m], queries, j * MT + m);
        UNROLL
        for (int block = 0; block < 4; ++block) {
            uint32_t b[4];
            Tile::keys(b, tile, block, j);
            multiply<E, MT>(s, a, b, block);
        }
    }
}

// The tokens of a tile that the query of a row sees, a bit each: token_seen and
// form_seen (columns.cuh) for 64 tokens at once.
DEVICE uint64_t tokens_seen(const AttendParams& p, const TileView& tile, const Column& c) {
    auto below = [](int64_t n) { return n >= 64 ? ~0ull : n <= 0 ? 0ull : (1ull << n) - 1; };
    if (c.query < 0 || !form_seen(tile, c)) return 0;
    uint64_t seen = tile.live & below(tile.rows) & below(int64_t(c.query) - tile.first + 1);
    if (p.window != KV_NONE) seen &= ~below(int64_t(c.query) - p.window + 1 - tile.first);
    return seen;
}

// Gives what a row does not see the score −∞; `first` is the warp's first row.
template <int MT>
DEVICE void mask_rows(const AttendParams& p, const TileView& tile, const Columns& columns, uint32_t first,
                      float (&s)[MT][8][4]) {
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            uint32_t row = first + 16 * m + 8 * h + lane_id() / 4;
            Column c = {-1, 0};
            if (row < columns.count) c = columns.at(p, columns.column + row);
            uint64_t seen = tokens_seen(p, tile, c) >> 2 * (lane_id() % 4);
            UNROLL
            for (int n = 0; n < 8; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    if (!(seen >> (8 * n + e) & 1)) s[m][n][2 * h + e] = -INFINITY;
                }
            }
        }
    }
}

// Turns scores q·k into weights; what was summed so far shrinks accordingly. `scale` is
// positive. Rows that see nothing of the tile keep their state bit for bit. SEALS, whether
// the kernel reads sealed pages too, only decides how a shrinking is noticed: either way
// costs the other kernels two spilled registers.
template <int D, int MT, bool SEALS>
DEVICE void softmax_rows(float (&s)[MT][8][4], RowState<D, MT>& state, float scale) {
    float factor[MT][2];
    bool shrinks = false;
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float top = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
            UNROLL
            for (int n = 1; n < 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            float base = fmaxf(base_of(top * scale), state.base[m][h]);
            factor[m][h] = exp2_fast(state.base[m][h] - base);
            shrinks |= SEALS ? base != state.base[m][h] : factor[m][h] != 1.0f;
            state.base[m][h] = base;
            float sum = 0.0f;
            UNROLL
            for (int n = 0; n < 8; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float& x = s[m][n][2 * h + e];
                    x = exp2_fast(fma_fast(x, scale, -base));
                    sum += x;
                }
            }
            state.sum[m][h] = fma_fast(state.sum[m][h], factor[m][h], sum);
        }
    }
    if (!warp_any(shrinks)) return;
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int n = 0; n < D / 8; ++n) {
            UNROLL
            for (int e = 0; e < 4; ++e) state.out[m][n][e] *= factor[m][e / 2];
        }
    }
}

// Rotates a warp's outputs back. Warp.
template <int D, int MT> DEVICE void rotate_outputs(RowState<D, MT>& state) {
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float x[D / 4];
            UNROLL
            for (int i = 0; i < D / 4; ++i) x[i] = state.out[m][i / 2][2 * h + i % 2];
            butterfly_registers(x);
            butterfly_lanes<4>(x);
            UNROLL
            for (int i = 0; i < D / 4; ++i) state.out[m][i / 2][2 * h + i % 2] = x[i] * hadamard_norm<D>();
        }
    }
}

// Writes the warp's rows to out and lse, by way of its part of shared memory.
template <class T, int D, int MT>
DEVICE void write_rows(const AttendParams& p, const Columns& columns, uint32_t first_row, uint32_t kv_head,
                       uint32_t first, const RowState<D, MT>& state, uint8_t* shared) {
    uint32_t g = lane_id() / 4, t = lane_id() % 4;
    sync_warp(); // the queries are done with
    UNROLL
    for (int m = 0; m < MT; ++m) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            uint32_t row = 16 * m + 8 * h + g;
            float sum = state.sum[m][h];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
            UNROLL
            for (int n = 0; n < D / 8; ++n) {
                uint32_t x = Element<T>::pack(state.out[m][n][2 * h] * norm, state.out[m][n][2 * h + 1] * norm);
                *reinterpret_cast<uint32_t*>(shared + swizzled<D>(row, n) + 4 * t) = x;
            }
            if (p.lse && t == 0 && first + row < columns.count) {
                RowPlace at = row_place(columns, first_row, kv_head, first + row);
                float lse = sum > 0.0f ? state.base[m][h] + log2_fast(sum) : -INFINITY;
                store(reinterpret_cast<float*>(p.lse) + size_t(at.query) * p.heads + at.head, lse);
            }
        }
    }
    sync_warp();
    constexpr uint32_t CHUNKS = D / 8;
    for (uint32_t i = lane_id(); i < 16 * MT * CHUNKS; i += 32) {
        uint32_t row = i / CHUNKS, chunk = i % CHUNKS;
        if (first + row >= columns.count) break;
        RowPlace at = row_place(columns, first_row, kv_head, first + row);
        T* to = reinterpret_cast<T*>(p.out) + (size_t(at.query) * p.heads + at.head) * D + 8 * chunk;
        store(reinterpret_cast<Vec16*>(to), *reinterpret_cast<const Vec16*>(shared + swizzled<D>(row, chunk)));
    }
}
