// Prefill attention: pages of kvfold's own codecs, 3 bits.
#include "attention/prefill.cuh"

template <int D> using Pages = RotatedPages<RotatedKeyHalf<3, D>, RotatedValueHalf<3, D>>;

PREFILL_KERNELS(kf3, Pages)
