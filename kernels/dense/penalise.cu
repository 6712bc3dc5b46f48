// penalise: lowers the logits of tokens that have occurred (the repetition penalty of CTRL),
// each once: those that are listed, and the one that the row was computed from, which the
// host need not know yet.
//
// Grid (rows), 128 threads. No shared memory. Must move 12 bytes a token.
//
// sass: penalise wide=0

#include "common/half.cuh"
#include "common/params/dense.h"

namespace dense {

using namespace common;

constexpr uint32_t PENALISE_THREADS = 128;
constexpr float LARGEST = 3.402823466e+38f;

DEVICE void lower(const PenaliseParams& p, float factor, uint32_t token) {
    if (token >= p.vocab) return;
    float* at = address<float>(p.logits) + size_t(blockIdx.x) * p.stride + token;
    float logit = load(at);
    logit = logit > 0 ? logit / factor : logit * factor;
    store(at, logit > LARGEST ? LARGEST : logit);
}

DEVICE void penalise(const PenaliseParams& p) {
    const uint32_t* starts = address<const uint32_t>(p.starts) + blockIdx.x;
    float factor = load(address<const float>(p.factors) + blockIdx.x);
    if (factor == 1.0f) return;
    uint32_t first = load(starts), end = load(starts + 1);
    const uint32_t* tokens = address<const uint32_t>(p.tokens);
    for (uint32_t i = first + threadIdx.x; i < end; i += PENALISE_THREADS)
        lower(p, factor, load(tokens + i));

    if (threadIdx.x != 0) return;
    uint32_t row = load(address<const uint32_t>(p.rows) + blockIdx.x);
    uint32_t last = load(address<const uint32_t>(p.ids) + row);
    for (uint32_t i = first; i < end; ++i)
        if (load(tokens + i) == last) return;
    lower(p, factor, last);
}

} // namespace dense

KERNEL(penalise, PenaliseParams, dense::PENALISE_THREADS, 8) { dense::penalise(params); }
