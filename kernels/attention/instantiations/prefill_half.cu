// Prefill attention: 16-bit pages only.
#include "attention/prefill.cuh"

template <int D> using Pages = HalfPages;

PREFILL_KERNELS(half, Pages)
