// Decode attention without f16 subnormals (attention/subnormal.cu): exact KIVI pages, 2-bit keys and values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<2, D, Number::NORMAL>, KiviValues<2, D, Number::NORMAL>>;

DECODE_KERNELS(kivi2_normal, Pages)
