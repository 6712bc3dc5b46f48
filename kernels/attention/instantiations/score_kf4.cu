// Score passes: keys of kvfold's own codecs, 4 bits.
#include "attention/score.cuh"

template <int D> using Pages = RotatedSealedKeys<RotatedKeyHalf<4, D>>;

SCORE_KERNELS(kf4, Pages)
