// Halves of a sealed KIVI page (src/codec/affine.rs):
//
//   keys    | codes | scale f16 [64/32][D] | zero f16 [64/32][D] |
//   values  | codes | scale f16 [D/32][64] | zero f16 [D/32][64] |
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

// Register r of a word of codes as a pair of f16 integers. Under the mantissa of
// 1024 a code at bit b counts 2^b; one exact FMA takes both off again.
template <int BITS> DEVICE uint32_t code_pair(uint32_t word, int r) {
    constexpr int IN_PLACE = 10 / BITS; // registers that lie within a mantissa
    constexpr uint32_t MASK = (1u << BITS) - 1;
    int shift = r / IN_PLACE * IN_PLACE * BITS, bit = r % IN_PLACE * BITS;
    uint32_t x = ((word >> shift) & (MASK << bit) * 0x10001u) | 0x64006400u;
    uint32_t factor = uint32_t(15 - bit) << 10;          // 2^−bit
    uint32_t minus = 0x8000u | uint32_t(25 - bit) << 10; // −1024 · 2^−bit
    return fma_f16x2(x, factor * 0x10001u, minus * 0x10001u);
}

// A half with D channels and 64 tokens in groups of 32. N of its elements lie
// along n, K along k.
template <int BITS, int D, int N, int K> struct KiviHalf {
    static constexpr uint32_t CODES = 64 * D * BITS / 8; // bytes
    static constexpr uint32_t PARAMS = 64 * D / 32 * 2;  // bytes of scales, and of zeros
    static constexpr uint32_t BYTES = CODES + 2 * PARAMS;
    static constexpr uint32_t SPAN = 64 / BITS; // k of a word
    static constexpr uint32_t STEPS = SPAN / 16;

    // The block converts a half from `raw` to `tile`: code · scale + zero, rounded
    // once. `fragment` gives the index of (block of 16 n, span). A warp takes 32 n,
    // which share scales, over one span at a time.
    template <class Fragment> static DEVICE void unpack(uint8_t* tile, const uint8_t* raw, Fragment fragment) {
        constexpr uint32_t SPANS = K / SPAN, WARPS_ALONG = SPANS < 4 ? SPANS : 4, WARPS_ACROSS = 4 / WARPS_ALONG;
        static_assert(N / 32 % WARPS_ACROSS == 0 && SPANS % WARPS_ALONG == 0, "equal shares");
        uint32_t first_group = warp_id() / WARPS_ALONG, first_span = warp_id() % WARPS_ALONG;
        UNROLL
        for (uint32_t g = 0; g < N / 32; g += WARPS_ACROSS) {
            UNROLL
            for (uint32_t s = 0; s < SPANS; s += WARPS_ALONG)
                unpack_unit(tile, raw, first_group + g, first_span + s, fragment);
        }
    }

  private:
    template <class Fragment>
    static DEVICE void unpack_unit(uint8_t* tile, const uint8_t* raw, uint32_t group, uint32_t span,
                                   Fragment fragment) {
        uint32_t lane = lane_id();
        const uint8_t* params = raw + CODES + (group * K + span * SPAN + lane % 4 * 2) * 2;
        uint32_t scale[2 * STEPS], zero[2 * STEPS]; // of k = 8i + 2t, + 1
        UNROLL
        for (uint32_t j = 0; j < 2 * STEPS; ++j) {
            scale[j] = *reinterpret_cast<const uint32_t*>(params + 16 * j);
            zero[j] = *reinterpret_cast<const uint32_t*>(params + PARAMS + 16 * j);
        }
        UNROLL
        for (uint32_t half = 0; half < 2; ++half) {
            uint32_t block = 2 * group + half;
            uint32_t word = reinterpret_cast<const uint32_t*>(raw)[fragment(block, span) * 32 + lane];
            UNROLL
            for (uint32_t j = 0; j < STEPS; ++j) {
                Vec16 x;
                UNROLL
                for (uint32_t w = 0; w < 4; ++w) { // rows 0–7 or 8–15, then k 0–7 or 8–15
                    uint32_t code = code_pair<BITS>(word, 4 * j + w / 2 + w % 2 * 2);
                    x.w[w] = fma_f16x2(code, scale[2 * j + w % 2], zero[2 * j + w % 2]);
                }
                uint32_t index = block * (K / 16) + span * STEPS + j;
                reinterpret_cast<Vec16*>(tile)[index * 32 + lane] = x;
            }
        }
    }
};

template <int BITS, int D> struct KiviKeyHalf : KiviHalf<BITS, D, 64, D> {
    using Tile = FragmentTile<D>;
    using Half = KiviHalf<BITS, D, 64, D>;
    static DEVICE void unpack(uint8_t* tile, const uint8_t* raw) {
        Half::unpack(tile, raw, [](uint32_t block, uint32_t span) { return block * (D / Half::SPAN) + span; });
    }
};

template <int BITS, int D> struct KiviValueHalf : KiviHalf<BITS, D, D, 64> {
    using Tile = FragmentTile<D>;
    using Half = KiviHalf<BITS, D, D, 64>;
    static DEVICE void unpack(uint8_t* tile, const uint8_t* raw) {
        Half::unpack(tile, raw, [](uint32_t block, uint32_t span) { return span * (D / 16) + block; });
    }
};
