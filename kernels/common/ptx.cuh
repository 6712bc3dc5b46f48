// The only file with inline assembly and intrinsics. Each function has a twin
// of the same name and meaning in emulator/ptx.h; shapes are those of the PTX ISA.
//
// Collectives (marked "warp") must be reached by all 32 lanes together.
#pragma once

#include "common/kernel.cuh"

#ifdef KVFOLD_EMULATED
#include "emulator/ptx.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// ---- global memory --------------------------------------------------------

// A naturally aligned read or write of 1, 2, 4, 8 or 16 bytes.
template <class T> DEVICE T load(const T* p) { return *p; }
template <class T> DEVICE void store(T* p, T x) { *p = x; }

struct alignas(16) Vec16 { uint32_t w[4]; };

// ---- asynchronous copies to shared memory ---------------------------------

DEVICE uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes, both sides 16-byte aligned; they land at the wait. AT: bytes behind both
// addresses, which cost no instruction.
template <uint32_t AT = 0> DEVICE void cp_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(AT)
                 : "memory");
}
// As cp_async16, or 16 zero bytes if not `valid` (`global` must be a valid address all the same).
DEVICE void cp_async16_or_zero(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
// Closes this thread's group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's newest groups are in flight. Other
// threads see the data after a barrier.
template <int N> DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- barriers and warp collectives ----------------------------------------

DEVICE void sync_block() { __syncthreads(); }
// All `threads` threads (a multiple of 32) that name barrier `id` (1..15).
DEVICE void sync_named(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void sync_warp() { __syncwarp(); }                                                 // warp
DEVICE float shuffle_xor(float x, uint32_t mask) { return __shfl_xor_sync(~0u, x, mask); } // warp
DEVICE uint32_t shuffle_xor(uint32_t x, uint32_t mask) { return __shfl_xor_sync(~0u, x, mask); } // warp
DEVICE float shuffle(float x, uint32_t lane) { return __shfl_sync(~0u, x, lane); }         // warp
DEVICE uint32_t shuffle(uint32_t x, uint32_t lane) { return __shfl_sync(~0u, x, lane); }   // warp
DEVICE uint32_t warp_ballot(bool p) { return __ballot_sync(~0u, p); }                     // warp
DEVICE uint32_t warp_min(uint32_t x) { return __reduce_min_sync(~0u, x); }                  // warp
DEVICE uint32_t warp_max(uint32_t x) { return __reduce_max_sync(~0u, x); }                  // warp
DEVICE bool warp_any(bool p) { return __any_sync(~0u, p); }                               // warp

// lane_id(), asked anew each time: what is made of it holds no register through loops.
DEVICE uint32_t lane_id_anew() {
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

DEVICE uint32_t atomic_add(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
// In shared memory.
DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }

// ---- matrices -------------------------------------------------------------

// Four 8 × 8 matrices of 16-bit elements from shared memory: lane l gives the
// address of row l % 8 of matrix l / 8 (16 bytes, aligned); register i holds
// matrix i, element (lane/4, 2·(lane%4) + 0,1). Warp.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// As ldmatrix_x4, each matrix transposed: element (2·(lane%4) + 0,1, lane/4). Warp.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// Transposes one 8 × 8 matrix of 16-bit elements held as ldmatrix leaves it. Warp.
DEVICE uint32_t movmatrix_trans(uint32_t x) {
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// d += a · b, m16n8k16: a 16 × 16 row-major in 4 registers, b 16 × 8 in 2, d
// 16 × 8 f32: rows lane/4 (d[0], d[1]) and lane/4 + 8 (d[2], d[3]), columns
// 2·(lane%4) + 0,1. Subnormal f16 inputs count in full (Fasi et al. 2021). Warp.
DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- arithmetic -----------------------------------------------------------

// IEEE single operations, never contracted to an FMA (ARCHITECTURE, rule 5).
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_rn(float x) { return __fsqrt_rn(x); }
DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DEVICE double sub_rn(double a, double b) { return __dsub_rn(a, b); }
// Rounds to the nearest integer, ties to even.
DEVICE float rint_rn(float x) { return rintf(x); }
DEVICE double rint_rn(double x) { return rint(x); }

DEVICE float fma_fast(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// 2^x, about 2 ulp, 0 at −∞.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// sin and cos of π·x.
DEVICE void sincos_pi(float x, float* sin, float* cos) { sincospif(x, sin, cos); }

DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }

// Pairs of 16-bit floats in a word, the first in the low half. Packing rounds to nearest even.
DEVICE uint32_t pack_f16(float low, float high) {
    __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&h);
}
DEVICE uint32_t pack_bf16(float low, float high) {
    __nv_bfloat162 h = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&h);
}
DEVICE float f16_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
DEVICE uint16_t float_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE float bf16_float(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
DEVICE uint16_t float_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
// Products of pairs of f16.
DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    __half2 c = __hmul2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
    return *reinterpret_cast<uint32_t*>(&c);
}
// a · b + c of pairs of f16, rounded once.
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    __half2 d = __hfma2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b),
                        *reinterpret_cast<__half2*>(&c));
    return *reinterpret_cast<uint32_t*>(&d);
}
// (x & mask): kept apart so that the count of these is visible in the SASS table.
DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
    return __byte_perm(a, b, selector);
}
DEVICE uint32_t popcount(uint64_t x) { return __popcll(x); }
// (a & b) | c in one instruction, which the compiler does not make of two constants.
DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

#endif
