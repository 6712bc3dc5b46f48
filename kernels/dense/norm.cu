// rms_norm: x += delta, if there is one; out = x / rms(x) · weight (Zhang and Sennrich 2019).
//
// Grid (rows), 256 threads. A thread keeps its eights of channels, up to 8 of them, in
// registers between the sum of squares and the result. Each thread sums its own, lanes
// and then warps are added in a fixed order: a row's result depends on that row alone.
//
// Shared memory: f32 [8], a partial sum a warp.
// Must move, a channel: 6 bytes, with delta 12.
//
// head_norm: the same over each head of rows of 16-bit elements, in place.
//
// Grid (⌈rows · heads / 8⌉), 256 threads: a warp normalises one head. No shared memory.
// Must move, a channel: 4 bytes.
//
// sass: rms_norm_* wide=8*(2 + 1 + 2); narrow=0
// sass: head_norm_* wide=2*(1 + 2); narrow=0

#include "dense/eight.cuh"

namespace dense {

constexpr uint32_t NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32;
// Eights of a thread at most: 16384 columns, heads of 512 channels.
constexpr uint32_t ROW_UNITS = 8, HEAD_UNITS = 2;

DEVICE float squares(const Eight& e) {
    float sum = 0.0f;
    UNROLL
    for (uint32_t i = 0; i < 8; ++i) sum = fma_fast(e.x[i], e.x[i], sum);
    return sum;
}

// What values of this sum of squares are multiplied with.
DEVICE float norm_scale(float sum, uint32_t n, float eps) {
    return div_rn(1.0f, sqrt_rn(div_rn(sum, float(n)) + eps));
}

// The sum over the block, the same in each thread.
DEVICE float block_sum(float x) {
    float* partial = reinterpret_cast<float*>(shared_memory());
    x = warp_sum(x);
    if (lane_id() == 0) partial[warp_id()] = x;
    sync_block();
    x = 0.0f;
    UNROLL
    for (uint32_t w = 0; w < NORM_WARPS; ++w) x += partial[w];
    return x;
}

template <class T> DEVICE void scaled(Vec16* to, Eight e, float scale, const float* weight, uint32_t unit) {
    Eight w = load_floats(weight, unit);
    UNROLL
    for (uint32_t i = 0; i < 8; ++i) e.x[i] = e.x[i] * scale * w.x[i];
    store_halves<T>(to, e);
}

template <class T> DEVICE void rms_norm(const NormParams& p) {
    uint32_t units = p.cols / 8;
    size_t row = blockIdx.x;
    float* x = address<float>(p.x) + row * p.cols;
    const Vec16* delta = address<const Vec16>(p.delta) + row * units;
    Eight kept[ROW_UNITS];
    float sum = 0.0f;
    UNROLL
    for (uint32_t i = 0; i < ROW_UNITS; ++i) {
        uint32_t unit = threadIdx.x + i * NORM_THREADS;
        if (unit >= units) break;
        kept[i] = load_floats(x, unit);
        if (p.delta) {
            Eight d = load_halves<T>(delta + unit);
            UNROLL
            for (uint32_t c = 0; c < 8; ++c) kept[i].x[c] += d.x[c];
            store_floats(x, unit, kept[i]);
        }
        sum += squares(kept[i]);
    }
    float scale = norm_scale(block_sum(sum), p.cols, p.eps);
    UNROLL
    for (uint32_t i = 0; i < ROW_UNITS; ++i) {
        uint32_t unit = threadIdx.x + i * NORM_THREADS;
        if (unit >= units) break;
        scaled<T>(address<Vec16>(p.out) + row * units + unit, kept[i], scale,
                  address<const float>(p.weight), unit);
    }
}

template <class T> DEVICE void head_norm(const HeadNormParams& p) {
    uint32_t index = blockIdx.x * NORM_WARPS + warp_id(), units = p.head_dim / 8;
    if (index >= p.rows * p.heads) return;
    size_t first = size_t(index / p.heads) * p.stride + p.first_col + index % p.heads * p.head_dim;
    Vec16* head = address<Vec16>(p.x) + first / 8;
    Eight kept[HEAD_UNITS];
    float sum = 0.0f;
    UNROLL
    for (uint32_t i = 0; i < HEAD_UNITS; ++i) {
        uint32_t unit = lane_id() + 32 * i;
        if (unit >= units) break;
        kept[i] = load_halves<T>(head + unit);
        sum += squares(kept[i]);
    }
    float scale = norm_scale(warp_sum(sum), p.head_dim, p.eps);
    UNROLL
    for (uint32_t i = 0; i < HEAD_UNITS; ++i) {
        uint32_t unit = lane_id() + 32 * i;
        if (unit >= units) break;
        scaled<T>(head + unit, kept[i], scale, address<const float>(p.weight), unit);
    }
}

} // namespace dense

using namespace dense;

KERNEL(rms_norm_f16, NormParams, NORM_THREADS, 2) { rms_norm<F16>(params); }
KERNEL(rms_norm_bf16, NormParams, NORM_THREADS, 2) { rms_norm<Bf16>(params); }
KERNEL(head_norm_f16, HeadNormParams, NORM_THREADS, 4) { head_norm<F16>(params); }
KERNEL(head_norm_bf16, HeadNormParams, NORM_THREADS, 4) { head_norm<Bf16>(params); }
