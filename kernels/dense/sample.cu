// argmax: the largest logit of each row; the lowest token of equal ones; NaN never wins.
// sample: draws a token of each row after temperature, top-k, top-p and min-p, as
// src/sample does, but exactly: weights are integers (dense/weight.cuh), tokens are drawn
// in their order, and equal logits are cut by token. So neither the order of threads
// nor the batch changes a bit, and src/backend/draw.rs draws the same on the host.
//
// Both leave KV_NONE if no logit is above −∞; sample where the draw says.
//
// Grid (rows), 1024 threads. Shared memory: argmax 256 bytes, sample SampleShared.
// Must move, a logit: 4 bytes. sample reads a row three times from the second-level cache, and
// three times more for each of top-k and top-p.
//
// sass: argmax wide=1
// sass: sample wide=9

#include "dense/cut.cuh"

namespace dense {

struct Best {
    uint32_t rank, token;
    DEVICE bool exists() const { return rank < RANK_OF_MINUS_INFINITY; }
};

DEVICE Best better(Best a, Best b) {
    return b.rank < a.rank || (b.rank == a.rank && b.token < a.token) ? b : a;
}

DEVICE Best warp_best(Best best) {
    UNROLL
    for (uint32_t mask = 16; mask; mask /= 2)
        best = better(best, {shuffle_xor(best.rank, mask), shuffle_xor(best.token, mask)});
    return best;
}

// The same in all threads.
DEVICE Best best_of(const Row& row) {
    Best best = {KV_NONE, KV_NONE};
    row.all([&](uint32_t token, float logit) { best = better(best, {rank_of(logit), token}); });
    best = warp_best(best);
    uint32_t* shared = reinterpret_cast<uint32_t*>(shared_memory());
    if (lane_id() == 0) {
        shared[2 * warp_id()] = best.rank;
        shared[2 * warp_id() + 1] = best.token;
    }
    sync_block();
    best = warp_best({shared[2 * lane_id()], shared[2 * lane_id() + 1]});
    sync_block();
    return best;
}

// The first token, in their order, at which the running sum of measure(token, logit)
// exceeds target(sum of all). Each warp sums a stretch of the row, then the one that has the
// token walks it. All threads get it.
template <class Measure, class Target>
DEVICE uint32_t token_at(const Row& row, Measure measure, Target target) {
    SampleShared& s = sample_shared();
    uint32_t each = div_ceil(row.quads(), SAMPLE_WARPS);
    uint32_t first = min_of(warp_id() * each, row.quads()), end = min_of(first + each, row.quads());
    uint64_t sum = 0;
    for (uint32_t quad = first + lane_id(); quad < end; quad += 32)
        row.each(quad, [&](uint32_t token, float logit) { sum += measure(token, logit); });
    sum = scan(sum);
    if (lane_id() == 31) s.warp_mass[warp_id()] = sum;
    sync_block();
    uint64_t warps = scan(s.warp_mass[lane_id()]);
    uint64_t wanted = target(shuffle64(warps, 31));
    uint32_t there = first_lane(warp_ballot(warps > wanted));
    if (there == warp_id()) { // all lanes or none
        uint64_t before = shuffle64(warps, there) - s.warp_mass[there];
        for (uint32_t start = first;; start += 32) {
            sum = 0;
            if (start + lane_id() < end)
                row.each(start + lane_id(), [&](uint32_t token, float logit) { sum += measure(token, logit); });
            uint64_t sums = before + scan(sum);
            uint32_t reached = warp_ballot(sums > wanted);
            if (!reached) {
                before = shuffle64(sums, 31);
                continue;
            }
            if (lane_id() == first_lane(reached)) {
                uint64_t running = sums - sum;
                bool found = false;
                row.each(start + lane_id(), [&](uint32_t token, float logit) {
                    running += measure(token, logit);
                    if (!found && running > wanted) s.found.bin = token;
                    found = found || running > wanted;
                });
            }
            break;
        }
    }
    sync_block();
    uint32_t token = s.found.bin;
    sync_block();
    return token;
}

DEVICE uint32_t draw(const Row& row, const SampleDraw& d, float top) {
    Cut cut = {KV_NONE, 0, 0, 0}; // all
    uint32_t share = uint32_t(d.top_p);
    bool limited = d.top_k && d.top_k < row.vocab;
    if (limited) cut = cut_at<By::COUNT>(row, top, d.scale, d.top_k, 0, share != 0);
    if (share) {
        uint64_t need = limited ? share_above(cut.mass, share) : 0;
        cut = cut_at<By::MASS>(row, top, d.scale, need, limited ? 0 : share, true);
    }
    uint32_t end = row.vocab; // of the tokens of the cut's rank
    if (cut.ties < cut.equal) {
        end = 1 + token_at(
            row, [&](uint32_t, float logit) { return uint64_t(rank_of(logit) == cut.rank); },
            [&](uint64_t) { return uint64_t(cut.ties - 1); });
    }
    auto kept_weight = [&](uint32_t token, float logit) {
        uint32_t rank = rank_of(logit);
        uint64_t weight = 0;
        if (rank < cut.rank || (rank == cut.rank && token < end)) weight = weight_of(logit, top, d.scale);
        return weight < min_of(d.min_weight, FULL_WEIGHT) ? uint64_t(0) : weight;
    };
    return token_at(row, kept_weight, [&](uint64_t all) { return share_below(all, d.uniform); });
}

DEVICE void sample_row(const SampleParams& p) {
    Row row = Row::of(p);
    Best best = best_of(row);
    const SampleDraw* draws = address<const SampleDraw>(p.draws) + blockIdx.x;
    SampleDraw d = {load(&draws->top_p), load(&draws->min_weight), load(&draws->scale),
                    load(&draws->top_k), load(&draws->uniform), load(&draws->slot)};
    uint32_t token = best.exists() ? best.token : KV_NONE;
    if (best.exists() && d.scale > 0.0f) token = draw(row, d, logit_of(best.rank));
    if (threadIdx.x == 0) store(address<uint32_t>(p.ids) + d.slot, token);
}

DEVICE void argmax_row(const SampleParams& p) {
    Best best = best_of(Row::of(p));
    uint32_t token = best.exists() ? best.token : KV_NONE;
    if (threadIdx.x == 0) store(address<uint32_t>(p.ids) + blockIdx.x, token);
}

} // namespace dense

KERNEL(argmax, SampleParams, dense::SAMPLE_THREADS, 1) { dense::argmax_row(params); }
KERNEL(sample, SampleParams, dense::SAMPLE_THREADS, 1) { dense::sample_row(params); }
