// Every kernel of wrong.cu must be caught, whatever the seed (errors), or under
// at least one of the seeds (races). After each, the device still works.
#include <sys/wait.h>
#include <unistd.h>

#include "emulator/fiber.h"
#include "emulator/tests/harness.h"

// The error must hold all of `words`, and be one line.
static void must_fail(const std::string& name, const char* kernel, const Configuration& c,
                      const TestParams& params, const std::vector<std::string>& words) {
    for (uint64_t seed = 0; seed < N_SEEDS; ++seed) {
        std::string error = launch(kernel, c, params, seed);
        if (error.empty()) return report(name, "not caught under seed " + std::to_string(seed));
        if (error.find('\n') != std::string::npos) return report(name, "more than a line");
        for (const std::string& word : words)
            if (error.find(word) == std::string::npos)
                return report(name, "no '" + word + "' in: " + error);
        if (seed == 0) printf("       %s\n", error.c_str());
        if (!launch("ring", {256, 1024}, {0, Buffer<uint32_t>(256).address(), 2, 0}, seed).empty())
            return report(name, "the device does not work afterwards");
    }
    report(name, "");
}

// The output must differ from the right one under some seed.
static void must_differ(const std::string& name, const char* kernel, const Configuration& c,
                        TestParams params, const std::vector<uint32_t>& right) {
    int caught = 0;
    for (uint64_t seed = 0; seed < N_SEEDS; ++seed) {
        Buffer<uint32_t> out(right.size());
        params.out = out.address();
        std::string error = launch(kernel, c, params, seed);
        if (!error.empty()) return report(name, error);
        caught += out.values() != right;
    }
    report(name + " (under " + std::to_string(caught) + " of " + std::to_string(N_SEEDS) +
               " seeds)",
           caught ? "" : "not caught");
}

static std::vector<uint32_t> numbers(uint32_t n, uint32_t (*f)(uint32_t)) {
    std::vector<uint32_t> v(n);
    for (uint32_t i = 0; i < n; ++i) v[i] = f(i);
    return v;
}

static void test_races() {
    must_differ("a missing barrier", "missing_barrier", {128, 512}, {},
                numbers(128, [](uint32_t i) { return 127 - i; }));
    must_differ("a missing barrier before a buffer is used again", "missing_second_barrier",
                {128, 512}, {0, 0, 4, 0},
                numbers(128, [](uint32_t i) { return (i + 33 * 4) % 128 + 4; }));
    auto in = numbers(256, [](uint32_t i) { return i; });
    Buffer<uint32_t> input(in);
    must_differ("a missing cp_async_wait", "careless_copy", {64, 1024}, {input.address(), 0, 0, 0},
                in);
    must_differ("cp_async_wait for too few groups", "careless_copy", {64, 1024},
                {input.address(), 0, 0, 1}, in);
    must_differ("a missing barrier after cp_async_wait", "careless_copy", {64, 1024},
                {input.address(), 0, 0, 2}, in);
}

static void test_addresses() {
    Buffer<uint32_t> b(100);
    Configuration c = {64, 64, 4, 2};
    std::vector<std::string> place = {"'out_of_bounds'", "block (2,0,0)",
                                      "thread 40 (warp 1, lane 8)", "wrong.cu:"};
    auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), place.begin(), place.end());
        return more;
    };
    must_fail("a read out of bounds", "out_of_bounds", c, {0, b.address(), 100, 0},
              with({"load: 4 bytes", "0 bytes past the end"}));
    must_fail("a write out of bounds", "out_of_bounds", c, {0, b.address(), 102, 1},
              with({"store: 4 bytes", "8 bytes past the end"}));
    must_fail("a write before the start", "out_of_bounds", c, {0, b.address(), 0xffffffff, 1},
              with({"store: 4 bytes"}));
    must_fail("an atomic out of bounds", "out_of_bounds", c, {0, b.address(), 100, 2},
              with({"atomic_add: 4 bytes"}));
    must_fail("a copy that reaches out of bounds", "out_of_bounds", c, {0, b.address(), 100, 3},
              with({"cp_async16 source: "}));
    must_fail("load of shared memory", "out_of_bounds", c, {0, b.address(), 0, 4},
              with({"shared memory"}));
    void* freed = kvfold_emulator_alloc(400);
    kvfold_emulator_free(freed);
    report("freed twice", kvfold_emulator_free(freed) == 1 ? "" : "not refused");
    must_fail("a read of freed memory", "out_of_bounds", c, {0, uint64_t(freed), 0, 0},
              with({"a freed allocation"}));
    must_fail("a misaligned load", "misaligned", {32, 64}, {b.address(), 0, 0, 0},
              {"load: 16 bytes misaligned", "not a multiple of 16"});
    must_fail("a misaligned copy to shared", "misaligned", {32, 64}, {b.address(), 0, 0, 1},
              {"cp_async16 destination: ", "misaligned"});
    must_fail("a misaligned copy from global", "misaligned", {32, 64}, {b.address(), 0, 0, 2},
              {"cp_async16 source: ", "not a multiple"});
    must_fail("a misaligned ldmatrix", "misaligned", {32, 1024}, {b.address(), 0, 0, 3},
              {"ldmatrix_x4", "misaligned"});
    must_fail("a copy past shared memory", "shared_out_of_bounds", {32, 496},
              {b.address(), 0, 0, 0}, {"thread 31", "offset 496 of 496"});
    must_fail("ldmatrix past shared memory", "shared_out_of_bounds", {32, 496},
              {b.address(), 0, 0, 1}, {"thread 31", "offset 496 of 496"});
    Buffer<uint32_t> source(128);
    must_fail("a copy never waited for", "unawaited_copy", {32, 512}, {source.address(), 0, 0, 0},
              {"never waited for"});
}

