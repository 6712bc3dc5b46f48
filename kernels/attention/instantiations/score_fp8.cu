// Score passes: e4m3 sealed keys.
#include "attention/score.cuh"

template <int D> using Pages = SealedKeys<Fp8Half<D>>;

SCORE_KERNELS(fp8, Pages)
