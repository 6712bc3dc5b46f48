// add_bias: x += bias on every row.
//
// Grid (⌈rows · cols / 2048⌉), 256 threads, eight elements each. No shared memory.
// Must move, an element: 4 bytes.
//
// sass: add_bias_* wide=3; narrow=0

#include "dense/eight.cuh"

namespace dense {

template <class T> DEVICE void add_bias(const BiasParams& p) {
    uint32_t index = blockIdx.x * EIGHT_THREADS + threadIdx.x;
    Place at = place_of(index, p.cols);
    if (at.row >= p.rows) return;
    Vec16* x = address<Vec16>(p.x) + index;
    Eight e = load_halves<T>(x), bias = load_floats(address<const float>(p.bias), at.unit);
    UNROLL
    for (uint32_t i = 0; i < 8; ++i) e.x[i] += bias.x[i];
    store_halves<T>(x, e);
}

} // namespace dense

using namespace dense;

KERNEL(add_bias_f16, BiasParams, EIGHT_THREADS, 4) { add_bias<F16>(params); }
KERNEL(add_bias_bf16, BiasParams, EIGHT_THREADS, 4) { add_bias<Bf16>(params); }
