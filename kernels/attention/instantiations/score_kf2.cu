// Score passes: keys of kvfold's own codecs, 2 bits.
#include "attention/score.cuh"

template <int D> using Pages = RotatedSealedKeys<RotatedKeyHalf<2, D>>;

SCORE_KERNELS(kf2, Pages)
