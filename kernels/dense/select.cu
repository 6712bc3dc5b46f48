// select: copies rows of f32 by number; the copy of a row that does not exist is NaN.
//
// Grid (rows of the result), 128 threads. No shared memory. Must move, a channel: 8 bytes.

#include "common/half.cuh"
#include "common/params.h"

namespace dense {

using namespace common;

constexpr uint32_t SELECT_THREADS = 128;

DEVICE void select_row(const SelectParams& p) {
    uint32_t row = load(address<const uint32_t>(p.rows) + blockIdx.x), vectors = p.cols / 4;
    const Vec16* from = address<const Vec16>(p.from) + size_t(row) * vectors;
    Vec16* to = address<Vec16>(p.to) + size_t(blockIdx.x) * vectors;
    for (uint32_t i = threadIdx.x; i < vectors; i += SELECT_THREADS) {
        uint32_t nan = float_bits(NAN);
        store(to + i, row < p.n_from ? load(from + i) : Vec16{{nan, nan, nan, nan}});
    }
}

} // namespace dense

KERNEL(select_rows, SelectParams, dense::SELECT_THREADS, 8) { dense::select_row(params); }
