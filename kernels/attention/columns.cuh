// The queries of a decode item. Tokens are the rows of both products and the
// columns are (query, head) pairs, so that a group of 4 heads fills half of an
// n = 8 tile instead of a quarter of m = 16:
//
//   S^T = K · Q^T     O^T = V^T · P^T
//
// In accumulators a thread holds columns 8n + 2t and 8n + 2t + 1, in the B
// operand column 8n + g, with g = lane / 4, t = lane % 4.
#pragma once

#include "attention/hadamard.cuh"
#include "common/params/attention.h"

// What one column sees.
struct Column {
    int32_t query;   // kept index, sinks included, of the last token that it may see; −1: no column
    uint32_t sealed; // pages below are read sealed (ARCHITECTURE, rule 1)
};

// The columns of an item: up to 8·NT from `column` on.
struct Columns {
    Column first, last; // bounds over the item: no field falls from query to query
    uint32_t column;
    uint32_t count;
    uint32_t group;        // query heads a KV head
    uint32_t base;         // kept index of the sequence's first query
    uint32_t sealed_bound; // of the stream

    // What the query of column `c` of the KV head sees: the tokens up to its own, or
    // without a causal mask, where `first` sees the last one, all of them. Its own
    // place alone decides which form it reads, also of the pages behind it.
    DEVICE Column at(const AttendParams& p, uint32_t c) const {
        int32_t index = int32_t(base + c / group);
        int32_t query = max_of(index, first.query);
        if (p.hot_pages == KV_NONE) return {query, 0};
        uint32_t page = uint32_t(max_of(index - int32_t(p.sinks), 0)) / 64;
        uint32_t sealed = page < p.hot_pages ? 0 : page - p.hot_pages;
        return {query, max_of(sealed, sealed_bound)};
    }
};

DEVICE Columns columns_of(const AttendParams& p, const KvStream& stream, uint32_t q_len,
                          uint32_t first, uint32_t at_most) {
    Columns c;
    c.group = p.heads / p.kv_heads;
    c.column = first;
    c.count = min_of(q_len * c.group - first, at_most);
    c.base = stream.kept - q_len;
    c.sealed_bound = stream.sealed_bound;
    c.first.query = p.causal ? -1 : int32_t(stream.kept) - 1;
    c.first = c.at(p, first);
    c.last = c.at(p, first + c.count - 1);
    return c;
}

// The queries as B operands: channels 16j + 2t, +1 in word 0, + 8, + 9 in word 1.
template <int D, int NT> struct Queries {
    uint32_t b[D / 16][NT][2];
};

// Order of a B operand's four channels of 16: as they lie, or four consecutive
// ones a thread, for tiles of bytes.
enum class Channels { NATURAL, BY_FOUR };

