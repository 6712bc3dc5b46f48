// score_top: the best token of each query over all chunks of its stream's pages, which
// top_* (score.cuh) has left in `parts`; the one with the lowest index among equals. A
// thread has one (query, column); the grid is (queries · columns / 128, sequences).
// Floor: every part is read once.
#include "common/params/score.h"
#include "common/ptx.cuh"

KERNEL(score_top, ScoreParams, 128, 8) {
    const ScoreParams& p = params;
    const KvSeq* seq = reinterpret_cast<const KvSeq*>(p.attend.seqs) + blockIdx.y;
    uint32_t columns = p.per_head ? p.attend.heads : p.attend.kv_heads;
    uint32_t i = blockIdx.x * 128 + threadIdx.x;
    if (i >= load(&seq->q_len) * columns) return;
    size_t at = size_t(load(&seq->first_row)) * columns + i;
    float value = 0.0f;
    uint32_t index = KV_NONE;
    for (uint32_t chunk = 0; chunk < p.chunks; ++chunk) {
        uint64_t raw = load(reinterpret_cast<const uint64_t*>(p.parts) + size_t(chunk) * p.rows * columns + at);
        float x = bits_float(uint32_t(raw));
        uint32_t other = uint32_t(raw >> 32);
        if (x > value || (x == value && other < index)) value = x, index = other;
    }
    if (!p.per_head) value /= float(p.attend.heads / p.attend.kv_heads);
    store(reinterpret_cast<uint64_t*>(p.tops) + at, uint64_t(index) << 32 | float_bits(value));
}
