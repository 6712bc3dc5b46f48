// Score passes (src/backend/score_pass.rs): probabilities 2^(s − lse) of kept tokens, from
// the log-sum-exps of an attention pass, reduced to what eviction policies need. Keys
// are read, values are not, and no scores are stored.
//
//   score_*  sums or maxima down the queries. A block owns a page of one KV head, or its
//            sinks: all queries that count pass it in order, so each score is written
//            once, without atomics. Grid: (pages and sinks, KV heads, sequences).
//   top_*    the best token of each query. A block owns a chunk of a stream's pages and
//            writes the best of it; score_top.cu takes the best of all chunks. A maximum
//            does not depend on the chunks. Grid: (chunks, KV heads, sequences).
//
// A page that queries see sealed and hot is read in both forms, one after the other. It
// becomes a tile of 16-bit keys (page_*.cuh), as in prefill; then a warp takes 16 queries
// of one head at a time: S = Q · K^T, rows are queries, and a lane adds up the columns of
// its rows until the head changes.
//
//   D                               64      128     256
//   shared memory, group of 4       20.25   36.25   68.25 KB  (score_shared)
//   blocks a multiprocessor         4, 3    3       2         (score_*, top_*)
//
// Floor: the bytes of the keys, or 2·D flops of tensor cores for each (query, head) and
// token in sight. 128 threads.
#pragma once

#include "attention/page_fp8.cuh"
#include "attention/page_half.cuh"
#include "attention/page_affine.cuh"
#include "attention/record.cuh"
#include "attention/walk.cuh"
#include "common/params/score.h"

// How sealed keys of a kernel are stored.
template <class K> struct SealedKeys {
    using Keys = K;
    static constexpr bool ROTATED = false;
};
// Rotated keys are rotated back: a page has few of them, and many queries pass.
template <class K> struct RotatedSealedKeys {
    using Keys = K;
    static constexpr bool ROTATED = true;
};
// All pages have 16 bits.
struct HalfKeys {};

// The type of a tile's elements, and its form.
template <class E, class K> struct KeyTile {
    using Element = E;
    using Keys = K;
};

// What a block works on, in shared memory.
struct ScoreContext {
    KvSeq seq;
    KvStream stream;
    Columns all; // the queries that count
    uint32_t rotation; // of the run
    uint32_t sealed;   // 1: the run is
    Walk<64> walk;     // the page at hand, in one form
};

// Mirrored in src/backend/cuda/score.rs: the launcher needs them.
constexpr uint32_t SCORE_CONTEXT = 256; // bytes of ScoreContext
constexpr uint32_t SCORE_THREADS = 128;
constexpr uint32_t SCORE_WARPS = SCORE_THREADS / 32;
constexpr uint32_t SCORE_QUERIES = 16; // of a warp at a time
constexpr uint32_t score_shared(int d, uint32_t group) {
    return SCORE_CONTEXT + (64 + SCORE_WARPS * SCORE_QUERIES) * 2 * d + group * SCORE_WARPS * 64 * 4;
}
constexpr int score_blocks(int d) { return d == 256 ? 2 : d == 128 ? 3 : 4; }
constexpr int top_blocks(int d) { return d == 256 ? 2 : 3; }
static_assert(sizeof(ScoreContext) <= SCORE_CONTEXT, "the context fits");
static_assert(score_shared(256, 16) <= 99 * 1024, "what a block has on the smaller devices");

