// embed: rows of an embedding table as f32, scaled. A row's token is given, or is the one
// that an earlier step has drawn to a slot, so that a step can be begun before the host
// knows it. Ids are written out for those that look at them later. The row of an id outside
// the vocabulary, or of a slot that does not exist, is NaN.
//
// Grid (rows), 128 threads. No shared memory. Must move, a channel: 6 bytes.
//
// sass: embed_* wide=1; narrow=3

#include "dense/eight.cuh"

namespace dense {

constexpr uint32_t EMBED_THREADS = 128;

template <class T> DEVICE void embed(const EmbedParams& p) {
    uint32_t id = load(address<const uint32_t>(p.tokens) + blockIdx.x), units = p.cols / 8;
    if (id & TOKEN_DRAWN) {
        uint32_t slot = id & ~TOKEN_DRAWN;
        id = slot < p.n_slots ? load(address<const uint32_t>(p.slots) + slot) : KV_NONE;
    }
    if (threadIdx.x == 0) store(address<uint32_t>(p.ids) + blockIdx.x, id);
    const Vec16* from = address<const Vec16>(p.table) + size_t(id) * units;
    float* to = address<float>(p.out) + size_t(blockIdx.x) * p.cols;
    for (uint32_t unit = threadIdx.x; unit < units; unit += EMBED_THREADS) {
        Eight e = {{NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}};
        if (id < p.vocab) e = load_halves<T>(from + unit);
        UNROLL
        for (uint32_t i = 0; i < 8; ++i) e.x[i] *= p.scale;
        store_floats(to, unit, e);
    }
}

} // namespace dense

using namespace dense;

KERNEL(embed_f16, EmbedParams, EMBED_THREADS, 8) { embed<F16>(params); }
KERNEL(embed_bf16, EmbedParams, EMBED_THREADS, 8) { embed<Bf16>(params); }
