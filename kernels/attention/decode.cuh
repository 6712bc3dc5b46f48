// Decode attention: up to 8·NT (query, head) columns of one KV head over some
// pages of its stream, all runs in one softmax. For generated rows; every K and
// V byte is read once by the block.
//
// The warps of a block share an item tile by tile: a tile is a KIVI page, 32
// tokens of an fp8 page or 16 tokens of a 16-bit page. Each warp streams its own
// tiles through its own part of shared memory, with no barrier until the end,
// where the warps' states merge in order.
//
// Of pages that are stored rotated (tile_rotated.cuh) the sum of weighted values is
// rotated too. So an item is read in two passes, each in a state of its own: 16-bit
// pages, whose merged state is set aside, then sealed ones, whose merged state is rotated
// back. What a column does not see changes no bit of either.
//
// Bytes in flight a block: WARPS · (STAGES − 1) tiles. Floor: bytes of K and V.
#pragma once

#include "attention/decode_room.cuh"
#include "attention/hadamard.cuh"

template <class T, int D, int NT, class Pages> struct Decode {
    static constexpr bool SEALS = !SameType<Pages, NeverSealed>::VALUE;
    static constexpr int WARPS = decode_warps(D);
    static constexpr uint32_t COLUMNS = 8 * NT;
    static constexpr uint32_t ROW = D + 4; // floats of a merged column
    static constexpr bool ROTATED = Pages::ROTATED;
    static constexpr uint32_t PASSES = ROTATED ? 2 : 1;
    static constexpr uint32_t SHARE = 32 * WARPS / COLUMNS; // threads that merge a column

    using Half = HalfTile<T, D>;
    using WarpState = State<D, NT>;

    // Shared memory of a warp: mirrored in src/backend/cuda/attend/launch.rs.
    static constexpr uint32_t WARP_BYTES = decode_warp_bytes(Half::BYTES, Pages::BYTES);
    static constexpr int HALF_STAGES = WARP_BYTES / Half::BYTES;

    static_assert(WARP_BYTES >= (COLUMNS * ROW + 2 * COLUMNS) * 4, "the merge fits");

    const AttendParams& p;
    Context& context;
    uint8_t* shared; // this warp's

    static DEVICE void run(const AttendParams& p) {
        Context& context = *reinterpret_cast<Context*>(shared_memory());
        uint8_t* shared = shared_memory() + sizeof(Context) + warp_id() * WARP_BYTES;
        if (warp_id() == 0) {
            // Whether the first item is one is known as late as what it says.
            context.ahead(p, blockIdx.x, p.max_items);
            if (lane_id() == 0) {
                context.index = blockIdx.x;
                context.n_items = load(&reinterpret_cast<const AttendPlan*>(p.plan)->n_items);
            }
        }
        if (lane_id() == 0) context.warps[warp_id()].tries = 0;
        bool done = true;
        while (true) {
            cp_async_commit();
            cp_async_wait<0>();
            sync_block(); // the next item is there, and everything else in shared memory free
            if (done) {
                if (context.index >= context.n_items) return;
                if (threadIdx.x == 0) context.item = context.next;
                sync_block();
                if (warp_id() == 0) {
                    uint32_t next = context.index + gridDim.x;
                    sync_warp();
                    context.ahead(p, next, context.n_items);
                    if (lane_id() == 0) context.index = next;
                }
            }
            done = Decode{p, context, shared}.one();
        }
    }

    // The runs that have pages of the item; of rotated formats those of 16 bits, then all
    // again, and the sealed ones. False if it must be done again.
    DEVICE bool one() {
        WarpState state;
        if (ROTATED) state.clear();
        else begin(state);
        if (ROTATED && lane_id() == 0) context.warps[warp_id()].halves = 0;
        const uint32_t& at = context.warps[warp_id()].run;
        for (go_to(0); at < PASSES * context.item.n_runs; go_to(at + 1)) {
            bool second = ROTATED && at >= context.item.n_runs;
            if (ROTATED && at == context.item.n_runs) {
                set_aside(state);
                begin(state);
            }
            uint32_t first = context.item.first_run - (second ? context.item.n_runs : 0);
            const Described& run = describe(first + at);
            uint32_t kind = run.run.kind, rotation = run.run.rotation;
            if (ROTATED && (kind == RUN_SEALED) != second) continue;
            if constexpr (SEALS) {
                if (kind == RUN_SEALED) {
                    const auto& walk = tiles<Pages::TOKENS>(run);
                    if (walk.count > 0) sealed_run<Pages>(walk, rotation, state);
                    continue;
                }
            }
            const auto& walk = tiles<Half::TOKENS>(run);
            if (walk.count == 0) continue;
            if (ROTATED && lane_id() == 0) context.warps[warp_id()].halves = 1;
            half_run(walk, rotation, state);
        }
        if (again(state)) return false;
        finish();
        return true;
    }

    DEVICE void go_to(uint32_t run) {
        sync_warp();
        if (lane_id() == 0) context.warps[warp_id()].run = run;
        sync_warp();
    }

    // What is read of a run.
    struct Described {
        KvRun run;
        KvArena arena;
    };

    // Describes a run where its walk will be, each word by a lane. The arena is read at once,
    // as if it were that of the item's first run, which mostly is the only one.
    DEVICE const Described& describe(uint32_t run) {
        constexpr uint32_t RUN = sizeof(KvRun) / 8, ALL = sizeof(Described) / 8; // words
        static_assert(sizeof(Described) <= sizeof(WarpContext::walk), "a description fits");
        uint64_t* words = reinterpret_cast<uint64_t*>(context.warps[warp_id()].walk);
        const Described& described = *reinterpret_cast<const Described*>(words);
        uint32_t lane = lane_id_anew(), arena = context.item.first_arena;
        auto arena_word = [&](uint32_t arena) {
            return reinterpret_cast<const uint64_t*>(p.arenas + uint64_t(arena) * sizeof(KvArena)) + lane - RUN;
        };
        const uint64_t* run_word = reinterpret_cast<const uint64_t*>(p.runs + uint64_t(run) * sizeof(KvRun)) + lane;
        sync_warp(); // the last walk is done with
        if (lane < ALL) words[lane] = load(lane < RUN ? run_word : arena_word(arena));
        sync_warp();
        if (described.run.arena != arena) {
            if (lane >= RUN && lane < ALL) words[lane] = load(arena_word(described.run.arena));
            sync_warp();
        }
        return described;
    }

    // This warp's tiles of a run, in shared memory.
    template <uint32_t ROWS> DEVICE const Walk<ROWS>& tiles(const Described& described) {
        static_assert(sizeof(Walk<ROWS>) <= sizeof(WarpContext::walk), "a walk fits");
        Walk<ROWS>& walk = *reinterpret_cast<Walk<ROWS>*>(context.warps[warp_id()].walk);
        sync_warp(); // all lanes know what they want of the description
        if (lane_id() == 0) {
            KvRun run = described.run;
            KvArena arena = described.arena;
            uint32_t stream = p.layer * p.kv_heads + context.item.kv_head;
            KvStream its = {0, 0, context.item.first_entry, context.item.first_mask, 0, 0};
            walk = walk_of<ROWS>(p, its, run, arena, stream, context.item, context.columns, WARPS);
        }
        sync_warp();
        return walk;
    }

    // 16-bit pages.
    DEVICE void half_run(const Walk<16>& walk, uint32_t rotation, WarpState& state) {
        uint32_t lane = lane_id_anew(); // what tiles make of it is of no use to sealed runs
        Queries<D, NT> q;
        load_queries<T, T, D, NT>(p, context.columns, context.item.first_row, context.item.kv_head,
                                  rotation, q);
        pipeline<HALF_STAGES, Half::BYTES>(
            walk, shared,
            [&](uint8_t* stage, uint32_t block, uint32_t k) {
                const uint8_t* keys =
                    walk.base + block * walk.block_bytes + walk.part(k) * (Half::TOKENS * Half::ROW);
                TileView view = walk.view(k);
                // Rows behind the last token in sight may not have been written yet.
                int32_t seen = context.columns.last.query + 1 - view.first;
                uint32_t valid = seen <= 0 ? 0 : min_of(view.rows, uint32_t(seen));
                Half::issue(stage, keys, keys + walk.key_bytes, valid);
            },
            [&](const uint8_t* stage, uint32_t k) {
                float s[1][NT][4], factor[NT][2];
                Half::template scores<NT>(stage, lane, q.b, s);
                TileView view = walk.view(k);
                if (!all_seen(p, view, context.columns, Half::TOKENS)) mask_scores(p, view, context.columns, s);
                softmax_step(s, p.scale, state, factor);
                Half::template accumulate<NT>(stage, lane, s, state);
            });
    }

    // Sealed pages.
    template <class Form>
    DEVICE void sealed_run(const Walk<Form::TOKENS>& walk, uint32_t rotation, WarpState& state) {
        using Keys = typename Form::Keys;
        using Values = typename Form::Values;
        Queries<D, NT> q;
        load_queries<T, F16, D, NT, Keys::ORDER>(p, context.columns, context.item.first_row,
                                                 context.item.kv_head, rotation, q);
        if constexpr (ROTATED) rotate_queries<D, NT>(q);
        typename Values::template Extra<NT> extra;
        Values::template enter<NT>(state, extra);
        constexpr uint32_t TOKENS = Form::TOKENS;
        pipeline<WARP_BYTES / Form::BYTES, Form::BYTES>(
            walk, shared,
            [&](uint8_t* stage, uint32_t block, uint32_t k) {
                Form::issue(stage, walk.base + block * walk.block_bytes, walk, k);
            },
            [&](const uint8_t* stage, uint32_t k) {
                float s[TOKENS / 16][NT][4], factor[NT][2];
                Keys::template scores<NT>(stage, q.b, s);
                TileView view = walk.view(k);
                if (!all_seen(p, view, context.columns, TOKENS)) mask_scores(p, view, context.columns, s);
                if (softmax_step(s, p.scale * Keys::UNIT, state, factor)) Values::template rescale<NT>(extra, factor);
                Values::template accumulate<NT>(stage + Keys::BYTES, s, state, extra);
            });
        Values::template leave<NT>(state, extra);
    }

    // This warp's state in its part of shared memory, for the others to see.
    DEVICE void put(const WarpState& state) {
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
                    mine[COLUMNS * ROW + column] = state.base[n][e];
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
    }

    // A column of the states that the warps have put.
    struct Merged {
        const float* all; // of warp 0; the next warp's lies STRIDE further
        float base, sum;
        float weight[WARPS];

        static constexpr uint32_t STRIDE = WARP_BYTES / 4;

        // A further state with `other` for its base adds its own sum.
        DEVICE Merged(uint32_t column, float other) {
            all = states();
            base = max_of(other, highest(column)), sum = 0.0f;
            UNROLL
            for (int w = 0; w < WARPS; ++w) {
                weight[w] = of(all[w * STRIDE + COLUMNS * ROW + column]);
                sum = fma_fast(weight[w], all[w * STRIDE + COLUMNS * ROW + COLUMNS + column], sum);
            }
            all += column * ROW;
        }
        static DEVICE const float* states() {
            return reinterpret_cast<const float*>(shared_memory() + sizeof(Context));
        }
        // The highest of the warps' bases.
        static DEVICE float highest(uint32_t column) {
            float base = NO_BASE;
            UNROLL
            for (int w = 0; w < WARPS; ++w) base = max_of(base, states()[w * STRIDE + COLUMNS * ROW + column]);
            return base;
        }
        // What a state with this base counts.
        DEVICE float of(float its) const { return exp2_fast(its - base); }
        DEVICE FloatPair channels(uint32_t i) const {
            float x = 0.0f, y = 0.0f;
            UNROLL
            for (int w = 0; w < WARPS; ++w) {
                x = fma_fast(weight[w], all[w * STRIDE + i], x);
                y = fma_fast(weight[w], all[w * STRIDE + i + 1], y);
            }
            return {x, y};
        }
    };

    // A state that was set aside: [COLUMNS][D], base, sum.
    static DEVICE float* aside() {
        return reinterpret_cast<float*>(shared_memory() + sizeof(Context) + WARPS * WARP_BYTES);
    }

    // Whether 16-bit pages of the item were read, and so a state was set aside.
    DEVICE bool any_halves() const {
        bool any = false;
        UNROLL
        for (int w = 0; w < WARPS; ++w) any |= context.warps[w].halves != 0;
        return any;
    }

    // Merges the warps' states of 16-bit pages, if any were read.
    DEVICE void set_aside(const WarpState& state) {
        sync_block(); // all warps have read theirs
        if (!any_halves()) return;
        put(state);
        uint32_t column = threadIdx.x / SHARE;
        const Merged merged(column, NO_BASE);
        if (threadIdx.x % SHARE == 0) {
            aside()[COLUMNS * D + column] = merged.base;
            aside()[COLUMNS * D + COLUMNS + column] = merged.sum;
        }
        for (uint32_t i = 2 * (threadIdx.x % SHARE); i < uint32_t(D); i += 2 * SHARE)
            *reinterpret_cast<FloatPair*>(aside() + column * D + i) = merged.channels(i);
        sync_block(); // the warps' parts are free again
    }

    // ---- columns that are done again -----------------------------------------
    // A weight times a scale of values may be too large for f16: then all channels of the
    // scale are no numbers. The column is done again with the base that it has found, since
    // not every warp had met its largest scores; and if that does not do, with one relative
    // to which no weight exceeds 1. The block does the whole item again, but other columns
    // begin as they did: what they get does not depend on those beside (ARCHITECTURE, rule 7).

    static constexpr uint32_t MOST_TRIES = 2; // then what is infinite stays so

    DEVICE void begin(WarpState& state) const {
        state.clear();
        if (!Pages::FOLDS || context.warps[warp_id()].tries == 0) return;
        uint32_t t = lane_id_anew() % 4;
        UNROLL
        for (int n = 0; n < NT; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e) state.base[n][e] = context.warps[2 * n + t / 2].bases[t % 2 * 2 + e];
        }
    }

    // Puts the states of the warps; true if the item must be done again.
    DEVICE bool again(const WarpState& state) {
        WarpContext& warp = context.warps[warp_id()];
        if constexpr (Pages::FOLDS) {
            float x = 0.0f;
            UNROLL
            for (int n = 0; n < NT; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    UNROLL
                    for (int b = 0; b < D / 16; b += 2) x = fma_fast(state.out[b][n][e], 0.0f, x);
                }
            }
            bool marked = warp_any(x != 0.0f);
            if (lane_id() == 0) warp.marked = marked;
        }
        put(state);
        if constexpr (Pages::FOLDS) {
            uint32_t marked = 0;
            UNROLL
            for (int w = 0; w < WARPS; ++w) marked |= context.warps[w].marked;
            if (marked && begin_again(warp)) return true;
            if (lane_id() == 0) warp.tries = 0;
        }
        return false;
    }

    // Every warp finds the same, a column a lane, and the first sets the bases.
    DEVICE bool begin_again(WarpContext& warp) {
        uint32_t c = lane_id_anew(), tries = warp.tries;
        float x = 0.0f;
        NO_UNROLL
        for (uint32_t i = 0; c < context.columns.count && i < WARPS * D; i += 32)
            x = fma_fast(Merged::states()[i / D * Merged::STRIDE + c * ROW + i % D], 0.0f, x);
        bool again = x != 0.0f;
        if (!warp_any(again) || tries == MOST_TRIES) return false; // all lanes have read `tries`
        if (c < COLUMNS && warp_id() == 0) {
            float& base = context.warps[c / 4].bases[c % 4];
            if (again) base = Merged::highest(c) + (tries > 0 ? WEIGHTS_LIFT : 0.0f);
            else if (tries == 0) base = NO_BASE;
        }
        if (c == 0) warp.tries = tries + 1;
        return true;
    }

    // Merges the warps and writes rows or parts.
    DEVICE void finish() {
        uint32_t column = threadIdx.x / SHARE;
        if constexpr (ROTATED) {
            finish_rotated(column);
        } else {
            if (column >= context.columns.count) return;
            Merged merged(column, NO_BASE);
            write(column, merged.base, merged.sum, [&](uint32_t, uint32_t i) { return merged.channels(i); });
        }
    }

    // As finish: rotates the merged state back and adds what was set aside.
    DEVICE void finish_rotated(uint32_t column) {
        bool plain = any_halves();
        float base = plain ? aside()[COLUMNS * D + column] : NO_BASE;
        Merged merged(column, base);
        float x[D / SHARE]; // channels 2·SHARE·k + 2·thread + e at 2k + e
        UNROLL
        for (uint32_t k = 0; k < D / (2 * SHARE); ++k) {
            FloatPair pair = merged.channels(2 * SHARE * k + 2 * (threadIdx.x % SHARE));
            x[2 * k] = pair.x, x[2 * k + 1] = pair.y;
        }
        butterfly_registers(x);
        butterfly_lanes<SHARE>(x);
        if (column >= context.columns.count) return;
        float weight = merged.of(base), sum = merged.sum;
        if (plain) sum = fma_fast(weight, aside()[COLUMNS * D + COLUMNS + column], sum);
        write(column, merged.base, sum, [&](uint32_t k, uint32_t i) {
            FloatPair pair = {x[2 * k] * hadamard_norm<D>(), x[2 * k + 1] * hadamard_norm<D>()};
            if (plain) {
                const float* other = aside() + column * D + i;
                pair = {fma_fast(weight, other[0], pair.x), fma_fast(weight, other[1], pair.y)};
            }
            return pair;
        });
    }

    // Writes this thread's share of a column, of which `channels` gives the k-th pair, at i.
    template <class Channels> DEVICE void write(uint32_t column, float base, float sum, Channels channels) {
        const Columns& columns = context.columns;
        const AttendItem& item = context.item;
        float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
        float lse = sum > 0.0f ? base + log2_fast(sum) : -INFINITY;

        uint32_t c = item.column + column;
        uint32_t row = context.item.first_row + c / columns.group;
        uint32_t head = item.kv_head * columns.group + c % columns.group;
        size_t at = size_t(row) * p.heads + head, part = item.part + size_t(c) * item.n_splits;
        bool whole = item.n_splits == 1;
        UNROLL
        for (uint32_t k = 0; k < D / (2 * SHARE); ++k) {
            uint32_t i = 2 * (threadIdx.x % SHARE) + 2 * SHARE * k;
            FloatPair pair = channels(k, i);
            pair.x *= norm, pair.y *= norm;
            if (whole) {
                store(reinterpret_cast<uint32_t*>(reinterpret_cast<T*>(p.out) + at * D + i),
                      Element<T>::pack(pair.x, pair.y));
            } else {
                store(reinterpret_cast<FloatPair*>(reinterpret_cast<float*>(p.part_out) + part * D + i), pair);
            }
        }
        if (threadIdx.x % SHARE == 0) {
            if (!whole) store(reinterpret_cast<float*>(p.part_lse) + part, lse);
            else if (p.lse) store(reinterpret_cast<float*>(p.lse) + at, lse);
        }
    }
};

