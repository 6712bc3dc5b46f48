// Prefill attention: pages of kvfold's own codecs, 2 bits.
#include "attention/prefill.cuh"

template <int D> using Pages = RotatedPages<RotatedKeyHalf<2, D>, RotatedValueHalf<2, D>>;

PREFILL_KERNELS(kf2, Pages)
