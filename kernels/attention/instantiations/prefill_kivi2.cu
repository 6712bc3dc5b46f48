// Prefill attention: exact KIVI pages, 2-bit keys and values.
#include "attention/prefill.cuh"

template <int D> using Pages = SealedPages<KiviKeyHalf<2, D>, KiviValueHalf<2, D>>;

PREFILL_KERNELS(kivi2, Pages)
