// Score passes: exact KIVI keys of 4 bits.
#include "attention/score.cuh"

template <int D> using Pages = SealedKeys<KiviKeyHalf<4, D>>;

SCORE_KERNELS(kivi4, Pages)
