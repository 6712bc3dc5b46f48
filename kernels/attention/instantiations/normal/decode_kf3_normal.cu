// Decode attention without f16 subnormals (attention/subnormal.cu): pages of kvfold's own codecs, 3 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<3, D, Number::NORMAL>, RotatedValues<3, D, Number::NORMAL>>;

DECODE_KERNELS(kf3_normal, Pages)
