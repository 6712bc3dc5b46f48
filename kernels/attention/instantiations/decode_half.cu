// Decode attention: 16-bit pages only.
#include "attention/decode.cuh"

template <int D> using Pages = NeverSealed;

DECODE_KERNELS(half, Pages)
