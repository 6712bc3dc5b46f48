// One half of a page as affine codes (src/codec/affine.rs): fit a scale and a zero
// to each group, round them to f16, write codes in fragment order
// (src/codec/fragment.rs). KIVI fits them to extremes; kvfold's own codecs
// (seal_rotated.cuh) share all but the tile and the fit.
//
// Arithmetic is defined to the last bit: f32, one IEEE rounding an operation.
#pragma once

#include "cache/seal_job.cuh"

namespace cache {

constexpr uint32_t SEAL_WARPS = SEAL_THREADS / 32;

// A page half in shared memory, 16-bit, [token][channel]. Rows are 16 bytes longer
// than their content, so that eight rows at one column lie in different banks.
template <class T> struct Tile {
    uint8_t* bytes;
    uint32_t head_dim;

    static constexpr DEVICE uint32_t row_bytes(uint32_t head_dim) { return 2 * head_dim + 16; }
    DEVICE uint8_t* at(uint32_t token, uint32_t channel) const {
        return bytes + token * row_bytes(head_dim) + 2 * channel;
    }
    DEVICE float one(uint32_t token, uint32_t channel) const {
        return T::widen(*reinterpret_cast<const uint16_t*>(at(token, channel)));
    }
    // Channels `channel` (even) and the next.
    DEVICE Pair pair(uint32_t token, uint32_t channel) const {
        return unpack<T>(*reinterpret_cast<const uint32_t*>(at(token, channel)));
    }
};

// Scales and zeros, rounded to f16, as f32 in shared memory, in the order of the
// sealed page: keys [64/GROUP][d], values [d/GROUP][64].
struct Fits {
    float* scale;
    float* zero;
};

template <class T> DEVICE void load_tile(Tile<T> tile, uint64_t from) {
    uint32_t vectors = tile.head_dim / 8; // of a row
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * vectors; i += SEAL_THREADS) {
        cp_async16(tile.at(i / vectors, i % vectors * 8), address<const Vec16>(from) + i);
    }
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
}

// The smallest and the largest number of a group so far.
struct Range {
    float min = bits_float(0x7f800000), max = bits_float(0xff800000);

    DEVICE void add(float x) {
        min = min_of(x, min);
        max = max_of(x, max);
    }
    // Adding +0 turns −0 to +0: which of them is the smaller is not defined.
    template <uint32_t BITS> DEVICE void fit(Fits to, uint32_t group) const {
        float low = add_rn(min, 0.0f), high = add_rn(max, 0.0f);
        float scale = div_rn(sub_rn(high, low), float((1u << BITS) - 1));
        to.scale[group] = f16_float(float_f16(scale));
        to.zero[group] = f16_float(float_f16(low));
    }
};

// Keys: a thread fits two channels over GROUP tokens.
template <class T, uint32_t BITS, uint32_t GROUP> DEVICE void fit_keys(Tile<T> tile, Fits to) {
    uint32_t pairs = tile.head_dim / 2;
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS / GROUP * pairs; i += SEAL_THREADS) {
        uint32_t block = i / pairs, channel = i % pairs * 2;
        Range low, high;
        for (uint32_t token = 0; token < GROUP; ++token) {
            Pair x = tile.pair(block * GROUP + token, channel);
            low.add(x.low);
            high.add(x.high);
        }
        low.template fit<BITS>(to, block * tile.head_dim + channel);
        high.template fit<BITS>(to, block * tile.head_dim + channel + 1);
    }
}

// Values: a thread fits GROUP channels of a token; neighbours take neighbouring tokens.
template <class T, uint32_t BITS, uint32_t GROUP> DEVICE void fit_values(Tile<T> tile, Fits to) {
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * tile.head_dim / GROUP; i += SEAL_THREADS) {
        uint32_t token = i % TILE_TOKENS, first = i / TILE_TOKENS * GROUP;
        Range range;
        for (uint32_t channel = first; channel < first + GROUP; channel += 8) {
            Vec16 v = *reinterpret_cast<const Vec16*>(tile.at(token, channel));
            UNROLL
            for (uint32_t w = 0; w < 4; ++w) {
                Pair x = unpack<T>(v.w[w]);
                range.add(x.low);
                range.add(x.high);
            }
        }
        range.template fit<BITS>(to, i);
    }
}

// clamp(rint((x − zero) / scale)). Clamping first is the same, as the bounds are
// integers. A scale of 0 gives code 0, and so does NaN.
template <uint32_t BITS> DEVICE uint32_t quantise(float x, float scale, float zero) {
    if (scale == 0.0f) return 0;
    float code = div_rn(sub_rn(x, zero), scale);
    return uint32_t(rint_rn(min_of(max_of(code, 0.0f), float((1u << BITS) - 1))));
}
template <uint32_t BITS> DEVICE uint32_t quantise(float x, Fits fits, uint32_t group) {
    return quantise<BITS>(x, fits.scale[group], fits.zero[group]);
}

// The order of codes of BITS bits, as src/codec/fragment.rs has it.
template <uint32_t BITS> struct Fragments {
    static constexpr uint32_t SPAN = BITS == 3 ? 64 : 64 / BITS; // elements along k of a unit
    static constexpr uint32_t WORDS = SPAN * BITS / 64;          // of a unit, of one thread
    static constexpr uint32_t REGISTERS = SPAN / 4;

    // Puts a register's two codes in their place: side by side at some bit, but for the
    // last of 3 bits, whose bits are the highest of three words.
    static DEVICE void put(uint32_t (&words)[WORDS], uint32_t r, uint32_t even, uint32_t odd) {
        uint32_t pair = even | odd << 16;
        if constexpr (BITS == 3) {
            if (r == 15) {
                UNROLL
                for (uint32_t i = 0; i < 3; ++i) words[i] |= (pair >> i & 0x10001) << 15;
            } else {
                words[r / 5] |= pair << r % 5 * 3;
            }
        } else {
            words[0] |= pair << BITS * r;
        }
    }
};

