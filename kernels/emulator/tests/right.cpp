// Runs the kernels of right.cu under many seeds against plain loops.
#include <math.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "emulator/half.h"
#include "emulator/random.h"
#include "emulator/tests/harness.h"

using namespace kvfold::emulator;

// `check` launches with the seed and says what was wrong, or "".
static void under_seeds(const std::string& name,
                        const std::function<std::string(uint64_t)>& check) {
    for (uint64_t seed = 0; seed < N_SEEDS; ++seed) {
        std::string problem = check(seed);
        if (!problem.empty()) return report(name, "seed " + std::to_string(seed) + ": " + problem);
    }
    report(name, "");
}

template <class T> static std::string differ(const Buffer<T>& got, const std::vector<T>& expected) {
    for (size_t i = 0; i < expected.size(); ++i)
        if (memcmp(&got[i], &expected[i], sizeof(T)) != 0)
            return "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " +
                   std::to_string(expected[i]);
    return "";
}

static std::string collectives(uint64_t seed) {
    Buffer<uint32_t> out(64 * 10);
    std::string error = launch("collectives", {64}, {0, out.address(), 0, 0}, seed);
    if (!error.empty()) return error;
    std::vector<uint32_t> expected;
    for (uint32_t id = 0; id < 64; ++id) {
        uint32_t base = id / 32 * 32, lane = id % 32, thirds = 0;
        uint32_t least = ~0u, most = 0;
        for (uint32_t l = 0; l < 32; l += 3) thirds |= 1u << l;
        for (uint32_t l = 0; l < 32; ++l) {
            least = std::min(least, (base + l) * 13 % 64 + 5);
            most = std::max(most, (base + l) * 13 % 64 + 5);
        }
        for (uint32_t x : {(base + (lane ^ 5)) * 10, bits_of(float(base + (lane ^ 3)) + 0.5f),
                           (base + (lane * 7 + 1) % 32) * 3, bits_of(float(base + 31 - lane)),
                           thirds, 1u, 0u, base ? 0xffu : ~0u, least, most})
            expected.push_back(x);
    }
    return differ(out, expected);
}

// Exact: small integers (f16 ones also as subnormals), so no sum is rounded.
static std::string mma_exact(uint64_t seed, bool bf16, bool subnormal) {
    Random random(seed);
    auto encode = bf16 ? bf16_from_float : f16_from_float;
    std::vector<float> a(256), b(128), c(128), d(128);
    float step = subnormal ? 0x1p-24f : 1.0f; // of f16 subnormals
    for (float& x : a) x = (float(random.below(41)) - 20) * step;
    for (float& x : b) x = float(random.below(41)) - 20;
    for (float& x : c) x = (float(random.below(2001)) - 1000) * step;
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 8; ++n) {
            float sum = c[m * 8 + n];
            for (int k = 0; k < 16; ++k) sum += a[m * 16 + k] * b[k * 8 + n];
            d[m * 8 + n] = sum;
        }
    std::vector<uint16_t> in;
    for (float x : a) in.push_back(encode(x));
    for (float x : b) in.push_back(encode(x));
    in.resize(in.size() + 256);
    memcpy(&in[384], c.data(), 512);
    Buffer<uint16_t> input(in);
    Buffer<float> out(128);
    std::string error = launch("mma", {}, {input.address(), out.address(), 0, bf16}, seed);
    return error.empty() ? differ(out, d) : error;
}

