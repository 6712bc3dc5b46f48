// Decode attention without f16 subnormals (attention/subnormal.cu): sealed pages in e4m3.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<Fp8Keys<D, Number::NORMAL>, Fp8Values<D, Number::NORMAL>>;

DECODE_KERNELS(fp8_normal, Pages)
