// The best tokens of a row, by count or by mass, found by radix selection: three passes,
// each of which counts and weighs tokens by the next 11 bits of their rank. Ranks are
// the logits' own bits, so that of the tokens left the fewest share a digit.
#pragma once

#include "dense/row.cuh"

namespace dense {

constexpr uint32_t BINS = 2048;

struct SampleShared {
    // A digit's tokens and what they weigh, in two words.
    uint32_t count[BINS], low[BINS], high[BINS];
    uint32_t warp_count[SAMPLE_WARPS];
    uint64_t warp_mass[SAMPLE_WARPS];
    // What one thread found.
    struct {
        uint32_t bin, count_before, count;
        uint64_t mass_before, need;
    } found;
};

DEVICE SampleShared& sample_shared() { return *reinterpret_cast<SampleShared*>(shared_memory()); }

// The best tokens: all of lower rank and the first `ties` of the `equal` ones of this rank.
struct Cut {
    uint32_t rank, ties, equal;
    uint64_t mass; // of all these
};

// What a cut is made by.
enum class By { COUNT, MASS };

DEVICE void clear_bins(SampleShared& s) {
    for (uint32_t i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) s.count[i] = s.low[i] = s.high[i] = 0;
}

// Two words, because shared memory adds 32 bits at a time; whoever makes the low one
// overflow carries.
DEVICE void add_to_bin(SampleShared& s, uint32_t bin, uint64_t weight) {
    atomic_add_shared(&s.count[bin], 1);
    uint32_t low = uint32_t(weight), high = uint32_t(weight >> 32);
    if (low) high += atomic_add_shared(&s.low[bin], low) + low < low;
    if (high) atomic_add_shared(&s.high[bin], high);
}

DEVICE uint64_t mass_of(const SampleShared& s, uint32_t bin) { return uint64_t(s.high[bin]) << 32 | s.low[bin]; }

// Finds the bin in which the count or mass from the first on reaches `need`; if `share`
// is given, that share of all mass instead. Warps total 64 bins each, then the one
// that has it looks again.
template <By BY> DEVICE void find_bin(SampleShared& s, uint64_t need, uint32_t share) {
    uint32_t bin = 64 * warp_id() + 2 * lane_id();
    uint32_t count = s.count[bin] + s.count[bin + 1];
    uint64_t mass = mass_of(s, bin) + mass_of(s, bin + 1);
    uint64_t counts = scan(count), masses = scan(mass);
    if (lane_id() == 31) {
        s.warp_count[warp_id()] = uint32_t(counts);
        s.warp_mass[warp_id()] = masses;
    }
    sync_block();
    uint64_t warp_counts = scan(s.warp_count[lane_id()]), warp_masses = scan(s.warp_mass[lane_id()]);
    if (share) need = share_above(shuffle64(warp_masses, 31), share);
    uint32_t there = first_lane(warp_ballot((BY == By::COUNT ? warp_counts : warp_masses) >= need));
    if (there == warp_id()) { // all lanes or none
        uint64_t count_before = shuffle64(warp_counts, there) - s.warp_count[there];
        uint64_t mass_before = shuffle64(warp_masses, there) - s.warp_mass[there];
        bool reached = (BY == By::COUNT ? count_before + counts : mass_before + masses) >= need;
        if (lane_id() == first_lane(warp_ballot(reached))) {
            count_before += counts - count;
            mass_before += masses - mass;
            uint64_t after_first = BY == By::COUNT ? count_before + s.count[bin] : mass_before + mass_of(s, bin);
            if (after_first < need) {
                count_before += s.count[bin];
                mass_before += mass_of(s, bin);
                ++bin;
            }
            s.found = {bin, uint32_t(count_before), s.count[bin], mass_before, need};
        }
    }
    sync_block();
}

// The fewest best tokens that are `need` many or weigh at least `need`; if `share` is
// given, at least that share of what all weigh, of 2^32. All threads get it.
// Weights are counted if `weigh` says so; masses need it.
template <By BY>
DEVICE Cut cut_at(const Row& row, float top, float scale, uint64_t need, uint32_t share, bool weigh) {
    SampleShared& s = sample_shared();
    Cut cut = {0, 0, 0, 0};
    NO_UNROLL
    for (uint32_t digit = 0; digit < 3; ++digit) {
        uint32_t shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, bits = digit == 2 ? 10 : 11;
        clear_bins(s);
        sync_block();
        row.all([&](uint32_t, float logit) {
            uint32_t rank = rank_of(logit);
            if (uint64_t(rank) >> (shift + bits) != cut.rank) return;
            uint64_t weight = weigh ? weight_of(logit, top, scale) : 0;
            if (BY == By::MASS && !weight) return;
            add_to_bin(s, rank >> shift & ((1u << bits) - 1), weight);
        });
        sync_block();
        find_bin<BY>(s, need, share);
        need = s.found.need - (BY == By::COUNT ? s.found.count_before : s.found.mass_before);
        share = 0;
        cut.rank = cut.rank << bits | s.found.bin;
        cut.mass += s.found.mass_before;
    }
    uint64_t each = weigh ? weight_of(logit_of(cut.rank), top, scale) : 0;
    cut.equal = s.found.count;
    cut.ties = uint32_t(BY == By::COUNT ? need : (need + each - 1) / each);
    cut.mass += cut.ties * each;
    sync_block();
    return cut;
}

} // namespace dense