// The words that lane 4·g + t holds of unit (outer, inner): register r has
// row g + 8·(r%2) and k = 2t + 8·(r/2%2) + 16·(r/4), and the next k 16 bits up.
template <uint32_t BITS, uint32_t GROUP, Side SIDE, class Tile, class Fits>
DEVICE void code_words(Tile tile, Fits fits, uint32_t outer, uint32_t inner, uint32_t (&words)[Fragments<BITS>::WORDS]) {
    constexpr uint32_t SPAN = Fragments<BITS>::SPAN;
    uint32_t g = lane_id() / 4, t = lane_id() % 4;
    UNROLL
    for (uint32_t i = 0; i < Fragments<BITS>::WORDS; ++i) words[i] = 0;
    UNROLL
    for (uint32_t r = 0; r < Fragments<BITS>::REGISTERS; ++r) {
        uint32_t row = g + r % 2 * 8, k = 2 * t + r / 2 % 2 * 8 + r / 4 * 16;
        uint32_t even, odd;
        if constexpr (SIDE == KEY) {
            uint32_t token = outer * 16 + row, channel = inner * SPAN + k;
            uint32_t group = token / GROUP * tile.head_dim + channel;
            Pair x = tile.pair(token, channel);
            even = quantise<BITS>(x.low, fits, group);
            odd = quantise<BITS>(x.high, fits, group + 1);
        } else {
            uint32_t token = outer * SPAN + k, channel = inner * 16 + row;
            uint32_t group = channel / GROUP * TILE_TOKENS + token;
            even = quantise<BITS>(tile.one(token, channel), fits, group);
            odd = quantise<BITS>(tile.one(token + 1, channel), fits, group + 1);
        }
        Fragments<BITS>::put(words, r, even, odd);
    }
}

// Units lie [outer][inner]: keys [token block of 16][channel span], values
// [token span][channel block of 16]; the fragments of one follow each other. A warp
// writes one unit at a time.
template <uint32_t BITS, uint32_t GROUP, Side SIDE, class Tile, class Fits>
DEVICE void write_codes(Tile tile, Fits fits, uint64_t to) {
    constexpr uint32_t SPAN = Fragments<BITS>::SPAN, WORDS = Fragments<BITS>::WORDS;
    constexpr uint32_t OUTER = TILE_TOKENS / (SIDE == KEY ? 16 : SPAN);
    static_assert(SEAL_WARPS % OUTER == 0, "warps share the outer units equally");
    uint32_t n_inner = tile.head_dim / (SIDE == KEY ? SPAN : 16);
    uint32_t outer = warp_id() % OUTER;
    for (uint32_t inner = warp_id() / OUTER; inner < n_inner; inner += SEAL_WARPS / OUTER) {
        uint32_t words[WORDS];
        code_words<BITS, GROUP, SIDE>(tile, fits, outer, inner, words);
        uint32_t* unit = address<uint32_t>(to) + (outer * n_inner + inner) * WORDS * 32 + lane_id();
        UNROLL
        for (uint32_t i = 0; i < WORDS; ++i) store(unit + 32 * i, words[i]);
    }
}

// All scales, then all zeros, in f16.
DEVICE void write_fits(Fits fits, uint32_t groups, uint64_t to) {
    uint32_t* words = address<uint32_t>(to);
    for (uint32_t i = threadIdx.x; i < groups / 2; i += SEAL_THREADS) {
        store(words + i, pack_f16(fits.scale[2 * i], fits.scale[2 * i + 1]));
        store(words + groups / 2 + i, pack_f16(fits.zero[2 * i], fits.zero[2 * i + 1]));
    }
}

// The codes of a fitted tile, then scales and zeros.
template <uint32_t BITS, uint32_t GROUP, Side SIDE, class Tile>
DEVICE void write_affine(Tile tile, Fits fits, uint64_t to) {
    write_codes<BITS, GROUP, SIDE>(tile, fits, to);
    write_fits(fits, TILE_TOKENS * tile.head_dim / GROUP, to + TILE_TOKENS * tile.head_dim * BITS / 8);
}

// Scales and zeros behind a tile's `bytes` bytes of shared memory.
DEVICE Fits fits_behind(uint32_t bytes, uint32_t groups) {
    float* numbers = reinterpret_cast<float*>(shared_memory() + bytes);
    return {numbers, numbers + groups};
}

// KIVI: GROUP numbers as they are.
template <class T, uint32_t BITS, uint32_t GROUP, Side SIDE>
DEVICE void seal_affine(uint64_t from, uint64_t to, uint32_t head_dim) {
    Tile<T> tile{shared_memory(), head_dim};
    Fits fits = fits_behind(TILE_TOKENS * Tile<T>::row_bytes(head_dim), TILE_TOKENS * head_dim / GROUP);
    load_tile(tile, from);
    if constexpr (SIDE == KEY) {
        fit_keys<T, BITS, GROUP>(tile, fits);
    } else {
        fit_values<T, BITS, GROUP>(tile, fits);
    }
    sync_block();
    write_affine<BITS, GROUP, SIDE>(tile, fits, to);
}

} // namespace cache
