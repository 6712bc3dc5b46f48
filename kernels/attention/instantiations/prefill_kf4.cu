// Prefill attention: pages of kvfold's own codecs, 4 bits.
#include "attention/prefill.cuh"

template <int D> using Pages = RotatedPages<RotatedKeyHalf<4, D>, RotatedValueHalf<4, D>>;

PREFILL_KERNELS(kf4, Pages)
