// Decode attention: pages of kvfold's own codecs, keys of 3 bits and values of 2.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<3, D>, RotatedValues<2, D>>;

DECODE_KERNELS(kf32, Pages)
