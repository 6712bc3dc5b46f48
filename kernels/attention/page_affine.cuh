// Halves of a sealed page of codes (src/codec/affine.rs), GROUP elements to a scale and
// a zero:
//
//   keys    | codes | scale f16 [64/GROUP][D] | zero f16 [64/GROUP][D] |
//   values  | codes | scale f16 [D/GROUP][64] | zero f16 [D/GROUP][64] |
//
// Codes are stored as A operands (src/codec/fragment.rs). Two of A's registers are
// a B operand of the same elements: registers 0 and 2 hold n = rows 0–7, 1 and 3
// hold n = rows 8–15. So a word of codes becomes the words that the same lane
// wants in both products, and the tile keeps them in that order:
//
//   tile  | [block of 16 n][step of 16 k][lane] × 16 bytes |
//
// with n = tokens, k = channels for keys, n = channels, k = tokens for values.
#pragma once

#include "attention/rows.cuh"

template <int D> struct FragmentTile {
    static constexpr uint32_t BYTES = 64 * 2 * D;

    static DEVICE void keys(uint32_t (&b)[4], uint32_t tile, int block, int j) {
        load_fragment(b, shared_memory() + tile, block * (D / 16) + j);
    }
    static DEVICE void values(uint32_t (&b)[4], uint32_t tile, int block, int j) {
        load_fragment(b, shared_memory() + tile, block * 4 + j);
    }
};

// The order of codes: a unit has SPAN elements along k in WORDS words.
template <int BITS> struct Units {
    static constexpr uint32_t SPAN = BITS == 3 ? 64 : 64 / BITS;
    static constexpr uint32_t WORDS = BITS == 3 ? 3 : 1;
    static constexpr uint32_t STEPS = SPAN / 16;
};

// Register r of a unit of codes as a pair of f16 integers. Under the mantissa of
// 1024 a code at bit b counts 2^b; one exact FMA takes both off again.
template <int BITS> DEVICE uint32_t code_pair(const uint32_t (&unit)[Units<BITS>::WORDS], int r) {
    constexpr int PER_WORD = 16 / BITS, IN_PLACE = 10 / BITS; // registers of a word, and within a mantissa
    constexpr uint32_t MASK = (1u << BITS) - 1;
    uint32_t x;
    int bit = 0;
    if (BITS == 3 && r == 15) { // the highest bits of the words
        constexpr int LAST = Units<BITS>::WORDS - 1;
        x = ((unit[0] >> 15) & 0x00010001) | ((unit[LAST / 2] >> 14) & 0x00020002) | ((unit[LAST] >> 13) & 0x00040004);
    } else {
        int shift = r % PER_WORD / IN_PLACE * IN_PLACE * BITS;
        bit = r % PER_WORD % IN_PLACE * BITS;
        x = (unit[r / PER_WORD] >> shift) & (MASK << bit) * 0x10001u;
    }
    uint32_t factor = uint32_t(15 - bit) << 10;          // 2^−bit
    uint32_t minus = 0x8000u | uint32_t(25 - bit) << 10; // −1024 · 2^−bit
    return fma_f16x2(x | 0x64006400u, factor * 0x10001u, minus * 0x10001u);
}

