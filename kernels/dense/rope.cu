// rope: rotates the first heads of rows in place (common/rope.cuh).
//
// Grid (rows), 128 threads. Shared memory: f32 cos[d/2], sin[d/2].
// Must move, a channel: 4 bytes.
//
// sass: rope_* wide=2; narrow=4

#include "common/params/dense.h"
#include "common/rope.cuh"

namespace dense {

using namespace common;

constexpr uint32_t ROPE_THREADS = 128;

template <class T> DEVICE void rope(const RopeParams& p) {
    Angles angles = angles_in(shared_memory(), p.head_dim);
    uint32_t position = load(address<const uint32_t>(p.positions) + blockIdx.x);
    compute_angles(p.inv_turns, position, p.head_dim, ROPE_THREADS, angles);
    sync_block();
    uint32_t vectors = p.head_dim / 16; // of half a head
    Vec16* row = address<Vec16>(p.x) + size_t(blockIdx.x) * (p.stride / 8);
    for (uint32_t i = threadIdx.x; i < p.heads * vectors; i += ROPE_THREADS) {
        uint32_t head = i / vectors, v = i % vectors;
        Vec16* low_at = row + head * 2 * vectors + v;
        Vec16* high_at = low_at + vectors;
        Vec16 low = load(low_at), high = load(high_at);
        rotate<T>(low, high, angles.cos + 8 * v, angles.sin + 8 * v);
        store(low_at, low);
        store(high_at, high);
    }
}

} // namespace dense

using namespace dense;

KERNEL(rope_f16, RopeParams, ROPE_THREADS, 8) { rope<F16>(params); }
KERNEL(rope_bf16, RopeParams, ROPE_THREADS, 8) { rope<Bf16>(params); }