static void test_divergence() {
    struct Case {
        const char* name;
        std::vector<std::string> words;
    } cases[] = {
        {"a shuffle that half of the lanes miss",
         {"warp ", "lanes 0-15 at shuffle_xor (", "lanes 16-31 exited"}},
        {"a shuffle while the other lanes wait at a barrier",
         {"warp ", "lanes 0-15 at shuffle_xor (", "lanes 16-31 at sync_block ("}},
        {"two collectives", {"divergent warp", "warp_ballot (", "sync_warp ("}},
        {"one collective at two places", {"divergent warp", "sync_warp ("}},
        {"a lane that exits before a block barrier",
         {"warp 1", "lanes 0-12,14-31 at sync_block (", "lanes 13 exited"}},
        {"a block barrier that a warp misses",
         {"threads 0-31 at sync_block (", "threads 32-63 exited"}},
        {"a divergent block barrier",
         {"threads 0-31 at sync_block (", "threads 32-63 at sync_block ("}},
        {"a named barrier that a lane misses", {"warp 1", "at sync_named 1 (", "lanes 13 exited"}},
        {"a named barrier with two counts", {"while others wait there for"}},
        {"a named barrier of half warps", {"warp ", "lanes 0-15 at sync_named 1 ("}},
        {"barrier 0 by name", {"barriers are 1 to 15"}},
    };
    for (uint32_t mode = 0; mode < sizeof cases / sizeof cases[0]; ++mode) {
        std::vector<std::string> words = cases[mode].words;
        words.push_back("kernel 'divergent', block (0,0,0)");
        must_fail(cases[mode].name, "divergent", {64}, {0, 0, 0, mode}, words);
    }
}

// AddressSanitizer ends the process at the first byte; without it, the launch fails.
static void test_shared_overrun() {
    Configuration c = {32, 100};
    report("shared memory filled to its end", launch("shared_overrun", c, {0, 0, 100, 0}, 0));
#ifdef KVFOLD_ASAN
    fflush(stdout);
    for (TestParams params : {TestParams{0, 0, 101, 0}, TestParams{0, 0, 1, 2}}) {
        pid_t child = fork();
        if (child == 0) {
            if (!freopen("/dev/null", "w", stderr)) _exit(0);
            launch("shared_overrun", c, params, 0);
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        report(params.mode ? "a shared memory underrun, by ASan"
                           : "a shared memory overrun, by ASan",
               WIFEXITED(status) && WEXITSTATUS(status) == 1 ? "" : "not caught");
    }
#else
    must_fail("a shared memory overrun", "shared_overrun", c, {0, 0, 101, 0},
              {"outside shared memory, at offset 100 of 100"});
    must_fail("a shared memory underrun", "shared_overrun", c, {0, 0, 1, 2},
              {"outside shared memory, at offset -2 of 100"});
#endif
}

static void test_configuration() {
    TestParams params = {};
    must_fail("an unknown kernel", "no_such_kernel", {}, params, {"no kernel 'no_such_kernel'"});
    must_fail("another number of threads", "ring", {128, 1024}, params,
              {"128 threads, declared with 256"});
    must_fail("too much shared memory", "ring", {256, 300000}, params,
              {"300000 bytes of shared memory"});
    must_fail("an empty grid", "ring", {256, 1024, 0}, params, {"grid (0,1,1)"});
    must_fail("a selector with bit 3", "sign_selector", {}, params, {"byte_permute"});
    uint32_t grid[3] = {1, 1, 1};
    char error[200] = "";
    kvfold_emulator_launch("ring", grid, 256, 1024, &params, 8, 0, 1, 0, error, sizeof error);
    report("params of another size", strstr(error, "params of 8 bytes, not 24") ? "" : error);
    KvfoldEmulatorKernel kernel;
    uint32_t n = 0;
    bool found = false;
    for (; kvfold_emulator_kernel(n, &kernel) == 0; ++n)
        found |= !strcmp(kernel.name, "ring") && kernel.threads == 256 &&
                 kernel.params_bytes == sizeof(TestParams);
    report("the list of kernels", found && n > 10 ? "" : "incomplete");
}

void test_wrong() {
    test_races();
    test_addresses();
    test_divergence();
    test_shared_overrun();
    test_configuration();
}