template <class T, int D, class Pages> struct Score {
    static constexpr bool SEALS = !SameType<Pages, HalfKeys>::VALUE;
    static constexpr uint32_t WARPS = SCORE_WARPS;
    using HalfPage = RowTile<D>;
    // Places in shared memory. A sealed page's bytes arrive where the queries go.
    static constexpr uint32_t TILE = SCORE_CONTEXT;
    static constexpr uint32_t QUERIES = TILE + HalfPage::BYTES;
    static constexpr uint32_t SUMS = QUERIES + WARPS * SCORE_QUERIES * 2 * D;

    const ScoreParams& p;
    ScoreContext& context;
    uint8_t* queries; // this warp's, as A operands
    float* sums;      // [heads of the group][WARPS][64 tokens], maxima if they are asked for

    // Reads what the block works on; false if there is nothing.
    static DEVICE Score start(const ScoreParams& p) {
        ScoreContext& context = *reinterpret_cast<ScoreContext*>(shared_memory());
        if (threadIdx.x == 0) {
            context.seq = load_struct<KvSeq>(p.attend.seqs, blockIdx.z);
            context.stream = load_stream(p.attend, context.seq, blockIdx.y);
            uint32_t q_len = context.seq.q_len;
            context.all = queries_of(p.attend, context.stream, q_len, min_of(q_len, p.last));
        }
        sync_block();
        uint8_t* queries = shared_memory() + QUERIES + warp_id() * (SCORE_QUERIES * 2 * D);
        return {p, context, queries, reinterpret_cast<float*>(shared_memory() + SUMS)};
    }

    // The last n queries of a sequence as columns: one each, whatever the group.
    static DEVICE Columns queries_of(const AttendParams& p, const KvStream& stream, uint32_t q_len, uint32_t n) {
        uint32_t group = p.heads / p.kv_heads;
        Columns c = columns_of(p, stream, q_len, (q_len - n) * group, n * group);
        c.group = 1;
        c.column = q_len - n;
        c.count = n;
        return c;
    }

    DEVICE uint32_t group() const { return p.attend.heads / p.attend.kv_heads; }
    // Warps' shares of the queries that count.
    DEVICE uint32_t query_blocks() const { return div_ceil(context.all.count, SCORE_QUERIES); }

    // Entries of a stream: its sinks, then its pages.
    DEVICE uint32_t sink_entries() const { return p.attend.sinks > 0; }
    DEVICE uint32_t entries() const {
        uint32_t kept = context.stream.kept, sinks = p.attend.sinks;
        return kept == 0 ? 0 : sink_entries() + (kept > sinks ? div_ceil(kept - sinks, 64) : 0);
    }

    // ---- score_* -------------------------------------------------------------

    static DEVICE void run_sums(const ScoreParams& p) {
        Score s = start(p);
        if (blockIdx.x >= s.entries()) return;
        s.one_entry(blockIdx.x);
    }

    DEVICE void one_entry(uint32_t entry) {
        for (uint32_t i = threadIdx.x; i < group() * WARPS * 64; i += SCORE_THREADS) sums[i] = 0.0f;
        for_each_form(entry, [&](auto tile) { add_up<decltype(tile)>(); });
        if (threadIdx.x >= 64) return;
        // Warps in order, then heads in order.
        float score = 0.0f;
        for (uint32_t head = 0; head < group(); ++head) {
            float x = 0.0f;
            UNROLL
            for (uint32_t w = 0; w < WARPS; ++w) {
                float y = sums[(head * WARPS + w) * 64 + threadIdx.x];
                x = p.reduce == SCORE_MAX ? fmaxf(x, y) : x + y;
            }
            score = p.reduce == SCORE_SUM_MEAN ? score + x : fmaxf(score, x);
        }
        if (p.reduce == SCORE_SUM_MEAN) score /= float(group());
        uint32_t sinks = entry < sink_entries();
        uint32_t first = sinks ? 0 : p.attend.sinks + (entry - sink_entries()) * 64;
        uint32_t end = min_of(context.stream.kept, sinks ? p.attend.sinks : first + 64);
        uint32_t token = first + threadIdx.x;
        uint64_t start = load(&reinterpret_cast<const uint64_t*>(p.starts)[blockIdx.z * p.attend.kv_heads + blockIdx.y]);
        if (token < end) store(reinterpret_cast<float*>(p.scores) + start + token, score);
    }

    // Adds the tile's probabilities to this warp's sums. Its shares are those of all
    // (head, 16 queries), heads outermost, with number % WARPS = its own.
    template <class Tile> DEVICE void add_up() {
        uint32_t blocks = query_blocks();
        for (uint32_t head = 0; head < group(); ++head) {
            float sum[8][2];
            UNROLL
            for (int n = 0; n < 8; ++n) sum[n][0] = sum[n][1] = 0.0f;
            for (uint32_t b = (warp_id() - head * blocks) % WARPS; b < blocks; b += WARPS) {
                float s[1][8][4];
                if (!probabilities<Tile>(head, b, s)) continue;
                if (p.reduce == SCORE_MAX) {
                    UNROLL
                    for (int n = 0; n < 8; ++n) {
                        UNROLL
                        for (int e = 0; e < 2; ++e) sum[n][e] = fmaxf(sum[n][e], fmaxf(s[0][n][e], s[0][n][e + 2]));
                    }
                } else {
                    UNROLL
                    for (int n = 0; n < 8; ++n) {
                        UNROLL
                        for (int e = 0; e < 2; ++e) sum[n][e] += s[0][n][e] + s[0][n][e + 2];
                    }
                }
            }
            keep(head, sum);
        }
    }

    // Joins the eight rows of lanes and adds them to what other forms of the page gave.
    DEVICE void keep(uint32_t head, float (&sum)[8][2]) {
        float* to = sums + (head * WARPS + warp_id()) * 64 + 2 * (lane_id() % 4);
        UNROLL
        for (int n = 0; n < 8; ++n) {
            UNROLL
            for (int e = 0; e < 2; ++e) {
                float x = sum[n][e];
                UNROLL
                for (uint32_t mask = 4; mask < 32; mask *= 2) {
                    float y = shuffle_xor(x, mask);
                    x = p.reduce == SCORE_MAX ? fmaxf(x, y) : x + y;
                }
                if (lane_id() < 4) {
                    float& kept = to[8 * n + e];
                    kept = p.reduce == SCORE_MAX ? fmaxf(kept, x) : kept + x;
                }
            }
        }
    }

    // ---- top_* ---------------------------------------------------------------

    static DEVICE void run_tops(const ScoreParams& p) {
        Score s = start(p);
        s.clear_tops();
        uint32_t entries = s.entries(), share = div_ceil(entries, p.chunks);
        uint32_t first = blockIdx.x * share, end = min_of(first + share, entries);
        for (uint32_t entry = first; entry < end; ++entry)
            s.for_each_form(entry, [&](auto tile) { s.template offer<decltype(tile)>(); });
    }

    // The place of the best token in this block's chunk for query `query` of the
    // sequence: of the KV head, by the sum over its heads, or of one of them.
    DEVICE ScoreTop* place(uint32_t query, uint32_t head) const {
        uint32_t columns = p.per_head ? p.attend.heads : p.attend.kv_heads;
        uint32_t column = p.per_head ? blockIdx.y * group() + head : blockIdx.y;
        size_t row = size_t(blockIdx.x) * p.rows + context.seq.first_row + query;
        return reinterpret_cast<ScoreTop*>(p.parts) + row * columns + column;
    }

    // A place is written by one lane only: that with t = 0 of the query's row.
    DEVICE void clear_tops() {
        for (uint32_t b = warp_id(); b < query_blocks(); b += WARPS) {
            for (uint32_t head = 0; head < (p.per_head ? group() : 1); ++head) {
                UNROLL
                for (int h = 0; h < 2; ++h) {
                    uint32_t query = b * SCORE_QUERIES + 8 * h + lane_id() / 4;
                    if (lane_id() % 4 == 0 && query < context.all.count)
                        store_top(place(context.all.column + query, head), 0.0f, KV_NONE);
                }
            }
        }
    }

    template <class Tile> DEVICE void offer() {
        for (uint32_t b = warp_id(); b < query_blocks(); b += WARPS) {
            float sum[1][8][4]; // over the heads
            UNROLL
            for (int n = 0; n < 8; ++n) sum[0][n][0] = sum[0][n][1] = sum[0][n][2] = sum[0][n][3] = 0.0f;
            bool seen = false;
            for (uint32_t head = 0; head < group(); ++head) {
                float s[1][8][4];
                if (!probabilities<Tile>(head, b, s)) break; // the same for all heads
                seen = true;
                if (p.per_head) {
                    offer_rows(b, head, s);
                } else {
                    UNROLL
                    for (int n = 0; n < 8; ++n) {
                        UNROLL
                        for (int e = 0; e < 4; ++e) sum[0][n][e] += s[0][n][e];
                    }
                }
            }
            if (seen && !p.per_head) offer_rows(b, 0, sum);
        }
    }

    // Offers the best of the tile's tokens to the queries of block b.
    DEVICE void offer_rows(uint32_t b, uint32_t head, const float (&s)[1][8][4]) {
        uint32_t first = uint32_t(context.walk.view(0).first) + 2 * (lane_id() % 4);
        UNROLL
        for (int h = 0; h < 2; ++h) {
            float best = 0.0f;
            uint32_t index = KV_NONE;
            UNROLL
            for (int n = 0; n < 8; ++n) { // tokens rise, so the first of equals stays
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    bool more = s[0][n][2 * h + e] > best;
                    best = more ? s[0][n][2 * h + e] : best;
                    index = more ? first + 8 * n + e : index;
                }
            }
            UNROLL
            for (uint32_t mask = 1; mask < 4; mask *= 2) {
                float x = shuffle_xor(best, mask);
                uint32_t at = shuffle_xor(index, mask);
                bool more = x > best || (x == best && at < index);
                best = more ? x : best;
                index = more ? at : index;
            }
            uint32_t query = b * SCORE_QUERIES + 8 * h + lane_id() / 4;
            if (lane_id() % 4 != 0 || query >= context.all.count) continue;
            ScoreTop* to = place(context.all.column + query, head);
            uint64_t raw = load(reinterpret_cast<const uint64_t*>(to));
            float old = bits_float(uint32_t(raw));
            if (best > old || (best == old && index < uint32_t(raw >> 32))) store_top(to, best, index);
        }
    }

    static DEVICE void store_top(ScoreTop* to, float value, uint32_t index) {
        store(reinterpret_cast<uint64_t*>(to), uint64_t(index) << 32 | float_bits(value));
    }

    // ---- pages ---------------------------------------------------------------

    // Calls `work` with the keys of an entry in shared memory, once for each form in
    // which queries that count read it.
    template <class Work> DEVICE void for_each_form(uint32_t entry, Work work) {
        uint32_t runs = context.all.count > 0 ? context.stream.n_runs : 0;
        for (uint32_t r = next_run(0, entry); r < runs; r = next_run(r + 1, entry)) {
            sync_block(); // the last tile and the context are done with
            if (threadIdx.x == 0) enter(r, entry);
            sync_block();
            if (context.walk.count == 0) continue;
            if constexpr (SEALS) {
                if (context.sealed) {
                    using Keys = typename Pages::Keys;
                    read_sealed<Keys>();
                    work(KeyTile<F16, typename Keys::Tile>{});
                    continue;
                }
            }
            read_half();
            work(KeyTile<T, HalfPage>{});
        }
        sync_block(); // all warps are done
    }

    // The first run from `from` on that holds the entry, or n_runs.
    DEVICE uint32_t next_run(uint32_t from, uint32_t entry) const {
        const KvRun* runs = reinterpret_cast<const KvRun*>(p.attend.runs) + context.stream.first_run;
        uint32_t n = context.stream.n_runs;
        for (; from < n; from += 32) {
            uint32_t r = from + lane_id();
            bool holds = false;
            if (r < n) {
                bool sinks = load(&runs[r].kind) == RUN_SINK;
                uint32_t page = entry - sink_entries(), first = load(&runs[r].start) / 64;
                uint32_t pages = div_ceil(load(&runs[r].n_tokens), 64);
                if (entry < sink_entries()) holds = sinks;
                else holds = !sinks && page >= first && page - first < pages;
            }
            uint32_t found = warp_ballot(holds);
            if (found) return from + popcount(uint64_t((found & (0u - found)) - 1)); // the lowest bit
        }
        return n;
    }

    // Makes the entry's page in run r the one at hand. By one thread.
    DEVICE void enter(uint32_t r, uint32_t entry) {
        KvRun run = load_struct<KvRun>(p.attend.runs, context.stream.first_run + r);
        KvArena arena = load_struct<KvArena>(p.attend.arenas, run.arena);
        AttendItem item = {};
        item.first_page = entry < sink_entries() ? 0 : entry - sink_entries();
        item.n_pages = 1;
        context.walk = walk_of<64>(p.attend, context.stream, run, arena,
                                   p.attend.layer * p.attend.kv_heads + blockIdx.y, item, context.all, 1);
        context.rotation = run.rotation;
        context.sealed = run.kind == RUN_SEALED;
    }

    DEVICE const uint8_t* page() const {
        const Walk<64>& walk = context.walk;
        return walk.base + load(&walk.table[walk.entry(0)]) * walk.block_bytes;
    }

    DEVICE void read_half() {
        TileView view = context.walk.view(0);
        // Rows behind the last query may not have been written yet.
        int32_t seen = context.all.last.query + 1 - view.first;
        HalfPage::issue(shared_memory() + TILE, page(), seen <= 0 ? 0 : min_of(view.rows, uint32_t(seen)));
        cp_async_commit();
        cp_async_wait<0>();
        sync_block();
    }

    template <class Keys> DEVICE void read_sealed() {
        static_assert(Keys::BYTES <= WARPS * SCORE_QUERIES * 2 * D, "the bytes fit");
        uint8_t* raw = shared_memory() + QUERIES;
        const uint8_t* from = page();
        for (uint32_t at = 16 * threadIdx.x; at < Keys::BYTES; at += 16 * SCORE_THREADS) cp_async16(raw + at, from + at);
        cp_async_commit();
        cp_async_wait<0>();
        sync_block();
        Keys::unpack(shared_memory() + TILE, raw);
        sync_block();
        if constexpr (Pages::ROTATED) {
            rotate_key_fragments<D>(shared_memory() + TILE);
            sync_block();
        }
    }

    // ---- probabilities -------------------------------------------------------

    // Probabilities of the tile's tokens for block b of the queries in one head of the
    // group, rows g and g + 8, tokens 8n + 2t, + 1; 0 where a query does not see the
    // token. False if none sees any.
    template <class Tile> DEVICE bool probabilities(uint32_t head, uint32_t b, float (&s)[1][8][4]) {
        using E = typename Tile::Element;
        const Columns& all = context.all;
        uint32_t first = b * SCORE_QUERIES;
        Columns c = all;
        c.column = all.column + first;
        c.count = min_of(all.count - first, SCORE_QUERIES);
        c.first = c.at(p.attend, c.column);
        c.last = c.at(p.attend, c.column + c.count - 1);
        TileView view = context.walk.view(0);
        if (!any_seen(view, c)) return false;

        head += blockIdx.y * group();
        load_rows<T, E, D, 1>(p.attend, c, context.seq.first_row, head, 0, context.rotation, queries);
        row_scores<E, typename Tile::Keys, D, 1>(queries, TILE, s);
        sync_warp(); // the queries are done with
        if (!all_seen(p.attend, view, c, 64)) mask_rows<1>(p.attend, view, c, 0, s);
        UNROLL
        for (int h = 0; h < 2; ++h) {
            uint32_t row = 8 * h + lane_id() / 4;
            float lse = INFINITY; // rows that are not there
            if (row < c.count) {
                RowPlace at = row_place(c, context.seq.first_row, head, row);
                lse = load(reinterpret_cast<const float*>(p.attend.lse) + size_t(at.query) * p.attend.heads + at.head);
                if (lse == -INFINITY) lse = INFINITY; // sees nothing
            }
            UNROLL
            for (int n = 0; n < 8; ++n) {
                UNROLL
                for (int e = 0; e < 2; ++e) {
                    float& x = s[0][n][2 * h + e];
                    x = exp2_fast(fma_fast(x, p.attend.scale, -lse));
                }
            }
        }
        return true;
    }

    // Whether some query may see some token of the tile.
    DEVICE bool any_seen(const TileView& view, const Columns& c) const {
        bool form = view.kind == RUN_SINK ||
                    (view.kind == RUN_SEALED ? view.page < c.last.sealed : view.page >= c.first.sealed);
        bool in_window = p.attend.window == KV_NONE ||
                         int64_t(view.first) + view.rows + p.attend.window > int64_t(c.first.query) + 1;
        return form && in_window && view.rows > 0 && c.last.query >= view.first;
    }
};

