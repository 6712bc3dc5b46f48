// Twins of the device half of common/ptx.cuh: same names, same meaning, in the
// same order. The site is filled in by the compiler; kernels do not pass it.
#pragma once

#include <type_traits>

#include "emulator/collective.h"
#include "emulator/half.h"
#include "emulator/runtime.h"

using KvSite = kvfold::emulator::Site;

// ---- global memory --------------------------------------------------------

template <class T> DEVICE T load(const T* p, KvSite site = KvSite::here()) {
    static_assert(std::is_trivially_copyable<T>::value, "load reads plain data");
    kvfold::emulator::check_global(p, sizeof(T), alignof(T), "load", site);
    return *p;
}
template <class T> DEVICE void store(T* p, T x, KvSite site = KvSite::here()) {
    static_assert(std::is_trivially_copyable<T>::value, "store writes plain data");
    kvfold::emulator::check_global(p, sizeof(T), alignof(T), "store", site);
    *p = x;
}

struct alignas(16) Vec16 {
    uint32_t w[4];
};

// ---- asynchronous copies to shared memory ---------------------------------

template <uint32_t AT = 0>
DEVICE void cp_async16(void* shared, const void* global, KvSite site = KvSite::here()) {
    void* to = static_cast<uint8_t*>(shared) + AT;
    kvfold::emulator::copy_issue(to, static_cast<const uint8_t*>(global) + AT, true, site);
}
DEVICE void cp_async16_or_zero(void* shared, const void* global, bool valid,
                               KvSite site = KvSite::here()) {
    kvfold::emulator::copy_issue(shared, global, valid, site);
}
DEVICE void cp_async_commit() { kvfold::emulator::copy_commit(); }
template <int N> DEVICE void cp_async_wait() {
    static_assert(N >= 0, "a count of groups");
    kvfold::emulator::copy_wait(N);
}

// ---- barriers and warp collectives ----------------------------------------

DEVICE void sync_block(KvSite site = KvSite::here()) { kvfold::emulator::sync_block_at(site); }
DEVICE void sync_named(uint32_t id, uint32_t threads, KvSite site = KvSite::here()) {
    kvfold::emulator::wait_at_barrier(id, threads, site);
}
DEVICE void sync_warp(KvSite site = KvSite::here()) {
    kvfold::emulator::meet(kvfold::emulator::Wait::sync_warp, nullptr, site);
}
DEVICE uint32_t shuffle_xor(uint32_t x, uint32_t mask, KvSite site = KvSite::here()) {
    kvfold::emulator::ShuffleOperands operands = {x, mask, 0};
    kvfold::emulator::meet(kvfold::emulator::Wait::shuffle_xor, &operands, site);
    return operands.result;
}
DEVICE float shuffle_xor(float x, uint32_t mask, KvSite site = KvSite::here()) {
    return kvfold::emulator::float_of(shuffle_xor(kvfold::emulator::bits_of(x), mask, site));
}
DEVICE uint32_t shuffle(uint32_t x, uint32_t lane, KvSite site = KvSite::here()) {
    kvfold::emulator::ShuffleOperands operands = {x, lane, 0};
    kvfold::emulator::meet(kvfold::emulator::Wait::shuffle, &operands, site);
    return operands.result;
}
DEVICE float shuffle(float x, uint32_t lane, KvSite site = KvSite::here()) {
    return kvfold::emulator::float_of(shuffle(kvfold::emulator::bits_of(x), lane, site));
}
DEVICE uint32_t warp_ballot(bool p, KvSite site = KvSite::here()) {
    kvfold::emulator::VoteOperands operands = {p, 0};
    kvfold::emulator::meet(kvfold::emulator::Wait::ballot, &operands, site);
    return operands.result;
}
DEVICE uint32_t warp_min(uint32_t x, KvSite site = KvSite::here()) {
    for (uint32_t mask = 1; mask < 32; mask *= 2) x = min_of(x, shuffle_xor(x, mask, site));
    return x;
}
DEVICE uint32_t warp_max(uint32_t x, KvSite site = KvSite::here()) {
    for (uint32_t mask = 1; mask < 32; mask *= 2) x = max_of(x, shuffle_xor(x, mask, site));
    return x;
}
DEVICE bool warp_any(bool p, KvSite site = KvSite::here()) {
    kvfold::emulator::VoteOperands operands = {p, 0};
    kvfold::emulator::meet(kvfold::emulator::Wait::any, &operands, site);
    return operands.result != 0;
}

DEVICE uint32_t lane_id_anew() { return lane_id(); }
DEVICE uint32_t atomic_add(uint32_t* p, uint32_t x, KvSite site = KvSite::here()) {
    kvfold::emulator::check_global(p, sizeof *p, alignof(uint32_t), "atomic_add", site);
    kvfold::emulator::perhaps_yield();
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}

DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t x, KvSite site = KvSite::here()) {
    kvfold::emulator::check_shared(p, sizeof *p, "atomic_add_shared", site);
    kvfold::emulator::perhaps_yield();
    uint32_t before = *p;
    *p = before + x;
    return before;
}