// What scripts/sass-check holds the machine code to (its --help explains the fields).
// sass: decode_kivi2_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=3*D/32
// sass: decode_kivi4_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=5*D/32
// sass: decode_kivi42_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=D/8
// sass: decode_kf4_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=9*D/64
// sass: decode_kf3_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=7*D/64
// sass: decode_kf32_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=3*D/32
// sass: decode_kf2_* elements=4*D; keys=(D/4+D/16)*N; values=(D/4+4)*N; copies=5*D/64
// sass: decode_fp8_* elements=2*D; keys=D/8*N; values=D/8*N; copies=D/8
// sass: decode_half_* elements=D; keys=D/16*N; values=D/16*N; copies=D/8
// sass: decode_kivi2_* shared=d64:37504 d128:74368 d256:66176; blocks_80=d64:4/3 d128:2 d256:2; blocks_90=d64:4/3 d128:3/2 d256:3
// sass: decode_kivi4_* shared=d64:62080 d128:82560 d256:82560; blocks_80=d64:2 d128:2 d256:2; blocks_90=d64:3 d128:2 d256:2
// sass: decode_kivi42_* shared=d64:49792 d128:98944 d256:66176; blocks_80=d64:3 d128:1 d256:2; blocks_90=d64:4/3 d128:2 d256:3
// sass: decode_kf4_* shared=d64:58048/60160 d128:78528/82688 d256:82624; blocks_80=d64:2 d128:2 d256:2; blocks_90=d64:3 d128:2 d256:2
// sass: decode_kf3_* shared=d64:45760/47872 d128:90816/94976 d256:74432; blocks_80=d64:3 d128:1 d256:2; blocks_90=d64:4/3 d128:2 d256:3
// sass: decode_kf32_* shared=d64:39616/41728 d128:78528/82688 d256:74432; blocks_80=d64:4/3 d128:2 d256:2; blocks_90=d64:4/3 d128:2 d256:3
// sass: decode_kf2_* shared=d64:35520/37632 d128:70336/74496 d256:74432; blocks_80=d64:4/3 d128:2 d256:2; blocks_90=d64:4/3 d128:3/2 d256:3
// sass: decode_fp8_* shared=d64:49792 d128:98944 d256:66176; blocks_80=d64:3 d128:1 d256:2; blocks_90=d64:4/3 d128:2 d256:3
// sass: decode_half_* shared=d64:49792 d128:98944 d256:66176; blocks_80=d64:3 d128:1 d256:2; blocks_90=d64:4/3 d128:2 d256:3
//
// The kernels of one form of sealed pages. n8 and n16: columns of an item.
#define DECODE_KERNEL(form, Pages, type, T, d, n)                                                  \
    KERNEL(decode_##form##_##type##_d##d##_n##n, AttendParams, decode_threads(d),                  \
           decode_blocks(d, n / 8, Pages<d>::BYTES, Pages<d>::ROTATED)) {                          \
        Decode<T, d, n / 8, Pages<d>>::run(params);                                                \
    }
#define DECODE_KERNELS(form, Pages)                                                                \
    DECODE_KERNEL(form, Pages, f16, F16, 64, 8)                                                    \
    DECODE_KERNEL(form, Pages, f16, F16, 64, 16)                                                   \
    DECODE_KERNEL(form, Pages, f16, F16, 128, 8)                                                   \
    DECODE_KERNEL(form, Pages, f16, F16, 128, 16)                                                  \
    DECODE_KERNEL(form, Pages, f16, F16, 256, 8)                                                   \
    DECODE_KERNEL(form, Pages, bf16, Bf16, 64, 8)                                                  \
    DECODE_KERNEL(form, Pages, bf16, Bf16, 64, 16)                                                 \
    DECODE_KERNEL(form, Pages, bf16, Bf16, 128, 8)                                                 \
    DECODE_KERNEL(form, Pages, bf16, Bf16, 128, 16)                                                \
    DECODE_KERNEL(form, Pages, bf16, Bf16, 256, 8)