// Loads the item's queries as type To, turned by −Δ if `rotation` names a row
// of p.rotations. Columns not in use are 0.
template <class From, class To, int D, int NT, Channels ORDER = Channels::NATURAL>
DEVICE void load_queries(const AttendParams& p, const Columns& columns, uint32_t first_row,
                         uint32_t kv_head, uint32_t rotation, Queries<D, NT>& q) {
    uint32_t g = lane_id() / 4, t = lane_id() % 4;
    // This thread's channels of 16: two from `low` on, and two that lie APART further.
    uint32_t low = ORDER == Channels::NATURAL ? 2 * t : 4 * t;
    constexpr int APART = ORDER == Channels::NATURAL ? 8 : 2;
    const FloatPair* turn =
        reinterpret_cast<const FloatPair*>(p.rotations) + size_t(rotation) * (D / 2) + low;
    UNROLL
    for (int n = 0; n < NT; ++n) {
        uint32_t column = 8 * n + g;
        bool used = column < columns.count;
        uint32_t c = columns.column + (used ? column : 0);
        uint32_t row = first_row + c / columns.group;
        const From* from = reinterpret_cast<const From*>(p.q) + size_t(row) * p.q_stride +
                           (kv_head * columns.group + c % columns.group) * D + low;
        UNROLL
        for (int j = 0; j < D / 16; ++j) {
            UNROLL
            for (int h = 0; h < 2; ++h) {
                uint32_t x = load(reinterpret_cast<const uint32_t*>(from + 16 * j + APART * h));
                q.b[j][n][h] = used ? x : 0;
            }
        }
        if (rotation == KV_NONE) {
            if constexpr (!SameType<From, To>::VALUE) {
                UNROLL
                for (int j = 0; j < D / 16; ++j) {
                    UNROLL
                    for (int h = 0; h < 2; ++h) {
                        uint32_t x = q.b[j][n][h];
                        q.b[j][n][h] = Element<To>::pack(Element<From>::low(x), Element<From>::high(x));
                    }
                }
            }
            continue;
        }
        // Channel i turns with channel i + D/2, which is in the same thread.
        UNROLL
        for (int j = 0; j < D / 32; ++j) {
            UNROLL
            for (int h = 0; h < 2; ++h) {
                FloatPair r0 = load(turn + 16 * j + APART * h), r1 = load(turn + 16 * j + APART * h + 1);
                uint32_t& x = q.b[j][n][h];
                uint32_t& y = q.b[j + D / 32][n][h];
                float a0 = Element<From>::low(x), a1 = Element<From>::high(x);
                float b0 = Element<From>::low(y), b1 = Element<From>::high(y);
                x = Element<To>::pack(a0 * r0.x - b0 * r0.y, a1 * r1.x - b1 * r1.y);
                y = Element<To>::pack(b0 * r0.x + a0 * r0.y, b1 * r1.x + a1 * r1.y);
            }
        }
    }
}

// Rotates the queries of a decode item as pages are. Warp.
template <int D, int NT> DEVICE void rotate_queries(Queries<D, NT>& q) {
    UNROLL
    for (int n = 0; n < NT; ++n) {
        uint32_t words[D / 8];
        UNROLL
        for (int i = 0; i < D / 8; ++i) words[i] = q.b[i / 2][n][i % 2];
        rotate_words<D>(words);
        UNROLL
        for (int i = 0; i < D / 8; ++i) q.b[i / 2][n][i % 2] = words[i];
    }
}

// Which tokens of a tile a column sees.
struct TileView {
    int32_t first;      // kept index of row 0, sinks included
    uint32_t rows;      // in use
    uint32_t page;      // on the grid (ARCHITECTURE, rule 1)
    uint32_t kind;      // KvRunKind
    uint64_t live;      // bit per row
};

DEVICE bool form_seen(const TileView& tile, const Column& c) {
    return tile.kind == RUN_SINK || (tile.kind == RUN_SEALED) == (tile.page < c.sealed);
}

DEVICE bool token_seen(const AttendParams& p, const TileView& tile, const Column& c, uint32_t row) {
    int32_t at = tile.first + int32_t(row);
    bool in_window = p.window == KV_NONE || at + int64_t(p.window) > c.query;
    return row < tile.rows && at <= c.query && in_window && (tile.live >> row & 1);
}

// Whether every column in use sees every row; then nothing is masked.
DEVICE bool all_seen(const AttendParams& p, const TileView& tile, const Columns& c,
                     uint32_t rows) {
    return tile.rows == rows && tile.live == ~0ull && tile.first + int32_t(rows) - 1 <= c.first.query &&
           (p.window == KV_NONE || tile.first + int64_t(p.window) > c.last.query) &&
           form_seen(tile, c.first) && form_seen(tile, c.last);
}

// Gives what a column does not see the score −∞. Scores are m16n8 accumulators:
// block b, rows 16b + g and 16b + g + 8.
template <int BLOCKS, int NT>
DEVICE void mask_scores(const AttendParams& p, const TileView& tile, const Columns& columns,
                        float (&s)[BLOCKS][NT][4]) {
    uint32_t lane = lane_id_anew(), g = lane / 4;
    UNROLL
    for (int n = 0; n < NT; ++n) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            uint32_t column = 8 * n + 2 * (lane % 4) + e % 2;
            Column c = {-1, 0};
            if (column < columns.count) c = columns.at(p, columns.column + column);
            bool form = form_seen(tile, c);
            UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                if (!form || !token_seen(p, tile, c, 16 * b + g + (e / 2) * 8)) s[b][n][e] = -INFINITY;
            }
        }
    }
}