// A half with D channels and 64 tokens. N of its elements lie along n, K along k.
template <int BITS, int D, int GROUP, int N, int K> struct AffineHalf {
    static constexpr uint32_t CODES = 64 * D * BITS / 8;   // bytes
    static constexpr uint32_t PARAMS = 64 * D / GROUP * 2; // bytes of scales, and of zeros
    static constexpr uint32_t BYTES = CODES + 2 * PARAMS;
    static constexpr uint32_t SPAN = Units<BITS>::SPAN, WORDS = Units<BITS>::WORDS, STEPS = Units<BITS>::STEPS;
    static constexpr uint32_t BLOCKS = BITS == 3 ? 1 : 2; // of 16 n that share the scales that are read

    // The block converts a half from `raw` to `tile`: code · scale + zero, rounded
    // once. `unit` gives the index of (block of 16 n, span). A warp takes BLOCKS blocks
    // over one span at a time.
    template <class Unit> static DEVICE void unpack(uint8_t* tile, const uint8_t* raw, Unit unit) {
        constexpr uint32_t SPANS = K / SPAN, WARPS_ALONG = SPANS < 4 ? SPANS : 4, WARPS_ACROSS = 4 / WARPS_ALONG;
        static_assert(N / 16 / BLOCKS % WARPS_ACROSS == 0 && SPANS % WARPS_ALONG == 0, "equal shares");
        uint32_t first_part = warp_id() / WARPS_ALONG, first_span = warp_id() % WARPS_ALONG;
        UNROLL
        for (uint32_t part = 0; part < N / 16 / BLOCKS; part += WARPS_ACROSS) {
            UNROLL
            for (uint32_t s = 0; s < SPANS; s += WARPS_ALONG)
                unpack_part(tile, raw, first_part + part, first_span + s, unit);
        }
    }

  private:
    template <class Unit>
    static DEVICE void unpack_part(uint8_t* tile, const uint8_t* raw, uint32_t part, uint32_t span, Unit unit) {
        uint32_t lane = lane_id(), group = part / (GROUP / 16 / BLOCKS);
        const uint8_t* params = raw + CODES + (group * K + span * SPAN + lane % 4 * 2) * 2;
        uint32_t words[BLOCKS][WORDS];
        UNROLL
        for (uint32_t i = 0; i < BLOCKS; ++i) {
            const uint8_t* codes = raw + unit(BLOCKS * part + i, span) * (WORDS * 128) + lane * 4;
            UNROLL
            for (uint32_t w = 0; w < WORDS; ++w) words[i][w] = *reinterpret_cast<const uint32_t*>(codes + w * 128);
        }
        UNROLL
        for (uint32_t j = 0; j < STEPS; ++j) {
            uint32_t scale[2], zero[2]; // of k = 2t, + 1 and 8 + 2t, + 1
            UNROLL
            for (uint32_t h = 0; h < 2; ++h) {
                scale[h] = *reinterpret_cast<const uint32_t*>(params + 32 * j + 16 * h);
                zero[h] = *reinterpret_cast<const uint32_t*>(params + PARAMS + 32 * j + 16 * h);
            }
            UNROLL
            for (uint32_t i = 0; i < BLOCKS; ++i) {
                Vec16 x;
                UNROLL
                for (uint32_t w = 0; w < 4; ++w) { // rows 0–7 or 8–15, then k 0–7 or 8–15
                    uint32_t code = code_pair<BITS>(words[i], 4 * j + w / 2 + w % 2 * 2);
                    x.w[w] = fma_f16x2(code, scale[w % 2], zero[w % 2]);
                }
                uint32_t index = (BLOCKS * part + i) * (K / 16) + span * STEPS + j;
                reinterpret_cast<Vec16*>(tile)[index * 32 + lane] = x;
            }
        }
    }
};

template <int BITS, int D, int GROUP> struct AffineKeyHalf : AffineHalf<BITS, D, GROUP, 64, D> {
    using Tile = FragmentTile<D>;
    using Half = AffineHalf<BITS, D, GROUP, 64, D>;
    static DEVICE void unpack(uint8_t* tile, const uint8_t* raw) {
        Half::unpack(tile, raw, [](uint32_t block, uint32_t span) { return block * (D / Half::SPAN) + span; });
    }
};

template <int BITS, int D, int GROUP> struct AffineValueHalf : AffineHalf<BITS, D, GROUP, D, 64> {
    using Tile = FragmentTile<D>;
    using Half = AffineHalf<BITS, D, GROUP, D, 64>;
    static DEVICE void unpack(uint8_t* tile, const uint8_t* raw) {
        Half::unpack(tile, raw, [](uint32_t block, uint32_t span) { return span * (D / 16) + block; });
    }
};

template <int BITS, int D> using KiviKeyHalf = AffineKeyHalf<BITS, D, 32>;
template <int BITS, int D> using KiviValueHalf = AffineValueHalf<BITS, D, 32>;
template <int BITS, int D> using RotatedKeyHalf = AffineKeyHalf<BITS, D, 64>;
template <int BITS, int D> using RotatedValueHalf = AffineValueHalf<BITS, D, 64>;

// Rotates the f16 keys of a FragmentTile back, in place, by the block's four warps.
template <int D> DEVICE void rotate_key_fragments(uint8_t* tile) {
    Vec16* block = reinterpret_cast<Vec16*>(tile) + warp_id() * (D / 16 * 32) + lane_id();
    NO_UNROLL
    for (int half = 0; half < 2; ++half) { // of 16 tokens
        uint32_t words[D / 8];
        UNROLL
        for (int i = 0; i < D / 8; ++i) words[i] = block[i / 2 * 32].w[2 * half + i % 2];
        rotate_words<D>(words);
        UNROLL
        for (int i = 0; i < D / 8; ++i) block[i / 2 * 32].w[2 * half + i % 2] = words[i];
    }
}
