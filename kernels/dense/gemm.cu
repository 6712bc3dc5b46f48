// gemm: y = x · wᵀ for x [rows][k], w [n][k] and y [rows][n]; sums in f32, y in T or
// f32. For the emulated device and for comparisons: CUDA devices use cuBLASLt.
//
// Grid (⌈rows / 4⌉, ⌈n / 128⌉), 32 threads: a thread makes 4 × 4 outputs by itself,
// without a barrier, which fibers would pay for. k is a multiple of 8, rows and n are
// any. An output's sum has one order, whatever rows and n are: eight products of a
// vector as a tree, vectors from first to last.
//
// Shared memory: none.
// Must move 2·k·(rows + n) bytes and rows · n outputs; moves rows/4 times w and n/4
// times x.

#include "attention/element.cuh"
#include "common/params/dense.h"

namespace gemm {

constexpr uint32_t THREADS = 32;
constexpr uint32_t ROWS = 4;    // of a thread
constexpr uint32_t COLUMNS = 4; // of a thread
constexpr uint32_t VECTOR = 8;  // elements of 16 bytes

// Vector `v` of row `row` of a matrix with k columns.
template <class T> DEVICE void read(uint64_t matrix, uint32_t row, uint32_t k, uint32_t v, float (&to)[VECTOR]) {
    const Vec16* vectors = reinterpret_cast<const Vec16*>(matrix + uint64_t(row) * k * 2);
    Vec16 words = load(vectors + v);
    UNROLL
    for (uint32_t i = 0; i < VECTOR / 2; ++i) {
        to[2 * i] = Element<T>::low(words.w[i]);
        to[2 * i + 1] = Element<T>::high(words.w[i]);
    }
}

DEVICE float dot(const float (&a)[VECTOR], const float (&b)[VECTOR]) {
    float quarter[4];
    UNROLL
    for (uint32_t i = 0; i < 4; ++i) quarter[i] = a[i] * b[i] + a[i + 4] * b[i + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// Writes one output: in T, or in f32 if WIDE.
template <class T, bool WIDE> DEVICE void write(uint64_t y, uint64_t at, float x) {
    if (WIDE) {
        store(reinterpret_cast<float*>(y) + at, x);
    } else {
        store(reinterpret_cast<uint16_t*>(y) + at, uint16_t(Element<T>::pack(x, 0.0f)));
    }
}

template <class T, bool WIDE> DEVICE void multiply(const GemmParams& p) {
    uint32_t row = blockIdx.x * ROWS, column = (blockIdx.y * THREADS + threadIdx.x) * COLUMNS;
    if (column >= p.n) return;
    uint32_t rows = min_of(ROWS, p.rows - row), columns = min_of(COLUMNS, p.n - column);
    float sums[ROWS][COLUMNS] = {};
    for (uint32_t v = 0; v < p.k / VECTOR; ++v) {
        float x[ROWS][VECTOR];
        UNROLL
        for (uint32_t r = 0; r < ROWS; ++r) {
            if (r < rows) read<T>(p.x, row + r, p.k, v, x[r]);
        }
        UNROLL
        for (uint32_t c = 0; c < COLUMNS; ++c) {
            if (c >= columns) continue;
            float w[VECTOR];
            read<T>(p.w, column + c, p.k, v, w);
            UNROLL
            for (uint32_t r = 0; r < ROWS; ++r) {
                if (r < rows) sums[r][c] += dot(x[r], w);
            }
        }
    }
    UNROLL
    for (uint32_t r = 0; r < ROWS; ++r) {
        UNROLL
        for (uint32_t c = 0; c < COLUMNS; ++c) {
            if (r < rows && c < columns) write<T, WIDE>(p.y, uint64_t(row + r) * p.n + column + c, sums[r][c]);
        }
    }
}

} // namespace gemm

KERNEL(gemm_f16, GemmParams, gemm::THREADS, 8) { gemm::multiply<F16, false>(params); }
KERNEL(gemm_bf16, GemmParams, gemm::THREADS, 8) { gemm::multiply<Bf16, false>(params); }
KERNEL(gemm_f16_f32, GemmParams, gemm::THREADS, 8) { gemm::multiply<F16, true>(params); }
KERNEL(gemm_bf16_f32, GemmParams, gemm::THREADS, 8) { gemm::multiply<Bf16, true>(params); }
