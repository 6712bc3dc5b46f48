// What a block of decode attention works with: forms of pages, its size and that of its shared
// memory, and what lies there.
#pragma once

#include "attention/record.cuh"
#include "attention/tile_fp8.cuh"
#include "attention/tile_half.cuh"
#include "attention/tile_kivi.cuh"
#include "attention/tile_rotated.cuh"
#include "attention/walk.cuh"

// How sealed pages of a kernel are stored.
template <class K, class V> struct Sealed {
    using Keys = K;
    using Values = V;
    static constexpr bool ROTATED = false;
    static constexpr bool FOLDS = V::FOLDS; // f16 weights are multiplied by scales
    static constexpr uint32_t TOKENS = K::TOKENS; // of a tile
    static constexpr uint32_t BYTES = K::BYTES + V::BYTES;

    // Starts the copy of tile k, which is in this page.
    static DEVICE void issue(uint8_t* shared, const uint8_t* page, const Walk<TOKENS>& walk, uint32_t k) {
        K::issue(shared, page + walk.part(k) * K::BYTES);
        V::issue(shared + K::BYTES, page + walk.key_bytes + walk.part(k) * V::BYTES);
    }
};
// Rotated: a tile is a page, copied whole.
template <class K, class V> struct SealedRotated {
    using Keys = K;
    using Values = V;
    static constexpr bool ROTATED = true;
    static constexpr bool FOLDS = V::FOLDS;
    static constexpr uint32_t TOKENS = 64;
    static constexpr uint32_t BYTES = K::BYTES + V::BYTES;

    static DEVICE void issue(uint8_t* shared, const uint8_t* page, const Walk<TOKENS>&, uint32_t) {
        issue_straight<BYTES>(shared + lane_id() * 16, page + lane_id() * 16);
    }
};
// All pages have 16 bits.
struct NeverSealed {
    static constexpr bool ROTATED = false;
    static constexpr bool FOLDS = false;
    static constexpr uint32_t TOKENS = 16;
    static constexpr uint32_t BYTES = 0;
};

// Warps of a block: two where four would not fit the 99 KB of shared memory that
// a block has on the smaller devices.
constexpr int decode_warps(int d) { return d == 256 ? 2 : 4; }
constexpr int decode_threads(int d) { return 32 * decode_warps(d); }

// Two stages of 16-bit tiles and three of sealed ones, where 24 KB hold them.
constexpr uint32_t decode_warp_bytes(uint32_t half, uint32_t sealed) {
    uint32_t two = 2 * half > 2 * sealed ? 2 * half : 2 * sealed;
    uint32_t three = 3 * (sealed ? sealed : half) > two ? 3 * (sealed ? sealed : half) : two;
    return three <= 24576 ? three : two;
}

// Bytes of a merged state that is set aside: D channels, maximum and sum of each column.
constexpr uint32_t decode_aside_bytes(int d, int nt, bool rotated) { return rotated ? 8 * nt * (d + 2) * 4 : 0; }

// Shared memory of a multiprocessor that registers are shared out for: 100 KB on the
// smaller devices, whose registers would do for more blocks, else that of the largest.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int DECODE_SHARED = 100 * 1024;
#else
constexpr int DECODE_SHARED = 228 * 1024;
#endif

// Blocks that a multiprocessor is to hold, for which registers are limited: no more
// than fit its shared memory.
constexpr int decode_blocks(int d, int nt, uint32_t sealed, bool rotated) {
    int wanted = (d == 64 ? 4 : 3) - (nt - 1);
    int block = decode_warps(d) * decode_warp_bytes(64 * d, sealed) + decode_aside_bytes(d, nt, rotated) + 640;
    int fit = DECODE_SHARED / (block + 1024);
    return wanted < fit ? wanted : fit;
}

// What one warp works on, in shared memory: registers are dear.
struct alignas(8) WarpContext {
    uint8_t walk[72]; // a Walk, and before it what is read of its run
    uint32_t run;     // of the item's, counted on through the passes
    uint32_t halves;  // 1: the item has 16-bit tiles for it, of a rotated format
    uint32_t marked;  // 1: a column may have to be done again
    uint32_t tries;   // how often the item was begun again; the same in all warps
    float bases[4];   // what columns 4·warp, … then begin with
};

// What a block works on, in shared memory.
struct alignas(128) Context {
    union {
        AttendItem item;
        Columns columns; // of the item, which begins with them
    };
    AttendItem next; // arrives while `item` is worked on
    uint32_t index;  // of `next`, which is one if there are so many
    uint32_t n_items;
    WarpContext warps[4];

    // Starts the copy of item `number` to `next`, if it is one. By the first warp.
    DEVICE void ahead(const AttendParams& p, uint32_t number, uint32_t n) {
        static_assert(sizeof(AttendItem) % 16 == 0, "a lane copies 16 bytes");
        uint32_t lane = lane_id_anew();
        if (lane >= sizeof(AttendItem) / 16 || number >= n) return;
        const AttendItem* from = reinterpret_cast<const AttendItem*>(p.items) + number;
        cp_async16(reinterpret_cast<Vec16*>(&next) + lane, reinterpret_cast<const Vec16*>(from) + lane);
    }
};
static_assert(offsetof(AttendItem, last_query) == offsetof(Columns, last) &&
                  offsetof(AttendItem, column) == offsetof(Columns, column) &&
                  offsetof(AttendItem, sealed_bound) == offsetof(Columns, sealed_bound),
              "an item begins with its columns");
static_assert(sizeof(Context) == 640, "as src/backend/cuda/attend/launch.rs and decode_blocks have it");