// Any bits at all: infinities and NaN too. Sums in double, in the order of k.
static std::string mma_any_bits(uint64_t seed, bool bf16) {
    Random random(seed);
    auto decode = bf16 ? float_from_bf16 : float_from_f16;
    std::vector<uint16_t> in(384 + 256);
    for (uint16_t& h : in) h = uint16_t(random.next());
    if (seed % 2) // and without any, or nearly every sum would be NaN
        for (int i = 0; i < 384; ++i) in[i] &= 0xbfff;
    float c[128];
    memcpy(c, &in[384], sizeof c);
    Buffer<uint16_t> input(in);
    Buffer<float> out(128);
    std::string error = launch("mma", {}, {input.address(), out.address(), 0, bf16}, seed);
    if (!error.empty()) return error;
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 8; ++n) {
            double sum = c[m * 8 + n];
            for (int k = 0; k < 16; ++k)
                sum += double(decode(in[m * 16 + k])) * double(decode(in[256 + k * 8 + n]));
            float expected = float(sum), got = out[m * 8 + n];
            if (isnan(expected) ? !isnan(got) : got != expected)
                return "row " + std::to_string(m) + ", column " + std::to_string(n) + " is " +
                       std::to_string(got);
        }
    return "";
}

static std::string matrices(uint64_t seed) {
    std::vector<uint16_t> in(256);
    for (int i = 0; i < 256; ++i) in[i] = uint16_t(i * 259 + 7);
    Buffer<uint16_t> input(in);
    Buffer<uint32_t> out(32 * 12);
    std::string error = launch("matrices", {32, 512}, {input.address(), out.address(), 0, 0}, seed);
    if (!error.empty()) return error;
    std::vector<uint32_t> expected;
    for (int lane = 0; lane < 32; ++lane) {
        int g = lane / 4, t = lane % 4;
        auto plain = [&](int m) {
            return in[m * 64 + g * 8 + 2 * t] | uint32_t(in[m * 64 + g * 8 + 2 * t + 1]) << 16;
        };
        auto trans = [&](int m) {
            return in[m * 64 + 16 * t + g] | uint32_t(in[m * 64 + 16 * t + 8 + g]) << 16;
        };
        for (int m = 0; m < 4; ++m) expected.push_back(plain(m));
        for (int turn = 0; turn < 2; ++turn)
            for (int m = 0; m < 4; ++m) expected.push_back(trans(m));
    }
    return differ(out, expected);
}

static std::string double_buffer(uint64_t seed) {
    uint32_t n = 7;
    std::vector<uint32_t> in(n * 512), expected(128);
    for (uint32_t i = 0; i < in.size(); ++i) in[i] = i * 2654435761u;
    for (uint32_t id = 0; id < 128; ++id)
        for (uint32_t tile = 0; tile < n; ++tile)
            for (uint32_t w = 0; w < 4; ++w)
                expected[id] += (w + 1) * in[tile * 512 + (127 - id) * 4 + w];
    Buffer<uint32_t> input(in), out(128);
    std::string error =
        launch("double_buffer", {128, 4096}, {input.address(), out.address(), n, 0}, seed);
    return error.empty() ? differ(out, expected) : error;
}

static std::string copy_or_zero(uint64_t seed) {
    std::vector<uint32_t> in(256), expected(256);
    for (uint32_t i = 0; i < 256; ++i) in[i] = i + 1;
    for (uint32_t i = 0; i < 256; ++i)
        expected[i] = i / 4 % 2 == 1 ? in[(63 - i / 4) * 4 + i % 4] : 0;
    Buffer<uint32_t> input(in), out(256);
    std::string error =
        launch("copy_or_zero", {64, 1024}, {input.address(), out.address(), 0, 0}, seed);
    return error.empty() ? differ(out, expected) : error;
}

static std::string ring(uint64_t seed) {
    uint32_t n = 9;
    std::vector<uint32_t> expected(256);
    for (uint32_t id = 0; id < 256; ++id) expected[id] = (id + 33 * n) % 256 + n;
    Buffer<uint32_t> out(256);
    std::string error = launch("ring", {256, 1024}, {0, out.address(), n, 0}, seed);
    return error.empty() ? differ(out, expected) : error;
}