// ---- matrices -------------------------------------------------------------

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, KvSite site = KvSite::here()) {
    kvfold::emulator::check_shared(row, 16, "ldmatrix_x4", site);
    kvfold::emulator::LdmatrixOperands operands = {row, r};
    kvfold::emulator::meet(kvfold::emulator::Wait::ldmatrix_x4, &operands, site);
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, KvSite site = KvSite::here()) {
    kvfold::emulator::check_shared(row, 16, "ldmatrix_x4_trans", site);
    kvfold::emulator::LdmatrixOperands operands = {row, r};
    kvfold::emulator::meet(kvfold::emulator::Wait::ldmatrix_x4_trans, &operands, site);
}
DEVICE uint32_t movmatrix_trans(uint32_t x, KvSite site = KvSite::here()) {
    kvfold::emulator::MovmatrixOperands operands = {x, 0};
    kvfold::emulator::meet(kvfold::emulator::Wait::movmatrix_trans, &operands, site);
    return operands.result;
}
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    KvSite site = KvSite::here()) {
    kvfold::emulator::MmaOperands operands = {d, a, b};
    kvfold::emulator::meet(kvfold::emulator::Wait::mma_f16, &operands, site);
}
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     KvSite site = KvSite::here()) {
    kvfold::emulator::MmaOperands operands = {d, a, b};
    kvfold::emulator::meet(kvfold::emulator::Wait::mma_bf16, &operands, site);
}

// ---- arithmetic -----------------------------------------------------------

DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float sub_rn(float a, float b) { return a - b; }
DEVICE float div_rn(float a, float b) { return a / b; }
DEVICE float sqrt_rn(float x) { return sqrtf(x); }
DEVICE double mul_rn(double a, double b) { return a * b; }
DEVICE double sub_rn(double a, double b) { return a - b; }
DEVICE float rint_rn(float x) { return rintf(x); }
DEVICE double rint_rn(double x) { return rint(x); }

DEVICE float fma_fast(float a, float b, float c) { return fmaf(a, b, c); }
// .ftz: subnormal inputs and results are zeros of the same sign.
DEVICE float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE float log2_fast(float x) { return log2f(fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x); }
DEVICE void sincos_pi(float x, float* sin, float* cos) {
    if (!isfinite(x)) {
        *sin = *cos = NAN;
        return;
    }
    // The remainder is exact; a quarter turn at most is left for the library,
    // so that multiples of a half come out exact as well.
    double turn = remainder(double(x), 2.0);
    int quarter = int(rint(turn * 2.0)); // −2..2
    double rest = (turn - quarter * 0.5) * 3.14159265358979323846;
    double s = ::sin(rest), c = ::cos(rest);
    switch (quarter & 3) {
    case 0: *sin = float(s), *cos = float(c); break;
    case 1: *sin = float(c), *cos = float(-s); break;
    case 2: *sin = float(-s), *cos = float(-c); break;
    case 3: *sin = float(-c), *cos = float(s); break;
    }
}

DEVICE uint32_t float_bits(float x) { return kvfold::emulator::bits_of(x); }
DEVICE float bits_float(uint32_t x) { return kvfold::emulator::float_of(x); }

DEVICE float f16_float(uint16_t x) { return kvfold::emulator::float_from_f16(x); }
DEVICE uint16_t float_f16(float x) { return kvfold::emulator::f16_from_float(x); }
DEVICE float bf16_float(uint16_t x) { return kvfold::emulator::float_from_bf16(x); }
DEVICE uint16_t float_bf16(float x) { return kvfold::emulator::bf16_from_float(x); }
DEVICE uint32_t pack_f16(float low, float high) {
    return float_f16(low) | uint32_t(float_f16(high)) << 16;
}
DEVICE uint32_t pack_bf16(float low, float high) {
    return float_bf16(low) | uint32_t(float_bf16(high)) << 16;
}
// The product of two f16 is exact in f32, so this rounds once.
DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    return pack_f16(f16_float(uint16_t(a)) * f16_float(uint16_t(b)),
                    f16_float(uint16_t(a >> 16)) * f16_float(uint16_t(b >> 16)));
}
// a · b + c, rounded once: exact in double, and rounding that to odd in f32
// leaves enough bits to round to f16.
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    auto one = [](uint16_t x, uint16_t y, uint16_t z) {
        double exact = double(f16_float(x)) * f16_float(y) + f16_float(z);
        float near = float(exact);
        if (near != exact && isfinite(near)) {
            uint32_t bits = float_bits(near);
            if (fabs(double(near)) > fabs(exact)) --bits;
            near = bits_float(bits | 1);
        }
        return uint32_t(float_f16(near));
    };
    return one(uint16_t(a), uint16_t(b), uint16_t(c)) |
           one(uint16_t(a >> 16), uint16_t(b >> 16), uint16_t(c >> 16)) << 16;
}
DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector,
                             KvSite site = KvSite::here()) {
    if (selector & 0x8888)
        kvfold::emulator::fail(
            site, "byte_permute: bit 3 of a selector (0x%x) would replicate a sign", selector);
    uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
        result |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
DEVICE uint32_t popcount(uint64_t x) { return uint32_t(__builtin_popcountll(x)); }
DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
