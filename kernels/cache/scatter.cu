// scatter: puts the pieces of a parcel where they belong (src/backend/cuda/parcel.rs).
//
// Grid (n_pieces, any), 128 threads: the blocks of a piece share it in vectors of 16 bytes.
// Must move twice the bytes of the pieces.
//
// sass: scatter wide=1

#include "cache/page.cuh"

using namespace cache;

constexpr uint32_t SCATTER_THREADS = 128;

KERNEL(scatter, ScatterParams, SCATTER_THREADS, 16) {
    const ScatterPiece* piece = address<const ScatterPiece>(params.parcel) + blockIdx.x;
    uint32_t thread = blockIdx.y * SCATTER_THREADS + threadIdx.x, threads = gridDim.y * SCATTER_THREADS;
    copy_vectors(params.parcel + load(&piece->from), load(&piece->to), load(&piece->bytes), thread, threads);
}
