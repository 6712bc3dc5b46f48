// One half of a page by kvfold's own codecs (src/codec/affine.rs): rows are rotated
// (src/codec/hadamard.rs), each group of 64 gets the range that errs least
// (src/codec/clip.rs), and codes follow as in seal_affine.cuh.
//
//   load_rotated  16-bit rows → FloatTile, rotated and limited
//   search        FloatTile → Fits
//   write_affine  FloatTile, Fits → the page
//
// Arithmetic is defined to the last bit: f32, one IEEE rounding an operation.
#pragma once

#include "cache/seal_affine.cuh"

namespace cache {

constexpr uint32_t SEARCH_GROUP = 64;

// The greatest number that is encoded: what f16 holds.
constexpr float SEAL_LIMIT = 65504.0f;

// A page half in shared memory, f32, [token][channel]. Rows are 16 bytes longer than
// their content, so that 16-byte reads of one column lie in different banks.
struct FloatTile {
    uint8_t* bytes;
    uint32_t head_dim;

    static constexpr DEVICE uint32_t row_bytes(uint32_t head_dim) { return 4 * head_dim + 16; }
    DEVICE float* at(uint32_t token, uint32_t channel) const {
        return reinterpret_cast<float*>(bytes + token * row_bytes(head_dim)) + channel;
    }
    DEVICE float one(uint32_t token, uint32_t channel) const { return *at(token, channel); }
    DEVICE Pair pair(uint32_t token, uint32_t channel) const {
        const float* x = at(token, channel);
        return {x[0], x[1]};
    }
};

// A finite number within ±SEAL_LIMIT; what is not a number becomes −SEAL_LIMIT.
DEVICE float limited(float x) {
    x = x > -SEAL_LIMIT ? x : -SEAL_LIMIT;
    return x < SEAL_LIMIT ? x : SEAL_LIMIT;
}

// 1/√d in f32, for the head dims that the arenas take.
DEVICE float hadamard_norm(uint32_t head_dim) {
    return head_dim == 64 ? 0.125f : head_dim == 128 ? 0.08838834764831845f : 0.0625f;
}

// Rotates a row of head_dim channels that head_dim/8 neighbouring lanes hold, eight a
// lane. All lanes of the warp.
DEVICE void rotate_row(float (&x)[8], uint32_t head_dim) {
    UNROLL
    for (uint32_t distance = 1; distance < 8; distance *= 2) {
        UNROLL
        for (uint32_t i = 0; i < 8; ++i) {
            if (i & distance) continue;
            float a = x[i], b = x[i + distance];
            x[i] = add_rn(a, b);
            x[i + distance] = sub_rn(a, b);
        }
    }
    for (uint32_t mask = 1; mask < head_dim / 8; mask *= 2) {
        bool second = lane_id() & mask;
        UNROLL
        for (uint32_t i = 0; i < 8; ++i) {
            float other = shuffle_xor(x[i], mask);
            x[i] = second ? sub_rn(other, x[i]) : add_rn(x[i], other);
        }
    }
    float norm = hadamard_norm(head_dim);
    UNROLL
    for (uint32_t i = 0; i < 8; ++i) x[i] = mul_rn(x[i], norm);
}

template <class T> DEVICE void load_rotated(FloatTile tile, uint64_t from) {
    uint32_t vectors = tile.head_dim / 8; // of a row: they divide a warp
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * vectors; i += SEAL_THREADS) {
        Vec16 v = load(address<const Vec16>(from) + i);
        float x[8];
        UNROLL
        for (uint32_t w = 0; w < 4; ++w) {
            Pair pair = unpack<T>(v.w[w]);
            x[2 * w] = pair.low, x[2 * w + 1] = pair.high;
        }
        rotate_row(x, tile.head_dim);
        Vec16* to = reinterpret_cast<Vec16*>(tile.at(i / vectors, i % vectors * 8));
        UNROLL
        for (uint32_t h = 0; h < 2; ++h) {
            UNROLL
            for (uint32_t w = 0; w < 4; ++w) v.w[w] = float_bits(limited(x[4 * h + w]));
            to[h] = v;
        }
    }
    sync_block();
}

