// silu_mul, gelu_mul: y = activation(gate) · up, with [gate | up] in the rows of x. GELU is
// its tanh form (Hendrycks and Gimpel 2016): with tanh(z) = 2 · sigmoid(2z) − 1 both
// are gate · sigmoid(z).
//
// Grid (⌈rows · cols / 2048⌉), 256 threads, eight elements each. No shared memory.
// Must move, an element of y: 6 bytes.
//
// sass: silu_mul_* wide=2; narrow=0
// sass: gelu_mul_* wide=2; narrow=0

#include "dense/eight.cuh"

namespace dense {

constexpr float LOG2_E = 1.44269504f;

DEVICE float times_sigmoid(float x, float z) { return div_rn(x, 1.0f + exp2_fast(-z * LOG2_E)); }

struct Silu {
    static DEVICE float of(float x) { return times_sigmoid(x, x); }
};
struct Gelu {
    static DEVICE float of(float x) {
        constexpr float TWO_SQRT_2_PI = 1.59576912f;
        return times_sigmoid(x, TWO_SQRT_2_PI * (x + 0.044715f * x * x * x));
    }
};

template <class T, class Activation> DEVICE void activate(const ActivateParams& p) {
    uint32_t index = blockIdx.x * EIGHT_THREADS + threadIdx.x, units = p.cols / 8;
    Place at = place_of(index, p.cols);
    if (at.row >= p.rows) return;
    const Vec16* gate = address<const Vec16>(p.x) + size_t(at.row) * 2 * units + at.unit;
    Eight e = load_halves<T>(gate), up = load_halves<T>(gate + units);
    UNROLL
    for (uint32_t i = 0; i < 8; ++i) e.x[i] = Activation::of(e.x[i]) * up.x[i];
    store_halves<T>(address<Vec16>(p.y) + index, e);
}

} // namespace dense

using namespace dense;

KERNEL(silu_mul_f16, ActivateParams, EIGHT_THREADS, 4) { activate<F16, Silu>(params); }
KERNEL(silu_mul_bf16, ActivateParams, EIGHT_THREADS, 4) { activate<Bf16, Silu>(params); }
KERNEL(gelu_mul_f16, ActivateParams, EIGHT_THREADS, 4) { activate<F16, Gelu>(params); }
KERNEL(gelu_mul_bf16, ActivateParams, EIGHT_THREADS, 4) { activate<Bf16, Gelu>(params); }
