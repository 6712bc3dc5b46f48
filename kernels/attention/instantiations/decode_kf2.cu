// Decode attention: pages of kvfold's own codecs, 2 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<2, D>, RotatedValues<2, D>>;

DECODE_KERNELS(kf2, Pages)