// Calls `each` with the numbers of a group in their order: 64 tokens of a channel, or 64
// channels of a token.
template <Side SIDE, class Each> DEVICE void for_group(FloatTile tile, uint32_t group, Each each) {
    if constexpr (SIDE == KEY) {
        for (uint32_t token = 0; token < SEARCH_GROUP; ++token) each(tile.one(token, group));
    } else {
        const float* first = tile.at(group % TILE_TOKENS, group / TILE_TOKENS * SEARCH_GROUP);
        for (uint32_t i = 0; i < SEARCH_GROUP; i += 4) {
            Vec16 v = *reinterpret_cast<const Vec16*>(first + i);
            UNROLL
            for (uint32_t w = 0; w < 4; ++w) each(bits_float(v.w[w]));
        }
    }
}

// One of the ranges that are tried, and the squared error of its codes so far.
struct Trial {
    float scale, zero;
    float inverse;
    float error;

    DEVICE float square(float x, float levels) const {
        constexpr float MAGIC = 12582912.0f; // 1.5 · 2^23: adding it rounds to an integer
        float code = min_of(max_of(mul_rn(sub_rn(x, zero), inverse), 0.0f), levels);
        code = sub_rn(add_rn(code, MAGIC), MAGIC);
        float off = sub_rn(x, add_rn(mul_rn(code, scale), zero));
        return mul_rn(off, off);
    }
};

constexpr uint32_t RATIOS = 4;

// One of the ranges that are tried between the extremes of a group.
template <uint32_t BITS> DEVICE Trial make_trial(float min, float max, float ratio) {
    // Adding +0 turns −0 to +0: which of them came first must not show.
    float middle = add_rn(mul_rn(add_rn(min, max), 0.5f), 0.0f), half = mul_rn(sub_rn(max, min), 0.5f);
    float reach = mul_rn(half, ratio);
    float scale = f16_float(float_f16(div_rn(add_rn(reach, reach), float((1u << BITS) - 1))));
    float zero = f16_float(float_f16(sub_rn(middle, reach)));
    return {scale, zero, scale == 0.0f ? 0.0f : div_rn(1.0f, scale), 0.0f};
}

// What half the distance of the extremes is multiplied by.
DEVICE float trial_ratio(uint32_t i) { return i == 0 ? 1.0f : i == 1 ? 0.95f : i == 2 ? 0.9f : 0.85f; }

// Of equal errors the larger range wins.
DEVICE Trial best_of(const Trial (&trials)[RATIOS]) {
    Trial best = trials[0];
    UNROLL
    for (uint32_t i = 1; i < RATIOS; ++i) {
        if (trials[i].error < best.error) best = trials[i];
    }
    return best;
}

// The range of one group, by one thread: all ratios in one pass over the numbers.
template <uint32_t BITS, Side SIDE> DEVICE void search_group(FloatTile tile, Fits to, uint32_t group) {
    constexpr float LEVELS = float((1u << BITS) - 1);
    float min = SEAL_LIMIT, max = -SEAL_LIMIT;
    for_group<SIDE>(tile, group, [&](float x) {
        min = min_of(x, min);
        max = max_of(x, max);
    });
    Trial trials[RATIOS];
    UNROLL
    for (uint32_t i = 0; i < RATIOS; ++i) trials[i] = make_trial<BITS>(min, max, trial_ratio(i));
    for_group<SIDE>(tile, group, [&](float x) {
        UNROLL
        for (uint32_t i = 0; i < RATIOS; ++i) trials[i].error = add_rn(trials[i].error, trials[i].square(x, LEVELS));
    });
    Trial best = best_of(trials);
    to.scale[group] = best.scale;
    to.zero[group] = best.zero;
}

template <class T, uint32_t BITS, Side SIDE>
DEVICE void seal_rotated(uint64_t from, uint64_t to, uint32_t head_dim) {
    FloatTile tile{shared_memory(), head_dim};
    uint32_t groups = TILE_TOKENS * head_dim / SEARCH_GROUP;
    Fits fits = fits_behind(TILE_TOKENS * FloatTile::row_bytes(head_dim), groups);
    load_rotated<T>(tile, from);
    for (uint32_t group = threadIdx.x; group < groups; group += SEAL_THREADS) search_group<BITS, SIDE>(tile, fits, group);
    sync_block();
    write_affine<BITS, SEARCH_GROUP, SIDE>(tile, fits, to);
}

} // namespace cache
