// Decode attention: exact KIVI pages, 4-bit keys and values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<4, D>, KiviValues<4, D>>;

DECODE_KERNELS(kivi4, Pages)
