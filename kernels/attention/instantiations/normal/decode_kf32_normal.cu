// Decode attention without f16 subnormals (attention/subnormal.cu): pages of kvfold's own codecs, keys of 3 bits and values of 2.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<3, D, Number::NORMAL>, RotatedValues<2, D, Number::NORMAL>>;

DECODE_KERNELS(kf32_normal, Pages)
