// Decode attention without f16 subnormals (attention/subnormal.cu): pages of kvfold's own codecs, 2 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<2, D, Number::NORMAL>, RotatedValues<2, D, Number::NORMAL>>;

DECODE_KERNELS(kf2_normal, Pages)
