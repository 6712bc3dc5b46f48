// Decode attention without f16 subnormals (attention/subnormal.cu): exact KIVI pages, 4-bit keys and values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<4, D, Number::NORMAL>, KiviValues<4, D, Number::NORMAL>>;

DECODE_KERNELS(kivi4_normal, Pages)
