// Keys of kvfold's own codecs with error feedback (src/codec/feedback.rs): channels are
// encoded one after the other, each aimed at what makes the errors before it good.
//
//   begin_panel  numbers of 16 channels, errors of all before → their aims so far
//   aim_channel  a channel's aims → its range, codes and errors → aims of the rest
//   end_panel    errors and codes → FloatTile, CodeTile
//
// Channels wait for each other, and the order of a channel's sums is given. So what can be
// done at once is spread over the warps: each has four channels of a panel, whose aims its
// lanes keep (of tokens `lane` and `lane + 32`) and subtract each error from as soon as it
// is known; and each tries one of the four ranges. All warps hold the channel in hand, of
// which the last error is subtracted by each for itself: one barrier a channel.
#pragma once

#include "cache/seal_rotated.cuh"

namespace cache {

constexpr uint32_t PANEL = 16;
constexpr uint32_t OWN = PANEL / SEAL_WARPS; // channels of a panel that are a warp's
static_assert(OWN == 4, "a warp's channels are one vector");
static_assert(RATIOS == SEAL_WARPS, "each warp tries a range");

// Codes of a page half in shared memory, a byte each, [token][channel]. Rows are a word
// longer than their content, so that a column lies in different banks.
struct CodeTile {
    uint8_t* bytes;
    uint32_t head_dim;

    DEVICE uint8_t* at(uint32_t token, uint32_t channel) const { return bytes + token * (head_dim + 4) + channel; }
    DEVICE Pair pair(uint32_t token, uint32_t channel) const {
        const uint8_t* code = at(token, channel);
        return {float(code[0]), float(code[1])};
    }
};

// Stands for Fits where numbers are codes already.
struct Coded {};
template <uint32_t BITS> DEVICE uint32_t quantise(float code, Coded, uint32_t) { return uint32_t(code); }

// A token of the channel in hand: its aim, but for the errors of the channel before, and
// its number.
struct alignas(8) Aimed {
    float aim, number;
};

// What the warps share.
struct Feeding {
    FloatTile tile; // numbers, and from channel to channel errors in their place
    Fits fits;
    CodeTile codes;
    Aimed* aimed;         // [2][64]: of the channel in hand and of the next
    float* squares;       // [warp][64]
    Vec16* trials;        // [2][RATIOS]: error, scale, zero
    const float* weights; // [channel][later channel]
};

// What a lane keeps of its warp's channels of a panel.
struct Panel {
    uint32_t first; // channel
    float aims[OWN][2];
    float numbers[OWN][2]; // then errors
    uint32_t codes[2];
    float ahead; // weight of the last errors in the channel in hand
};

DEVICE uint32_t token_of(uint32_t half) { return half * 32 + lane_id(); }
DEVICE Vec16 vector_at(const float* x) { return *reinterpret_cast<const Vec16*>(x); }

// Integers that are ordered as the numbers are.
DEVICE uint32_t ordered(float x) {
    uint32_t bits = float_bits(x);
    return bits ^ (bits >> 31 ? ~0u : 0x80000000u);
}
DEVICE float of_ordered(uint32_t x) { return bits_float(x ^ (x >> 31 ? 0x80000000u : ~0u)); }

// Shows all warps channel `at` of the panel, if it is this warp's.
DEVICE void show(const Feeding& fed, const Panel& panel, uint32_t at) {
    if (at / OWN != warp_id()) return;
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        Aimed shown{};
        UNROLL
        for (uint32_t i = 0; i < OWN; ++i) {
            Aimed own{panel.aims[i][half], panel.numbers[i][half]};
            if (i == at % OWN) shown = own;
        }
        fed.aimed[at % 2 * TILE_TOKENS + token_of(half)] = shown;
    }
}

// aims −= weights · errors, of one channel's errors.
DEVICE void subtract(Panel& panel, Vec16 weights, const float (&errors)[2]) {
    UNROLL
    for (uint32_t i = 0; i < OWN; ++i) {
        UNROLL
        for (uint32_t half = 0; half < 2; ++half) {
            float share = mul_rn(bits_float(weights.w[i]), errors[half]);
            panel.aims[i][half] = sub_rn(panel.aims[i][half], share);
        }
    }
}

DEVICE void begin_panel(const Feeding& fed, Panel& panel, uint32_t first) {
    uint32_t own = first + OWN * warp_id(), d = fed.tile.head_dim;
    panel.first = first, panel.codes[0] = panel.codes[1] = 0, panel.ahead = 0.0f;
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        Vec16 x = vector_at(fed.tile.at(token_of(half), own));
        UNROLL
        for (uint32_t i = 0; i < OWN; ++i) panel.aims[i][half] = panel.numbers[i][half] = bits_float(x.w[i]);
    }
    for (uint32_t channel = 0; channel < first; channel += 4) {
        Vec16 low = vector_at(fed.tile.at(token_of(0), channel)), high = vector_at(fed.tile.at(token_of(1), channel));
        UNROLL
        for (uint32_t i = 0; i < 4; ++i) {
            Vec16 weights = load(reinterpret_cast<const Vec16*>(fed.weights + (channel + i) * d + own));
            subtract(panel, weights, {bits_float(low.w[i]), bits_float(high.w[i])});
        }
    }
    show(fed, panel, 0);
    show(fed, panel, 1);
    sync_block();
}

