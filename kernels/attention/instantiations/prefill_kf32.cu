// Prefill attention: pages of kvfold's own codecs, keys of 3 bits and values of 2.
#include "attention/prefill.cuh"

template <int D> using Pages = RotatedPages<RotatedKeyHalf<3, D>, RotatedValueHalf<2, D>>;

PREFILL_KERNELS(kf32, Pages)
