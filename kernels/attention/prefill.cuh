// Prefill attention: rows of prompts, however few. A block takes
// ROWS (query, head) rows of one KV head over all runs of its stream, in one
// softmax; four warps have 16·MT rows each. The grid is (row tiles, KV heads,
// sequences): tiles of the last queries, which read most, start first, and blocks
// beyond a sequence's rows leave at once.
//
// A tile is half a page, keys or values of 64 tokens. 16-bit halves pass through a
// ring of STAGES tiles by cp.async. Sealed halves arrive as bytes in the last
// stage, while the half before them is multiplied, and are unpacked to f16 by all
// warps, once a block. Either way there is one barrier a half (two for sealed pages
// at D = 256, where one tile is left).
//
// Of pages that are stored rotated the sum of weighted values is rotated too. So sealed
// runs come first there, are rotated back together, and 16-bit runs follow.
//
//   D                                 64      128     256
//   rows                              128     128     64
//   shared memory (prefill_shared)    40.25   80.25   96.25 KB
//   registers, sm_80 and sm_90        204–234 254–255 242–255, no spills
//              sm_100 and sm_120      all 255 at D ≥ 128, at most 72 bytes spilled
//   blocks a multiprocessor: sm_80    2       2       1
//                            sm_90    2       2       2
//                            sm_86    2       1       1    (99 KB a block at most)
//
// On a page that all rows see, sm_90, D = 128: 256 HMMA a warp and, for each, 2.5
// other instructions (16-bit), 3.5 (sealed); counted in the SASS, not timed.
//
// Floor: 4·D flops of tensor cores for each row and token in sight.
#pragma once

#include "attention/page_fp8.cuh"
#include "attention/page_half.cuh"
#include "attention/page_affine.cuh"
#include "attention/record.cuh"
#include "attention/walk.cuh"

// How sealed pages of a kernel are stored.
template <class K, class V> struct SealedPages {
    using Keys = K;
    using Values = V;
    static constexpr bool ROTATED = false;
};
template <class K, class V> struct RotatedPages {
    using Keys = K;
    using Values = V;
    static constexpr bool ROTATED = true;
};
// All pages have 16 bits.
struct HalfPages {
    static constexpr bool ROTATED = false;
};

// What a block works on, in shared memory: registers are dear.
struct PrefillContext {
    KvSeq seq;
    KvStream stream;
    Columns columns;
    uint32_t next_run;
    uint32_t rotation; // of the run
    uint32_t sealed;   // 1: the run is
    uint32_t loaded;   // 1: the queries are there as the run wants them; 2: no run was read yet
    uint32_t rotated;  // 1: the outputs are
    Walk<64> walk; // pages of the run
};
constexpr uint32_t PREFILL_CONTEXT = 256; // bytes of it
static_assert(sizeof(PrefillContext) <= PREFILL_CONTEXT, "the context fits");

// Mirrored in src/backend/cuda/attend/launch.rs: the launcher needs them.
constexpr int PREFILL_THREADS = 128;
constexpr int prefill_blocks_of_16(int d) { return d == 256 ? 1 : 2; } // MT
constexpr int prefill_rows(int d) { return 64 * prefill_blocks_of_16(d); }
constexpr int prefill_stages(int d) { return d == 256 ? 2 : 3; }
constexpr uint32_t prefill_shared(int d) {
    return PREFILL_CONTEXT + (prefill_rows(d) + 64 * prefill_stages(d)) * 2 * d;
}

