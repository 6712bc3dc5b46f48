// Score passes: exact KIVI keys of 2 bits.
#include "attention/score.cuh"

template <int D> using Pages = SealedKeys<KiviKeyHalf<2, D>>;

SCORE_KERNELS(kivi2, Pages)
