// Decode attention over exact KIVI pages, 2-bit keys and values.
#include "attention/decode.cuh"

template <class T, int D, int NT>
using Kernel = Decode<T, D, NT, Sealed<KiviKeys<2, D>, KiviValues<2, D>>, 3 * 64 * D * 3 / 4>;

KERNEL(decode_kivi2_f16_d128_n8, AttendParams, 128, 3) { Kernel<F16, 128, 1>::run(params); }