template <class T, int D, class Pages> struct Prefill {
    static constexpr bool SEALS = !SameType<Pages, HalfPages>::VALUE;
    static constexpr bool ROTATED = Pages::ROTATED;
    static constexpr uint32_t PASSES = ROTATED ? 2 : 1; // over the runs
    static constexpr int MT = prefill_blocks_of_16(D);
    static constexpr int STAGES = prefill_stages(D);
    static constexpr uint32_t ROWS = prefill_rows(D);
    static constexpr uint32_t WARP_ROWS = 16 * MT;
    using HalfPage = RowTile<D>;
    static constexpr uint32_t TILE = HalfPage::BYTES;
    static constexpr uint32_t RING = PREFILL_CONTEXT + ROWS * 2 * D; // its place in shared memory
    static constexpr uint32_t NONE_LOADED = 2; // of PrefillContext::loaded, at first
    static_assert(prefill_shared(D) <= 99 * 1024, "what a block has on the smaller devices");

    const AttendParams& p;
    PrefillContext& context;
    uint8_t* queries; // this warp's rows, in shared memory

    static DEVICE void run(const AttendParams& p) {
        const KvSeq* seq = reinterpret_cast<const KvSeq*>(p.seqs) + blockIdx.z;
        uint32_t q_len = load(&seq->flags) & SEQ_PROMPT ? load(&seq->q_len) : 0;
        uint32_t tiles = div_ceil(q_len * (p.heads / p.kv_heads), ROWS);
        if (blockIdx.x >= tiles) return;
        PrefillContext& context = *reinterpret_cast<PrefillContext*>(shared_memory());
        if (threadIdx.x == 0) {
            context.next_run = 0;
            context.rotated = 0;
            context.loaded = NONE_LOADED;
            context.seq = load_struct<KvSeq>(p.seqs, blockIdx.z);
            context.stream = load_stream(p, context.seq, blockIdx.y);
            context.columns = columns_of(p, context.stream, q_len, (tiles - 1 - blockIdx.x) * ROWS, ROWS);
        }
        uint8_t* queries = shared_memory() + PREFILL_CONTEXT + warp_id() * (WARP_ROWS * 2 * D);
        Prefill{p, context, queries}.all_runs();
    }

    DEVICE uint32_t first_row() const { return warp_id() * WARP_ROWS; } // of this warp, in the tile

    DEVICE void all_runs() {
        RowState<D, MT> state;
        state.clear();
        sync_block();
        bool more = context.stream.n_runs > 0;
        while (more) {
            if (threadIdx.x == 0) enter(context.next_run++);
            sync_block();
            if (ROTATED && context.next_run == context.stream.n_runs + 1 && context.rotated) rotate_outputs<D, MT>(state);
            if (context.walk.count > 0) {
                if constexpr (SEALS) {
                    if (context.sealed) sealed_run<typename Pages::Keys, typename Pages::Values>(state);
                    else half_run(state);
                } else {
                    half_run(state);
                }
            }
            more = context.next_run < PASSES * context.stream.n_runs;
            sync_block(); // the ring and the context are free again
        }
        write_rows<T>(p, context.columns, context.seq.first_row, blockIdx.y, first_row(), state, queries);
    }

    // Makes run r the current one: of rotated formats sealed runs count in the first pass
    // over all runs, the others in the second. By one thread.
    DEVICE void enter(uint32_t r) {
        bool second = ROTATED && r >= context.stream.n_runs;
        KvRun run = load_struct<KvRun>(p.runs, context.stream.first_run + r - (second ? context.stream.n_runs : 0));
        context.walk.count = 0;
        if (ROTATED && (run.kind == RUN_SEALED) == second) return;
        KvArena arena = load_struct<KvArena>(p.arenas, run.arena);
        AttendItem whole = {};
        whole.n_pages = KV_NONE;
        context.walk = walk_of<64>(p, context.stream, run, arena, p.layer * p.kv_heads + blockIdx.y, whole,
                                   context.columns, 1);
        if (context.walk.count == 0) return;
        uint32_t sealed = SEALS && run.kind == RUN_SEALED;
        context.loaded = context.loaded != NONE_LOADED && context.rotation == run.rotation &&
                         (context.sealed == sealed || (SameType<T, F16>::VALUE && !ROTATED));
        context.rotation = run.rotation;
        context.sealed = sealed;
        if (sealed) context.rotated = 1;
    }

    template <class To, bool HADAMARD = false> DEVICE void load_queries() {
        if (context.loaded == 1) return;
        load_rows<T, To, D, MT, HADAMARD>(p, context.columns, context.seq.first_row, blockIdx.y, first_row(),
                                context.rotation, queries);
    }

    DEVICE uint32_t block_of(uint32_t k) const {
        const Walk<64>& walk = context.walk;
        return load(&walk.table[walk.entry(min_of(k, walk.count - 1))]);
    }

    // 16-bit pages: half h = 2·page + (0 keys, 1 values) lies in stage h % STAGES.
    // While one half is multiplied, the STAGES − 1 behind it are on their way.
    DEVICE void half_run(RowState<D, MT>& state) {
        const Walk<64>& walk = context.walk;
        uint32_t block = block_of(0); // of the next page to be copied
        uint32_t stage = RING;             // of the half at hand
        auto after = [](uint32_t s) { return s == RING + (STAGES - 1) * TILE ? RING : s + TILE; };
        auto before = [](uint32_t s) { return s == RING ? RING + (STAGES - 1) * TILE : s - TILE; };
        auto copy = [&](uint32_t stage_to, uint32_t page, bool values) {
            uint8_t* to = shared_memory() + stage_to;
            if (page < walk.count) {
                const uint8_t* from = walk.base + block * walk.block_bytes + (values ? walk.key_bytes : 0);
                TileView view = walk.view(page);
                // Rows behind the last token in sight may not have been written yet.
                int32_t seen = context.columns.last.query + 1 - view.first;
                if (view.rows == 64 && seen >= 64) HalfPage::issue(to, from);
                else HalfPage::issue(to, from, seen <= 0 ? 0 : min_of(view.rows, uint32_t(seen)));
            }
            cp_async_commit();
            if (values) block = block_of(page + 1);
        };
        copy(RING, 0, false);
        if (STAGES == 3) copy(RING + TILE, 0, true);
        load_queries<T>();
        for (uint32_t k = 0; k < walk.count; ++k) {
            float s[MT][8][4];
            cp_async_wait<STAGES - 2>();
            sync_block(); // the keys are here, and the half before them is done with
            copy(before(stage), STAGES == 3 ? k + 1 : k, STAGES != 3);
            row_scores<T, HalfPage, D, MT>(queries, stage, s);
            weigh(k, s, state);
            stage = after(stage);
            cp_async_wait<STAGES - 2>();
            sync_block();
            copy(before(stage), k + 1, STAGES == 3);
            accumulate<T, HalfPage>(stage, s, state);
            stage = after(stage);
        }
        cp_async_wait<0>();
    }

    // Sealed pages: their bytes lie in the last stage, keys before values. With
    // one stage left for the tile, unpacking waits for the product before it.
    template <class Keys, class Values> DEVICE void sealed_run(RowState<D, MT>& state) {
        static_assert(Keys::BYTES + Values::BYTES <= TILE, "a page's bytes fit a stage");
        constexpr bool ONE_TILE = STAGES == 2;
        const Walk<64>& walk = context.walk;
        constexpr uint32_t VALUES_TILE = RING + (ONE_TILE ? 0 : TILE);
        uint8_t* raw_keys = shared_memory() + RING + (STAGES - 1) * TILE;
        uint8_t* raw_values = raw_keys + Keys::BYTES;
        uint32_t block = block_of(0); // of the next page to be copied
        auto copy_keys = [&](uint32_t page) {
            if (page < walk.count) copy_bytes<Keys::BYTES>(raw_keys, walk.base + block * walk.block_bytes);
            cp_async_commit();
        };
        auto copy_values = [&](uint32_t page) {
            if (page < walk.count)
                copy_bytes<Values::BYTES>(raw_values, walk.base + block * walk.block_bytes + walk.key_bytes);
            cp_async_commit();
            block = block_of(page + 1);
        };
        copy_keys(0);
        copy_values(0);
        load_queries<F16, ROTATED>();
        cp_async_wait<1>();
        sync_block(); // the first keys are here
        for (uint32_t k = 0; k < walk.count; ++k) {
            float s[MT][8][4];
            Keys::unpack(shared_memory() + RING, raw_keys);
            cp_async_wait<0>();
            sync_block(); // the tile is ready, and so are the values' bytes
            copy_keys(k + 1);
            row_scores<F16, typename Keys::Tile, D, MT>(queries, RING, s);
            weigh(k, s, state);
            if (ONE_TILE) sync_block();
            Values::unpack(shared_memory() + VALUES_TILE, raw_values);
            cp_async_wait<0>();
            sync_block();
            copy_values(k + 1);
            accumulate<F16, typename Values::Tile>(VALUES_TILE, s, state);
            if (ONE_TILE) sync_block();
        }
        cp_async_wait<0>();
    }

    // Starts the block's copy of BYTES bytes as they lie.
    template <uint32_t BYTES> static DEVICE void copy_bytes(uint8_t* shared, const uint8_t* from) {
        UNROLL
        for (uint32_t first = 0; first < BYTES; first += 16 * PREFILL_THREADS) {
            uint32_t at = first + 16 * threadIdx.x;
            if (at < BYTES) cp_async16(shared + at, from + at);
        }
    }

    // Masks the scores of page k and turns them into weights.
    DEVICE void weigh(uint32_t k, float (&s)[MT][8][4], RowState<D, MT>& state) {
        TileView view = context.walk.view(k);
        if (!all_seen(p, view, context.columns, 64)) mask_rows<MT>(p, view, context.columns, first_row(), s);
        softmax_rows<D, MT, SEALS>(s, state, p.scale);
    }

    // state.out += weights · V for the values in `tile`.
    template <class E, class Tile>
    DEVICE void accumulate(uint32_t tile, const float (&s)[MT][8][4], RowState<D, MT>& state) {
        UNROLL
        for (int j = 0; j < 4; ++j) { // 16 tokens
            uint32_t a[MT][4];
            UNROLL
            for (int m = 0; m < MT; ++m) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float(&x)[4] = s[m][2 * j + i / 2];
                    a[m][i] = Element<E>::pack(x[i % 2 * 2], x[i % 2 * 2 + 1]);
                }
            }
            UNROLL
            for (int block = 0; block < D / 16; ++block) {
                uint32_t b[4];
                Tile::values(b, tile, block, j);
                multiply<E, MT>(state.out, a, b, block);
            }
        }
    }
};