// What scripts/sass-check holds the machine code to; shared memory is that of groups of 4.
// sass: score_* shared=d64:20736 d128:37120 d256:69888; keys=D/2; values=0; blocks_80=d64:4 d128:3 d256:2; blocks_90=d64:4 d128:3 d256:2
// sass: top_* shared=d64:20736 d128:37120 d256:69888; keys=D/2; values=0; blocks_80=d64:3 d128:3 d256:2; blocks_90=d64:3 d128:3 d256:2
//
// The kernels of one form of sealed keys.
#define SCORE_KERNEL(form, Pages, type, T, d)                                                      \
    KERNEL(score_##form##_##type##_d##d, ScoreParams, SCORE_THREADS, score_blocks(d)) {            \
        Score<T, d, Pages<d>>::run_sums(params);                                                   \
    }                                                                                              \
    KERNEL(top_##form##_##type##_d##d, ScoreParams, SCORE_THREADS, top_blocks(d)) {                \
        Score<T, d, Pages<d>>::run_tops(params);                                                   \
    }
#define SCORE_KERNELS(form, Pages)                                                                 \
    SCORE_KERNEL(form, Pages, f16, F16, 64)                                                        \
    SCORE_KERNEL(form, Pages, f16, F16, 128)                                                       \
    SCORE_KERNEL(form, Pages, f16, F16, 256)                                                       \
    SCORE_KERNEL(form, Pages, bf16, Bf16, 64)                                                      \
    SCORE_KERNEL(form, Pages, bf16, Bf16, 128)                                                     \
    SCORE_KERNEL(form, Pages, bf16, Bf16, 256)
