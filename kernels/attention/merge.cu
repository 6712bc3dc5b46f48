// attend_merge: joins the partial results of a split stream, in page order, by
// their base-2 log-sum-exps. A warp joins one column (query, head); the grid is
// (sequence · KV head, columns / 4). Floor: every part is read once.
//
// A lane has the weight of each 32nd split, and lanes that are furthest apart add up first.
// So splits in front that only other columns of the batch see, which weigh nothing here, shift
// all others by as many lanes and leave every two together that were: no bit depends on them.
#include "attention/element.cuh"
#include "attention/plan.cuh"
#include "attention/record.cuh"

namespace {

constexpr uint32_t READS = 8; // that a lane has in flight

// Four floats of a part.
struct Four {
    float x[4];
};

DEVICE Four load_four(const float* p) {
    Vec16 raw = load(reinterpret_cast<const Vec16*>(p));
    return *reinterpret_cast<const Four*>(&raw);
}

// Splits of the stream that a row of a sequence sees.
DEVICE uint32_t splits_of_row(const AttendParams& p, const KvSeq& seq, uint32_t kv_head, uint32_t row) {
    uint32_t stream = seq.first_stream;
    if (seq.flags & SEQ_RAGGED) stream += p.layer * p.kv_heads + kv_head;
    uint32_t kept = load(&reinterpret_cast<const KvStream*>(p.streams)[stream].kept);
    uint32_t k = 0;
    while (row >= rows_up_to(p, kept, seq.q_len, most_pages(p, k))) ++k;
    return segment_of(p, kept, seq.q_len, k).splits.count;
}

template <class T, int D> DEVICE void merge(const AttendParams& p) {
    // Lanes share a part, four channels a read; of 64 channels the halves of the warp share two.
    constexpr uint32_t LANES = D < 128 ? D / 4 : 32;
    constexpr uint32_t ROWS = 32 / LANES;       // parts that the warp reads at once
    constexpr uint32_t FOURS = D / (4 * LANES); // of a lane and part
    constexpr uint32_t MINE = 4 * FOURS;        // channels of a lane
    constexpr uint32_t TURNS = READS / FOURS;   // such reads in a turn of the loop

    uint32_t kv_head = blockIdx.x % p.kv_heads;
    Vec16 raw = load(reinterpret_cast<const Vec16*>(p.entries) + blockIdx.x);
    AttendEntry entry = *reinterpret_cast<const AttendEntry*>(&raw);
    KvSeq seq = load_struct<KvSeq>(p.seqs, blockIdx.x / p.kv_heads);
    uint32_t overflow = load(&reinterpret_cast<const AttendPlan*>(p.plan)->overflow);
    uint32_t group = p.heads / p.kv_heads;
    uint32_t column = blockIdx.y * 4 + warp_id();
    // One split needs no merge, and none is what prefill does.
    if (entry.n_splits <= 1 || overflow || column >= seq.q_len * group) return;
    uint32_t n = splits_of_row(p, seq, kv_head, column / group);

    size_t first = entry.first_part + column * entry.n_splits;
    const float* lses = reinterpret_cast<const float*>(p.part_lse) + first;
    float top = -INFINITY;
    for (uint32_t s = lane_id(); s < n; s += 32) top = max_of(top, load(&lses[s]));
    UNROLL
    for (uint32_t mask = 16; mask > 0; mask /= 2) top = max_of(top, shuffle_xor(top, mask));
    float base = top == -INFINITY ? 0.0f : top;

    uint32_t half = lane_id() / LANES, channel = lane_id() % LANES * MINE;
    float sum[MINE] = {}, total = 0.0f;
    const float* outs = reinterpret_cast<const float*>(p.part_out) + (first + half) * D + channel;
    float weight = 0.0f;
    auto turn = [&](uint32_t s, bool all) {
        Four parts[TURNS][FOURS];
        UNROLL
        for (uint32_t i = 0; i < TURNS; ++i) {
            UNROLL
            for (uint32_t f = 0; f < FOURS; ++f)
                parts[i][f] = all || s + i * ROWS + half < n ? load_four(outs + i * ROWS * D + 4 * f) : Four{};
        }
        UNROLL
        for (uint32_t i = 0; i < TURNS; ++i) {
            float its = shuffle(weight, s % 32 + i * ROWS + half);
            UNROLL
            for (uint32_t c = 0; c < MINE; ++c) sum[c] = fma_fast(its, parts[i][c / 4].x[c % 4], sum[c]);
        }
    };
    NO_UNROLL
    for (uint32_t s = 0; s < n; s += TURNS * ROWS) {
        if (s % 32 == 0) {
            uint32_t mine = s + lane_id();
            weight = mine < n ? exp2_fast(load(&lses[mine]) - base) : 0.0f;
            total += weight;
        }
        if (s + TURNS * ROWS <= n) turn(s, true);
        else turn(s, false);
        outs += TURNS * ROWS * D;
    }
    UNROLL
    for (uint32_t mask = 16; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
    if (ROWS > 1) {
        UNROLL
        for (uint32_t c = 0; c < MINE; ++c) sum[c] += shuffle_xor(sum[c], LANES);
    }
    float norm = total > 0.0f ? 1.0f / total : 0.0f;

    uint32_t row = seq.first_row + column / group;
    size_t head = size_t(row) * p.heads + kv_head * group + column % group;
    if (half == 0) {
        uint64_t* out = reinterpret_cast<uint64_t*>(reinterpret_cast<T*>(p.out) + head * D + channel);
        UNROLL
        for (uint32_t f = 0; f < FOURS; ++f) {
            const float* x = sum + 4 * f;
            uint64_t high = Element<T>::pack(x[2] * norm, x[3] * norm);
            store(&out[f], high << 32 | Element<T>::pack(x[0] * norm, x[1] * norm));
        }
    }
    if (p.lse && lane_id() == 0)
        store(reinterpret_cast<float*>(p.lse) + head, total > 0.0f ? top + log2_fast(total) : -INFINITY);
}

} // namespace

KERNEL(attend_merge_f16_d64, AttendParams, 128, 8) { merge<F16, 64>(params); }
KERNEL(attend_merge_f16_d128, AttendParams, 128, 8) { merge<F16, 128>(params); }
KERNEL(attend_merge_f16_d256, AttendParams, 128, 8) { merge<F16, 256>(params); }
KERNEL(attend_merge_bf16_d64, AttendParams, 128, 8) { merge<Bf16, 64>(params); }
KERNEL(attend_merge_bf16_d128, AttendParams, 128, 8) { merge<Bf16, 128>(params); }
KERNEL(attend_merge_bf16_d256, AttendParams, 128, 8) { merge<Bf16, 256>(params); }
