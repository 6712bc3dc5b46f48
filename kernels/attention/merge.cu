// attend_merge: joins the partial results of a split stream, in page order, by
// their base-2 log-sum-exps. A warp joins one column (query, head); the grid is
// (sequence · KV head, columns / 4). Floor: every part is read once.
#include "attention/element.cuh"
#include "attention/plan.cuh"
#include "common/params/attention.h"
#include "common/ptx.cuh"

namespace {

// Splits of the stream that a row of a sequence sees.
DEVICE uint32_t splits_of_row(const AttendParams& p, const KvSeq& seq, uint32_t kv_head,
                              uint32_t q_len, uint32_t row) {
    uint32_t stream = load(&seq.first_stream);
    if (load(&seq.flags) & SEQ_RAGGED) stream += p.layer * p.kv_heads + kv_head;
    uint32_t kept = load(&reinterpret_cast<const KvStream*>(p.streams)[stream].kept);
    uint32_t k = 0;
    while (row >= rows_up_to(p, kept, q_len, most_pages(k))) ++k;
    return segment_of(p, kept, q_len, k).splits.count;
}

template <class T> DEVICE void merge(const AttendParams& p, uint32_t head_dim) {
    uint32_t kv_head = blockIdx.x % p.kv_heads;
    const AttendEntry* entries = reinterpret_cast<const AttendEntry*>(p.entries);
    Vec16 raw = load(reinterpret_cast<const Vec16*>(&entries[blockIdx.x]));
    AttendEntry entry = *reinterpret_cast<const AttendEntry*>(&raw);
    if (entry.n_splits <= 1) return; // nothing was split, or prefill does it
    if (load(&reinterpret_cast<const AttendPlan*>(p.plan)->overflow)) return;

    const KvSeq* seq = reinterpret_cast<const KvSeq*>(p.seqs) + blockIdx.x / p.kv_heads;
    uint32_t group = p.heads / p.kv_heads;
    uint32_t column = blockIdx.y * 4 + warp_id();
    uint32_t q_len = load(&seq->q_len);
    if (column >= q_len * group) return;
    uint32_t n_splits = splits_of_row(p, *seq, kv_head, q_len, column / group);

    uint32_t first = entry.first_part + column * entry.n_splits;
    const float* lses = reinterpret_cast<const float*>(p.part_lse) + first;
    float top = -INFINITY;
    for (uint32_t s = 0; s < n_splits; ++s) top = max_of(top, load(&lses[s]));
    float base = top == -INFINITY ? 0.0f : top;

    uint32_t row = load(&seq->first_row) + column / group;
    uint32_t head = kv_head * group + column % group;
    T* out = reinterpret_cast<T*>(p.out) + (size_t(row) * p.heads + head) * head_dim;
    const float* parts = reinterpret_cast<const float*>(p.part_out) + size_t(first) * head_dim;
    float total = 0.0f;
    for (uint32_t c = 2 * lane_id(); c < head_dim; c += 64) {
        float x = 0.0f, y = 0.0f;
        total = 0.0f;
        for (uint32_t s = 0; s < n_splits; ++s) {
            float weight = exp2_fast(load(&lses[s]) - base);
            FloatPair o = load(reinterpret_cast<const FloatPair*>(&parts[s * head_dim + c]));
            x = fma_fast(weight, o.x, x);
            y = fma_fast(weight, o.y, y);
            total += weight;
        }
        float norm = total > 0.0f ? 1.0f / total : 0.0f;
        store(reinterpret_cast<uint32_t*>(&out[c]), Element<T>::pack(x * norm, y * norm));
    }
    if (p.lse && lane_id() == 0) {
        float* lse = reinterpret_cast<float*>(p.lse) + size_t(row) * p.heads + head;
        store(lse, total > 0.0f ? top + log2_fast(total) : -INFINITY);
    }
}

} // namespace

KERNEL(attend_merge_f16_d64, AttendParams, 128, 8) { merge<F16>(params, 64); }
KERNEL(attend_merge_f16_d128, AttendParams, 128, 8) { merge<F16>(params, 128); }
KERNEL(attend_merge_f16_d256, AttendParams, 128, 8) { merge<F16>(params, 256); }
KERNEL(attend_merge_bf16_d64, AttendParams, 128, 8) { merge<Bf16>(params, 64); }
KERNEL(attend_merge_bf16_d128, AttendParams, 128, 8) { merge<Bf16>(params, 128); }
KERNEL(attend_merge_bf16_d256, AttendParams, 128, 8) { merge<Bf16>(params, 256); }
