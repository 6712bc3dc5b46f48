// Decode attention: pages of kvfold's own codecs, 3 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<3, D>, RotatedValues<3, D>>;

DECODE_KERNELS(kf3, Pages)
