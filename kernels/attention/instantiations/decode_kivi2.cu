// Decode attention: exact KIVI pages, 2-bit keys and values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<2, D>, KiviValues<2, D>>;

DECODE_KERNELS(kivi2, Pages)
