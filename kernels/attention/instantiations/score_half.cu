// Score passes: 16-bit pages only.
#include "attention/score.cuh"

template <int D> using Pages = HalfKeys;

SCORE_KERNELS(half, Pages)