static std::string named_rings(uint64_t seed) {
    uint32_t n = 5;
    std::vector<uint32_t> expected(128);
    for (uint32_t i = 0; i < 128; ++i) {
        uint32_t rounds = n + i / 64 * 3, id = i % 64;
        if (id < 32) id = 31 - id;
        expected[i] = (id + 33 * rounds) % 64 + rounds;
    }
    Buffer<uint32_t> out(128);
    std::string error = launch("named_rings", {128, 512}, {0, out.address(), n, 0}, seed);
    return error.empty() ? differ(out, expected) : error;
}

static std::string tickets(uint64_t seed) {
    uint32_t n = 64 * 20;
    Buffer<uint32_t> out(std::vector<uint32_t>(1 + n, 0));
    std::string error = launch("tickets", {64, 0, 20, 4}, {0, out.address(), 0, 0}, seed);
    if (!error.empty()) return error;
    std::vector<bool> seen(n, false);
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t who = out[1 + i];
        if (who >= n || seen[who])
            return "ticket " + std::to_string(i) + " went to " + std::to_string(who);
        seen[who] = true;
    }
    return out[0] == n ? "" : "the count is " + std::to_string(out[0]);
}

// The order in which tickets are drawn depends on the seed, and on it alone.
static std::string order_follows_seed() {
    auto order = [](uint64_t seed) {
        Buffer<uint32_t> out(std::vector<uint32_t>(1 + 64 * 4, 0));
        std::string error = launch("tickets", {64, 0, 4, 1}, {0, out.address(), 0, 0}, seed);
        return error.empty() ? out.values() : std::vector<uint32_t>();
    };
    if (order(1) != order(1)) return "one seed gave two orders";
    if (order(1) == order(2)) return "two seeds gave one order";
    return "";
}

static std::string grid_indices(uint64_t seed) {
    uint32_t grid[3] = {5, 4, 3};
    Buffer<uint32_t> out(60);
    TestParams params = {0, out.address(), 0, 0};
    char error[256];
    if (kvfold_emulator_launch("grid_indices", grid, 32, 0, &params, sizeof params, seed, 3, 0,
                               error, sizeof error))
        return error;
    std::vector<uint32_t> expected(60);
    for (uint32_t i = 0; i < 60; ++i) expected[i] = i;
    return differ(out, expected);
}

// Launches from several host threads at once, some with host threads of their own.
static std::string launches_at_once() {
    std::vector<std::string> problems(4);
    std::vector<std::thread> threads;
    for (size_t t = 0; t < problems.size(); ++t)
        threads.emplace_back([&problems, t] {
            for (uint64_t seed = 0; seed < 8 && problems[t].empty(); ++seed)
                problems[t] = t % 2 ? tickets(seed) : double_buffer(seed);
        });
    for (std::thread& thread : threads) thread.join();
    for (const std::string& problem : problems)
        if (!problem.empty()) return problem;
    return "";
}

void test_right() {
    under_seeds("shuffle, shuffle_xor, ballot, min, max, any, sync_warp", collectives);
    under_seeds("mma_f16", [](uint64_t seed) { return mma_exact(seed, false, false); });
    under_seeds("mma_f16, subnormals", [](uint64_t seed) { return mma_exact(seed, false, true); });
    under_seeds("mma_bf16", [](uint64_t seed) { return mma_exact(seed, true, false); });
    under_seeds("mma_f16, any bits", [](uint64_t seed) { return mma_any_bits(seed, false); });
    under_seeds("mma_bf16, any bits", [](uint64_t seed) { return mma_any_bits(seed, true); });
    under_seeds("ldmatrix_x4, ldmatrix_x4_trans, movmatrix_trans", matrices);
    under_seeds("cp_async16, two buffers", double_buffer);
    under_seeds("cp_async16_or_zero", copy_or_zero);
    under_seeds("sync_block", ring);
    under_seeds("sync_named", named_rings);
    under_seeds("atomic_add", tickets);
    report("the order follows the seed", order_follows_seed());
    under_seeds("three-dimensional grid, 3 host threads", grid_indices);
    report("launches at once", launches_at_once());
}
