// Decode attention: pages of kvfold's own codecs, 4 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<4, D>, RotatedValues<4, D>>;

DECODE_KERNELS(kf4, Pages)
