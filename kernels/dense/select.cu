// select: copies rows by number; the copy of a row that does not exist has all bits set,
// which is NaN in every type of activations.
//
// Grid (rows of the result), 128 threads. No shared memory. Must move twice the bytes of the
// copies.
//
// sass: select_rows wide=1; narrow=1

#include "common/half.cuh"
#include "common/params/dense.h"

namespace dense {

using namespace common;

constexpr uint32_t SELECT_THREADS = 128;

DEVICE void select_row(const SelectParams& p) {
    uint32_t row = load(address<const uint32_t>(p.rows) + blockIdx.x), vectors = p.row_bytes / 16;
    const Vec16* from = address<const Vec16>(p.from) + size_t(row) * vectors;
    Vec16* to = address<Vec16>(p.to) + size_t(blockIdx.x) * vectors;
    for (uint32_t i = threadIdx.x; i < vectors; i += SELECT_THREADS) {
        store(to + i, row < p.n_from ? load(from + i) : Vec16{{~0u, ~0u, ~0u, ~0u}});
    }
}

} // namespace dense

KERNEL(select_rows, SelectParams, dense::SELECT_THREADS, 8) { dense::select_row(params); }