// The range of a channel: every warp tries one, then all know the best.
template <uint32_t BITS> DEVICE Trial search(const Feeding& fed, const float (&aims)[2], uint32_t channel) {
    uint32_t least = warp_min(ordered(min_of(aims[0], aims[1]))), most = warp_max(ordered(max_of(aims[0], aims[1])));
    Trial trial = make_trial<BITS>(of_ordered(least), of_ordered(most), trial_ratio(warp_id()));
    float* squares = fed.squares + warp_id() * TILE_TOKENS;
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) squares[token_of(half)] = trial.square(aims[half], float((1u << BITS) - 1));
    sync_warp();
    UNROLL
    for (uint32_t token = 0; token < TILE_TOKENS; token += 4) {
        Vec16 four = vector_at(squares + token);
        UNROLL
        for (uint32_t i = 0; i < 4; ++i) trial.error = add_rn(trial.error, bits_float(four.w[i]));
    }
    Vec16* trials = fed.trials + channel % 2 * RATIOS;
    if (lane_id() == 0) {
        trials[warp_id()] = {float_bits(trial.error), float_bits(trial.scale), float_bits(trial.zero), 0};
    }
    sync_block();
    Trial all[RATIOS];
    UNROLL
    for (uint32_t i = 0; i < RATIOS; ++i) {
        Vec16 x = trials[i];
        all[i] = {bits_float(x.w[1]), bits_float(x.w[2]), 0.0f, bits_float(x.w[0])};
    }
    return best_of(all);
}

// Channel `at` of the panel; `errors` are those of the channel before, then its own.
template <uint32_t BITS> DEVICE void aim_channel(const Feeding& fed, Panel& panel, uint32_t at, float (&errors)[2]) {
    uint32_t channel = panel.first + at;
    // Asked for early, needed late.
    const float* row = fed.weights + channel * fed.tile.head_dim;
    Vec16 weights = load(reinterpret_cast<const Vec16*>(row + panel.first + OWN * warp_id()));
    float ahead = at + 1 < PANEL ? load(row + channel + 1) : 0.0f;
    float aims[2], numbers[2];
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        Aimed x = fed.aimed[at % 2 * TILE_TOKENS + token_of(half)];
        float aim = at == 0 ? x.aim : sub_rn(x.aim, mul_rn(panel.ahead, errors[half]));
        aims[half] = limited(add_rn(aim, 0.0f)), numbers[half] = x.number;
    }
    Trial best = search<BITS>(fed, aims, channel);
    bool own = at / OWN == warp_id();
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        uint32_t code = quantise<BITS>(aims[half], best.scale, best.zero);
        errors[half] = sub_rn(add_rn(mul_rn(float(code), best.scale), best.zero), numbers[half]);
        if (own) panel.codes[half] |= code << at % OWN * 8;
        UNROLL
        for (uint32_t i = 0; i < OWN; ++i) {
            float number = panel.numbers[i][half];
            panel.numbers[i][half] = own && i == at % OWN ? errors[half] : number;
        }
    }
    if (threadIdx.x == 0) fed.fits.scale[channel] = best.scale, fed.fits.zero[channel] = best.zero;
    // A weight of 0 leaves what is done alone.
    subtract(panel, weights, errors);
    panel.ahead = ahead;
    show(fed, panel, at + 2);
}

DEVICE void end_panel(const Feeding& fed, const Panel& panel) {
    uint32_t own = panel.first + OWN * warp_id();
    UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
        Vec16 errors;
        UNROLL
        for (uint32_t i = 0; i < OWN; ++i) errors.w[i] = float_bits(panel.numbers[i][half]);
        *reinterpret_cast<Vec16*>(fed.tile.at(token_of(half), own)) = errors;
        *reinterpret_cast<uint32_t*>(fed.codes.at(token_of(half), own)) = panel.codes[half];
    }
    sync_block();
}

// Seals keys; `weights` are those of their stream, `float [d][d]`.
template <class T, uint32_t BITS>
DEVICE void seal_fed(uint64_t from, uint64_t to, uint64_t weights, uint32_t head_dim) {
    FloatTile tile{shared_memory(), head_dim};
    uint32_t tile_bytes = TILE_TOKENS * FloatTile::row_bytes(head_dim);
    CodeTile codes{shared_memory() + tile_bytes + 8 * head_dim, head_dim};
    uint8_t* behind = codes.at(TILE_TOKENS, 0);
    float* squares = reinterpret_cast<float*>(behind + 2 * TILE_TOKENS * sizeof(Aimed));
    Feeding fed{tile,
                fits_behind(tile_bytes, head_dim),
                codes,
                reinterpret_cast<Aimed*>(behind),
                squares,
                reinterpret_cast<Vec16*>(squares + SEAL_WARPS * TILE_TOKENS),
                address<const float>(weights)};
    load_rotated<T>(tile, from);
    Panel panel;
    for (uint32_t first = 0; first < head_dim; first += PANEL) {
        begin_panel(fed, panel, first);
        float errors[2] = {0.0f, 0.0f};
        NO_UNROLL
        for (uint32_t at = 0; at < PANEL; ++at) aim_channel<BITS>(fed, panel, at, errors);
        end_panel(fed, panel);
    }
    write_codes<BITS, SEARCH_GROUP, KEY>(codes, Coded{}, to);
    write_fits(fed.fits, head_dim, to + TILE_TOKENS * head_dim * BITS / 8);
}

} // namespace cache
