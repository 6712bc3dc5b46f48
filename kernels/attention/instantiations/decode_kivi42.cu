// Decode attention: exact KIVI pages, 4-bit keys and 2-bit values.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<KiviKeys<4, D>, KiviValues<2, D>>;

DECODE_KERNELS(kivi42, Pages)
