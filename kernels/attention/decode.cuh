// Decode attention: up to 8·NT (query, head) columns of one KV head over some
// pages of its stream, all runs in one softmax. For q_len up to 16; every K and
// V byte is read once by the block.
//
// Four warps share an item: sealed pages go to warps by page % 4, each 16-bit
// page is shared by all, 16 tokens a warp. Each warp streams its own tiles
// through its own part of shared memory, with no barrier until the end, where the
// four states merge in warp order.
//
// Bytes in flight a block: 4 · (STAGES − 1) tiles. Floor: bytes of K and V.
#pragma once

#include "attention/tile_fp8.cuh"
#include "attention/tile_half.cuh"
#include "attention/tile_kivi.cuh"
#include "attention/walk.cuh"

// How sealed pages of a kernel are stored.
template <class K, class V> struct Sealed {
    using Keys = K;
    using Values = V;
    static constexpr uint32_t BYTES = K::BYTES + V::BYTES;
};
// All pages have 16 bits.
struct NeverSealed {};

template <class T, int D, int NT, class Pages, uint32_t WARP_BYTES> struct Decode {
    static constexpr uint32_t COLUMNS = 8 * NT;
    static constexpr uint32_t ROW = D + 4; // floats of a merged column

    using Half = HalfTile<T, D>;
    using WarpState = State<D, NT>;

    static_assert(WARP_BYTES >= (COLUMNS * ROW + 2 * COLUMNS) * 4, "the merge fits");

    const AttendParams& p;
    AttendItem item;
    AttendSeq seq;
    KvStream stream;
    Columns columns;
    uint8_t* shared; // this warp's

    template <class S> static DEVICE S load_struct(uint64_t base, uint32_t index) {
        static_assert(sizeof(S) % 8 == 0, "read in words of 8 bytes");
        S s;
        const uint64_t* from = reinterpret_cast<const uint64_t*>(base + uint64_t(index) * sizeof(S));
        uint64_t* to = reinterpret_cast<uint64_t*>(&s);
        UNROLL
        for (uint32_t i = 0; i < sizeof(S) / 8; ++i) to[i] = load(from + i);
        return s;
    }

    static DEVICE void run(const AttendParams& p) {
        uint32_t n = load(&reinterpret_cast<const AttendPlan*>(p.plan)->n_items);
        for (uint32_t i = blockIdx.x; i < n; i += gridDim.x) {
            Decode decode{p, load_struct<AttendItem>(p.items, i)};
            decode.one();
            sync_block(); // shared memory is free again
        }
    }

    DEVICE void one() {
        seq = load_struct<AttendSeq>(p.seqs, item.seq);
        stream = load_struct<KvStream>(p.streams, item.stream);
        columns = columns_of(p, stream, seq.q_len, item.column, COLUMNS);
        shared = shared_memory() + warp_id() * WARP_BYTES;
        WarpState state;
        state.clear();
        uint32_t head_stream = p.layer * p.kv_heads + item.kv_head;
        for (uint32_t r = 0; r < stream.n_runs; ++r) {
            KvRun run = load_struct<KvRun>(p.runs, stream.first_run + r);
            KvArena arena = load_struct<KvArena>(p.arenas, run.arena);
            bool sealed = !SameType<Pages, NeverSealed>::VALUE && run.kind == RUN_SEALED;
            Walk walk = walk_of(p, stream, run, arena, head_stream, item, columns, sealed ? 64 : 16);
            if (walk.count == 0) continue;
            if constexpr (!SameType<Pages, NeverSealed>::VALUE) {
                if (sealed) {
                    sealed_run<Pages>(walk, run.rotation, state);
                    continue;
                }
            }
            half_run(walk, run.rotation, state);
        }
        finish(state);
    }

    // 16-bit pages.
    DEVICE void half_run(const Walk& walk, uint32_t rotation, WarpState& state) {
        Queries<D, NT> q;
        load_queries<T, T, D, NT>(p, columns, seq.first_row, item.kv_head, rotation, q);
        constexpr int STAGES = WARP_BYTES / Half::BYTES > 6 ? 6 : WARP_BYTES / Half::BYTES;
        pipeline<STAGES, Half::BYTES>(
            walk, shared,
            [&](uint8_t* stage, uint32_t block, uint32_t k) {
                const uint8_t* keys =
                    walk.base + block * walk.block_bytes + walk.part(k) * (Half::TOKENS * Half::ROW);
                TileView view = walk.view(k, Half::TOKENS);
                // Rows behind the last query may not have been written yet.
                int32_t seen = columns.last.query + 1 - view.first;
                uint32_t valid = seen <= 0 ? 0 : min_of(view.rows, uint32_t(seen));
                Half::issue(stage, keys, keys + walk.key_bytes, valid);
            },
            [&](const uint8_t* stage, uint32_t k) {
                float s[1][NT][4], factor[NT][2];
                Half::template scores<NT>(stage, q.b, p.scale, s);
                TileView view = walk.view(k, Half::TOKENS);
                if (!all_seen(p, view, columns, Half::TOKENS)) mask_scores(p, view, columns, s);
                softmax_step(s, state, factor);
                Half::template accumulate<NT>(stage, s, state);
            });
    }

    // Sealed pages.
    template <class Form>
    DEVICE void sealed_run(const Walk& walk, uint32_t rotation, WarpState& state) {
        using Keys = typename Form::Keys;
        using Values = typename Form::Values;
        Queries<D, NT> q;
        load_queries<T, F16, D, NT, Keys::ORDER>(p, columns, seq.first_row, item.kv_head, rotation, q);
        typename Values::template Extra<NT> extra;
        Values::template enter<NT>(state, extra);
        constexpr int STAGES = WARP_BYTES / Form::BYTES > 6 ? 6 : WARP_BYTES / Form::BYTES;
        pipeline<STAGES, Form::BYTES>(
            walk, shared,
            [&](uint8_t* stage, uint32_t block, uint32_t) {
                const uint8_t* page = walk.base + block * walk.block_bytes;
                Keys::issue(stage, page);
                Values::issue(stage + Keys::BYTES, page + Keys::BYTES);
            },
            [&](const uint8_t* stage, uint32_t k) {
                float s[4][NT][4], factor[NT][2];
                Keys::template scores<NT>(stage, q.b, p.scale, s);
                TileView view = walk.view(k, 64);
                if (!all_seen(p, view, columns, 64)) mask_scores(p, view, columns, s);
                if (softmax_step(s, state, factor)) Values::template rescale<NT>(extra, factor);
                Values::template accumulate<NT>(stage + Keys::BYTES, s, state, extra);
            });
        Values::template leave<NT>(state, extra);
    }

    // Merges the four warps and writes rows or parts.
    DEVICE void finish(WarpState& state) {
        float* mine = reinterpret_cast<float*>(shared); // [COLUMNS][ROW], max, sum
        uint32_t g = lane_id() / 4, t = lane_id() % 4;
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                uint32_t column = 8 * n + 2 * t + e;
                float sum = state.sum[n][e];
                UNROLL
                for (uint32_t mask = 4; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
                if (g == 0) {
                    mine[COLUMNS * ROW + column] = state.max[n][e];
                    mine[COLUMNS * ROW + COLUMNS + column] = sum;
                }
                UNROLL
                for (int b = 0; b < D / 16; ++b) {
                    mine[column * ROW + 16 * b + g] = state.out[b][n][e];
                    mine[column * ROW + 16 * b + g + 8] = state.out[b][n][e + 2];
                }
            }
        }
        sync_block();
        constexpr uint32_t SHARE = 128 / COLUMNS; // threads a column
        uint32_t column = threadIdx.x / SHARE;
        if (column >= columns.count) return;
        const float* all = reinterpret_cast<const float*>(shared_memory());
        constexpr uint32_t STRIDE = WARP_BYTES / 4;
        float max = -INFINITY, sum = 0.0f, weight[4];
        UNROLL
        for (int w = 0; w < 4; ++w) max = max_of(max, all[w * STRIDE + COLUMNS * ROW + column]);
        float base = max == -INFINITY ? 0.0f : max;
        UNROLL
        for (int w = 0; w < 4; ++w) {
            weight[w] = exp2_fast(all[w * STRIDE + COLUMNS * ROW + column] - base);
            sum = fma_fast(weight[w], all[w * STRIDE + COLUMNS * ROW + COLUMNS + column], sum);
        }
        float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
        float lse = sum > 0.0f ? max + log2_fast(sum) : -INFINITY;

        uint32_t c = item.column + column;
        uint32_t row = seq.first_row + c / columns.group;
        uint32_t head = item.kv_head * columns.group + c % columns.group;
        size_t at = size_t(row) * p.heads + head, part = item.part + size_t(c) * item.n_splits;
        bool whole = item.n_splits == 1;
        for (uint32_t i = 2 * (threadIdx.x % SHARE); i < uint32_t(D); i += 2 * SHARE) {
            float x = 0.0f, y = 0.0f;
            UNROLL
            for (int w = 0; w < 4; ++w) {
                x = fma_fast(weight[w], all[w * STRIDE + column * ROW + i], x);
                y = fma_fast(weight[w], all[w * STRIDE + column * ROW + i + 1], y);
            }
            x *= norm, y *= norm;
            if (whole) {
                store(reinterpret_cast<uint32_t*>(reinterpret_cast<T*>(p.out) + at * D + i), Element<T>::pack(x, y));
            } else {
                FloatPair* to = reinterpret_cast<FloatPair*>(reinterpret_cast<float*>(p.part_out) + part * D + i);
                store(to, FloatPair{x, y});
            }
        }
        if (threadIdx.x % SHARE == 0) {
            if (!whole) store(reinterpret_cast<float*>(p.part_lse) + part, lse);
            else if (p.lse) store(reinterpret_cast<float*>(p.lse) + at, lse);
        }
    }
};
