// Prefill attention: exact KIVI pages, 4-bit keys and values.
#include "attention/prefill.cuh"

template <int D> using Pages = SealedPages<KiviKeyHalf<4, D>, KiviValueHalf<4, D>>;

PREFILL_KERNELS(kivi4, Pages)
