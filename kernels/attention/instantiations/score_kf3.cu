// Score passes: keys of kvfold's own codecs, 3 bits.
#include "attention/score.cuh"

template <int D> using Pages = RotatedSealedKeys<RotatedKeyHalf<3, D>>;

SCORE_KERNELS(kf3, Pages)
