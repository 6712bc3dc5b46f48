// Decode attention without f16 subnormals (attention/subnormal.cu): exact KIVI pages, 4-bit keys and 2-bit values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<4, D, Number::NORMAL>, KiviValues<2, D, Number::NORMAL>>;

DECODE_KERNELS(kivi42_normal, Pages)
