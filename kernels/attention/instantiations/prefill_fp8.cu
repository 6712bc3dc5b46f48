// Prefill attention: e4m3 sealed pages.
#include "attention/prefill.cuh"

template <int D> using Pages = SealedPages<Fp8Half<D>, Fp8Half<D>>;

PREFILL_KERNELS(fp8, Pages)
