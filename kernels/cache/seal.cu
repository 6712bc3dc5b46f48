// seal: encodes one half of 16-bit pages as the bytes of a codec, bit for bit as the
// scalar codecs of src/codec/ do. A kernel is named seal_{16-bit type}_{codec}_{side}.
//
// Grid (n), 128 threads, for any n: a block encodes one half of one stream's page after
// the other, every n-th of all that the jobs stand for.
//
// Shared memory: floats none; KIVI a padded tile of 64 · (2d + 16) bytes and 16d bytes
// for scales and zeros (37 KiB at d = 256); kvfold's own codecs a tile of 64 · (4d + 16)
// bytes and 8d (67 KiB), and with feedback 64d + 2432 more (86 KiB).
// Must move, a half page: 128·d bytes in, and out 64·d (fp8), 128·d (16 bits),
// 40·d (kivi4), 24·d (kivi2), 36·d (kf4), 28·d (kf3) or 20·d (kf2).
//
// sass: seal_* wide=1

#include "cache/seal_affine.cuh"
#include "cache/seal_feedback.cuh"
#include "cache/seal_float.cuh"
#include "cache/seal_rotated.cuh"

namespace cache {

template <class T, class To, Side SIDE> DEVICE void seal_as_float(const SealParams& p) {
    for_halves<SIDE>(p, [&](SealHalf half) { seal_float<T, To>(half.from, half.to, p.head_dim); });
}

// KIVI: groups of 32, unrotated.
template <class T, uint32_t BITS, Side SIDE> DEVICE void seal_as_kivi(const SealParams& p) {
    for_halves<SIDE>(p, [&](SealHalf half) { seal_affine<T, BITS, 32, SIDE>(half.from, half.to, p.head_dim); });
}

// kvfold's own: groups of 64, rotated, ranges searched; keys with feedback, if there is any.
template <class T, uint32_t BITS, Side SIDE> DEVICE void seal_as_kf(const SealParams& p) {
    if (SIDE == KEY && p.feedback) {
        return for_halves<SIDE>(p, [&](SealHalf half) {
            uint64_t weights = p.feedback + uint64_t(half.stream) * (4 * p.head_dim * p.head_dim);
            seal_fed<T, BITS>(half.from, half.to, weights, p.head_dim);
        });
    }
    for_halves<SIDE>(p, [&](SealHalf half) { seal_rotated<T, BITS, SIDE>(half.from, half.to, p.head_dim); });
}

} // namespace cache

using namespace cache;

KERNEL(seal_f16_kivi2_key, SealParams, SEAL_THREADS, 4) { seal_as_kivi<F16, 2, KEY>(params); }
KERNEL(seal_f16_kivi2_value, SealParams, SEAL_THREADS, 4) { seal_as_kivi<F16, 2, VALUE>(params); }
KERNEL(seal_f16_kivi4_key, SealParams, SEAL_THREADS, 4) { seal_as_kivi<F16, 4, KEY>(params); }
KERNEL(seal_f16_kivi4_value, SealParams, SEAL_THREADS, 4) { seal_as_kivi<F16, 4, VALUE>(params); }
KERNEL(seal_bf16_kivi2_key, SealParams, SEAL_THREADS, 4) { seal_as_kivi<Bf16, 2, KEY>(params); }
KERNEL(seal_bf16_kivi2_value, SealParams, SEAL_THREADS, 4) { seal_as_kivi<Bf16, 2, VALUE>(params); }
KERNEL(seal_bf16_kivi4_key, SealParams, SEAL_THREADS, 4) { seal_as_kivi<Bf16, 4, KEY>(params); }
KERNEL(seal_bf16_kivi4_value, SealParams, SEAL_THREADS, 4) { seal_as_kivi<Bf16, 4, VALUE>(params); }

KERNEL(seal_f16_kf2_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 2, KEY>(params); }
KERNEL(seal_f16_kf2_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 2, VALUE>(params); }
KERNEL(seal_f16_kf3_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 3, KEY>(params); }
KERNEL(seal_f16_kf3_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 3, VALUE>(params); }
KERNEL(seal_f16_kf4_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 4, KEY>(params); }
KERNEL(seal_f16_kf4_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<F16, 4, VALUE>(params); }
KERNEL(seal_bf16_kf2_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 2, KEY>(params); }
KERNEL(seal_bf16_kf2_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 2, VALUE>(params); }
KERNEL(seal_bf16_kf3_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 3, KEY>(params); }
KERNEL(seal_bf16_kf3_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 3, VALUE>(params); }
KERNEL(seal_bf16_kf4_key, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 4, KEY>(params); }
KERNEL(seal_bf16_kf4_value, SealParams, SEAL_THREADS, 4) { seal_as_kf<Bf16, 4, VALUE>(params); }

KERNEL(seal_f16_fp8_key, SealParams, SEAL_THREADS, 4) { seal_as_float<F16, ToFp8, KEY>(params); }
KERNEL(seal_f16_fp8_value, SealParams, SEAL_THREADS, 4) { seal_as_float<F16, ToFp8, VALUE>(params); }
KERNEL(seal_bf16_fp8_key, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, ToFp8, KEY>(params); }
KERNEL(seal_bf16_fp8_value, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, ToFp8, VALUE>(params); }
KERNEL(seal_f16_f16_key, SealParams, SEAL_THREADS, 4) { seal_as_float<F16, To16<F16>, KEY>(params); }
KERNEL(seal_f16_f16_value, SealParams, SEAL_THREADS, 4) { seal_as_float<F16, To16<F16>, VALUE>(params); }
KERNEL(seal_bf16_bf16_key, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, To16<Bf16>, KEY>(params); }
KERNEL(seal_bf16_bf16_value, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, To16<Bf16>, VALUE>(params); }
KERNEL(seal_bf16_f16_key, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, To16<F16>, KEY>(params); }
KERNEL(seal_bf16_f16_value, SealParams, SEAL_THREADS, 4) { seal_as_float<Bf16, To16<F16>, VALUE>(params); }
