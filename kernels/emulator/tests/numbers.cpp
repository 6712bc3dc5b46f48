// The twins that need no warp: conversions and arithmetic, called as plain functions.
#include "common/ptx.cuh"
#include "emulator/tests/harness.h"

// The value of a 16-bit float by definition.
static double decode(uint16_t h, int mantissa_bits, int bias) {
    int mantissa = h & ((1 << mantissa_bits) - 1), exponent = (h & 0x7fff) >> mantissa_bits;
    int top = (1 << (15 - mantissa_bits)) - 1;
    double sign = h & 0x8000 ? -1 : 1;
    if (exponent == top) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Every value decodes and encodes to itself; halfway between neighbours goes to
// the even one, and a hair beside it to the nearer one.
static std::string conversions(float (*to_float)(uint16_t), uint16_t (*from_float)(float),
                               int mantissa_bits, int bias) {
    uint16_t infinity = uint16_t(((1 << (15 - mantissa_bits)) - 1) << mantissa_bits);
    for (uint32_t h = 0; h < 0x10000; ++h) {
        std::string at = " at " + std::to_string(h);
        double value = decode(uint16_t(h), mantissa_bits, bias);
        float got = to_float(uint16_t(h));
        if (isnan(value)) {
            if (!isnan(got) || from_float(got) != 0x7fff) return "NaN" + at;
            continue;
        }
        if (double(got) != value || signbit(got) != signbit(value)) return "decode" + at;
        if (from_float(got) != h) return "encode" + at;
        if ((h & 0x7fff) >= infinity) continue;
        // Above the largest value, the halfway point to what would come next.
        double next = (h & 0x7fff) + 1 == infinity
                          ? 2 * value - decode(uint16_t(h - 1), mantissa_bits, bias)
                          : decode(uint16_t(h + 1), mantissa_bits, bias);
        float middle = float((value + next) / 2); // exact in f32
        if (from_float(middle) != (h % 2 ? h + 1 : h)) return "halfway above" + at;
        if (from_float(nextafterf(middle, float(value))) != h) return "under halfway above" + at;
        if (from_float(nextafterf(middle, middle > 0 ? INFINITY : -INFINITY)) != h + 1)
            return "over halfway above" + at;
    }
    return "";
}

static std::string pairs() {
    if (pack_f16(1.0f, -2.0f) != 0xc0003c00) return "pack_f16";
    if (pack_bf16(1.0f, -2.0f) != 0xc0003f80) return "pack_bf16";
    // 2^-14 · 2^-10 is the smallest subnormal; 3 · 2^-11 more is rounded to even.
    if (mul_f16x2(pack_f16(0x1p-14f, 3.0f), pack_f16(0x1p-10f, 1.5f)) != pack_f16(0x1p-24f, 4.5f))
        return "mul_f16x2";
    if (mul_f16x2(pack_f16(0x1p-14f, 65504.0f), pack_f16(0x1p-11f, 2.0f)) != 0x7c000000)
        return "mul_f16x2, at the edges";
    if (byte_permute(0x33221100, 0x77665544, 0x7531) != 0x77553311) return "byte_permute";
    if (popcount(0xf0f0000000000001) != 9) return "popcount";
    if (float_bits(1.0f) != 0x3f800000 || bits_float(0xc0000000) != -2.0f) return "bits";
    return "";
}

static std::string arithmetic() {
    if (rint_rn(2.5f) != 2 || rint_rn(3.5f) != 4 || rint_rn(-0.5f) != 0) return "rint_rn";
    float a = 1 + 0x1p-12f, b = 1 + 0x1p-12f; // the square needs 25 bits
    if (add_rn(mul_rn(a, b), -1.0f) != 0x1p-11f) return "mul_rn contracted";
    if (fma_fast(a, b, -1.0f) != 0x1p-11f + 0x1p-24f) return "fma_fast";
    if (sub_rn(1.0f, 0x1p-26f) != 1.0f || div_rn(1.0f, 3.0f) != 0x1.555556p-2f)
        return "sub_rn, div_rn";
    if (exp2_fast(-INFINITY) != 0 || exp2_fast(-127.0f) != 0 || exp2_fast(10.0f) != 1024)
        return "exp2_fast";
    if (log2_fast(8.0f) != 3 || log2_fast(0.0f) != -INFINITY || log2_fast(0x1p-127f) != -INFINITY)
        return "log2_fast";
    for (int i = -4000; i <= 4000; ++i) {
        float s, c, x = float(i) / 64;
        sincos_pi(x, &s, &c);
        double angle = 3.14159265358979323846 * double(x);
        if (fabs(s - sin(angle)) > 1e-7 || fabs(c - cos(angle)) > 1e-7)
            return "sincos_pi(" + std::to_string(x) + ")";
        if (i % 64 == 0 && s != 0) return "sincos_pi of a whole number";
        if (i % 64 == 32 && c != 0) return "sincos_pi of a half";
    }
    return "";
}

void test_numbers() {
    report("f16 conversions, all values", conversions(f16_float, float_f16, 10, 15));
    report("bf16 conversions, all values", conversions(bf16_float, float_bf16, 7, 127));
    report("pairs of f16, bytes, bits", pairs());
    report("arithmetic", arithmetic());
}
