// Decode attention: sealed pages in e4m3.
#include "attention/decode.cuh"

template <int D> using Pages = Sealed<Fp8Keys<D>, Fp8Values<D>>;

DECODE_KERNELS(fp8, Pages)
