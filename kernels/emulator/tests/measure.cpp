// What a collective, a barrier and a load cost, in processor time.
#include <time.h>

#include "emulator/tests/harness.h"

void measure() {
    const char* names[] = {"mma_f16, a warp", "sync_block, 128 threads", "shuffle_xor, a warp",
                           "load, a thread"};
    const uint32_t per_round[] = {4, 1, 4, 128}; // in a block of 128 threads
    Buffer<uint32_t> in(128), out(128);
    for (uint32_t mode = 0; mode < 4; ++mode) {
        double best = 1e9, worst = 0;
        for (uint64_t seed = 0; seed < N_SEEDS; ++seed) {
            uint32_t n = 5000;
            clock_t start = clock();
            std::string error =
                launch("costs", {128, 0, 1, 1}, {in.address(), out.address(), n, mode}, seed);
            double spent = double(clock() - start) / CLOCKS_PER_SEC;
            if (!error.empty()) return report("measure", error);
            double each = spent * 1e6 / n / per_round[mode];
            best = each < best ? each : best;
            worst = each > worst ? each : worst;
        }
        printf("       %-24s %.3f to %.3f us\n", names[mode], best, worst);
    }
}