// What scripts/sass-check holds the machine code to.
// sass: prefill_* keys=min(D, 128); values=min(D, 128); copies=D/8
// sass: prefill_kivi2_* sealed=d64:2 d128:4 d256:6
// sass: prefill_kivi4_* sealed=d64:4 d128:6 d256:10
// sass: prefill_kivi42_* sealed=d64:3 d128:5 d256:8
// sass: prefill_kf4_* sealed=d64:4 d128:6 d256:10
// sass: prefill_kf3_* sealed=d64:2 d128:4 d256:8
// sass: prefill_kf32_* sealed=d64:2 d128:4 d256:7
// sass: prefill_kf2_* sealed=d64:2 d128:4 d256:6
// sass: prefill_fp8_* sealed=D/16
// sass: prefill_* shared=d64:41216 d128:82176 d256:98560; blocks_80=d64:2 d128:2 d256:1; blocks_90=d64:2 d128:2 d256:2
//
// The kernels of one form of sealed pages.
#define PREFILL_KERNEL(form, Pages, type, T, d)                                                    \
    KERNEL(prefill_##form##_##type##_d##d, AttendParams, PREFILL_THREADS, 2) {                     \
        Prefill<T, d, Pages<d>>::run(params);                                                      \
    }
#define PREFILL_KERNELS(form, Pages)                                                               \
    PREFILL_KERNEL(form, Pages, f16, F16, 64)                                                      \
    PREFILL_KERNEL(form, Pages, f16, F16, 128)                                                     \
    PREFILL_KERNEL(form, Pages, f16, F16, 256)                                                     \
    PREFILL_KERNEL(form, Pages, bf16, Bf16, 64)                                                    \
    PREFILL_KERNEL(form, Pages, bf16, Bf16, 128)                                                   \
    PREFILL_KERNEL(form, Pages, bf16, Bf16, 256)
