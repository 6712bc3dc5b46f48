// Decode attention without f16 subnormals (attention/subnormal.cu): pages of kvfold's own codecs, 4 bits.
#include "attention/decode.cuh"

template <int D> using Pages = SealedRotated<RotatedKeys<4, D, Number::NORMAL>, RotatedValues<4, D, Number::NORMAL>>;

DECODE_KERNELS(kf4_normal, Pages)
