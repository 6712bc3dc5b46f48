// Prefill attention: exact KIVI pages, 4-bit keys and 2-bit values.
#include "attention/prefill.cuh"

template <int D> using Pages = SealedPages<KiviKeyHalf<4, D>, KiviValueHalf<2, D>>;

PREFILL_KERNELS(kivi42, Pages)
