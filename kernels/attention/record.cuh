// Records of common/params/ as kernels read them.
#pragma once

#include "common/params/attention.h"
#include "common/ptx.cuh"

// Element `index` of the array at `base`.
template <class S> DEVICE S load_struct(uint64_t base, uint32_t index) {
    static_assert(sizeof(S) % 8 == 0, "read in words of 8 bytes");
    S s;
    const uint64_t* from = reinterpret_cast<const uint64_t*>(base + uint64_t(index) * sizeof(S));
    uint64_t* to = reinterpret_cast<uint64_t*>(&s);
    UNROLL
    for (uint32_t i = 0; i < sizeof(S) / 8; ++i) to[i] = load(from + i);
    return s;
}

// The stream that a KV head of a sequence reads in this layer.
DEVICE KvStream load_stream(const AttendParams& p, const KvSeq& seq, uint32_t kv_head) {
    uint32_t stream = seq.first_stream;
    if (seq.flags & SEQ_RAGGED) stream += p.layer * p.kv_heads + kv_head;
    return load_struct<KvStream>(p.streams, stream);
}
