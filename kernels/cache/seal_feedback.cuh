// Keys of kvfold's own codecs with error feedback (src/codec/feedback.rs): channels are
// encoded one after the other, each aimed at what makes the errors before it good.
//
//   aim   FloatTile → codes, Fits; the tile's numbers become errors
//
// One warp does it, two tokens a lane: channels wait for each other anyway.
#pragma once

#include "cache/seal_rotated.cuh"

namespace cache {

// Codes of a page half in shared memory, a byte each, [token][channel].
struct CodeTile {
    uint8_t* bytes;
    uint32_t head_dim;

    DEVICE uint8_t* at(uint32_t token, uint32_t channel) const { return bytes + token * head_dim + channel; }
    DEVICE Pair pair(uint32_t token, uint32_t channel) const {
        const uint8_t* code = at(token, channel);
        return {float(code[0]), float(code[1])};
    }
};

// Stands for Fits where numbers are codes already.
struct Coded {};
template <uint32_t BITS> DEVICE uint32_t quantise(float code, Coded, uint32_t) { return uint32_t(code); }

// Squared errors of one channel, a row a trial; rows begin in different banks.
struct Squares {
    float* numbers;

    static constexpr uint32_t ROW = TILE_TOKENS + 1, BYTES = 4 * RATIOS * ROW;
    DEVICE float& at(uint32_t trial, uint32_t token) const { return numbers[trial * ROW + token]; }
};

// Errors of all trials: lane i adds up those of trial i, in the order of the tokens.
DEVICE void add_up(Squares squares, const float (&aims)[2], float levels, Trial (&trials)[RATIOS]) {
    UNROLL
    for (uint32_t i = 0; i < RATIOS; ++i) {
        UNROLL
        for (uint32_t half = 0; half < 2; ++half) {
            squares.at(i, half * 32 + lane_id()) = trials[i].square(aims[half], levels);
        }
    }
    sync_warp();
    float error = 0.0f;
    for (uint32_t token = 0; token < TILE_TOKENS; ++token) error = add_rn(error, squares.at(lane_id() % RATIOS, token));
    UNROLL
    for (uint32_t i = 0; i < RATIOS; ++i) trials[i].error = shuffle(error, i);
}

// One channel; `weights` are its row of the feedback.
template <uint32_t BITS>
DEVICE void aim_channel(FloatTile tile, CodeTile codes, Fits fits, Squares squares, const float* weights,
                        uint32_t channel) {
    constexpr float LEVELS = float((1u << BITS) - 1);
    float aims[2];
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        uint32_t token = half * 32 + lane_id();
        float aim = tile.one(token, channel);
        for (uint32_t i = 0; i < channel; ++i) aim = sub_rn(aim, mul_rn(load(weights + i), tile.one(token, i)));
        aims[half] = limited(add_rn(aim, 0.0f));
    }
    float min = min_of(aims[0], aims[1]), max = max_of(aims[0], aims[1]);
    UNROLL
    for (uint32_t mask = 1; mask < 32; mask *= 2) {
        min = min_of(min, shuffle_xor(min, mask));
        max = max_of(max, shuffle_xor(max, mask));
    }
    Trial trials[RATIOS];
    make_trials<BITS>(min, max, trials);
    add_up(squares, aims, LEVELS, trials);
    if (lane_id() == 0) keep_best(trials, fits, channel);
    sync_warp();
    float scale = fits.scale[channel], zero = fits.zero[channel];
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        uint32_t token = half * 32 + lane_id();
        uint32_t code = quantise<BITS>(aims[half], fits, channel);
        *codes.at(token, channel) = uint8_t(code);
        float* x = tile.at(token, channel);
        *x = sub_rn(add_rn(mul_rn(float(code), scale), zero), *x);
    }
}

// Seals keys; `feedback` is that of their stream, `float [d·(d − 1)/2]`.
template <class T, uint32_t BITS>
DEVICE void seal_fed(uint64_t from, uint64_t to, uint64_t feedback, uint32_t head_dim) {
    FloatTile tile{shared_memory(), head_dim};
    uint32_t tile_bytes = TILE_TOKENS * FloatTile::row_bytes(head_dim);
    Fits fits = fits_behind(tile_bytes, head_dim);
    CodeTile codes{shared_memory() + tile_bytes + 8 * head_dim, head_dim};
    Squares squares{reinterpret_cast<float*>(codes.bytes + TILE_TOKENS * head_dim)};
    load_rotated<T>(tile, from);
    if (warp_id() == 0) {
        const float* weights = address<const float>(feedback);
        for (uint32_t channel = 0; channel < head_dim; ++channel) {
            aim_channel<BITS>(tile, codes, fits, squares, weights, channel);
            weights += channel;
        }
    }
    sync_block();
    write_codes<BITS, SEARCH_GROUP, KEY>(codes, Coded{}, to);
    write_fits(fits, head_dim, to + TILE_TOKENS * head_dim * BITS / 8);
}

} // namespace cache
