// Replays traces of the emulated device: replay [--seed N] [--jobs N] TRACE...
// or replay --self-check. Each trace has a process of its own. Prints a line a trace;
// the exit code says whether all went well.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <set>
#include <thread>

#include "emulator/emulator.h"
#include "emulator/replay/process.h"
#include "emulator/replay/replay.h"

using namespace kvfold::replay;

namespace {

constexpr int TOLD = 2; // the exit code of a process that has said what went wrong

struct Totals {
    uint64_t launches = 0;
    uint64_t reads = 0;
    std::set<std::string> kernels;
};

const char* name_of(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int report(const char* path, const std::string& problem) {
    if (problem.empty()) return 0;
    printf("FAILED %s: %s\n", name_of(path), problem.c_str());
    return TOLD;
}

int replay_one(const char* path, const Trace& trace, uint64_t seed) {
    Totals of;
    for (const Record& r : trace) {
        of.launches += r.kind == Kind::launch;
        of.reads += r.kind == Kind::read;
    }
    std::string problem = replay(trace, seed);
    if (problem.empty())
        printf("ok     %s: %llu launches, %llu reads\n", name_of(path),
               static_cast<unsigned long long>(of.launches),
               static_cast<unsigned long long>(of.reads));
    return report(path, problem);
}

class Replays {
  public:
    Replays(uint64_t seed, unsigned jobs) : seed_(seed), jobs_(jobs ? jobs : 1) {}

    void add(const char* path) {
        Trace trace;
        if (report(path, read_trace(path, trace))) return void(++failed_);
        for (const Record& r : trace) {
            totals_.reads += r.kind == Kind::read;
            if (r.kind != Kind::launch) continue;
            ++totals_.launches;
            totals_.kernels.insert(r.kernel);
        }
        while (running_.size() >= jobs_) finish_one();
        pid_t child = start([&] { return replay_one(path, trace, seed_); });
        if (child > 0)
            running_[child] = path;
        else
            failed_ += report(path, strerror(errno)) != 0;
    }

    // Once all are done: how many failed, after a line about all of them.
    int finish() {
        while (!running_.empty()) finish_one();
        KvfoldEmulatorKernel kernel;
        uint32_t kernels = 0;
        while (kvfold_emulator_kernel(kernels, &kernel) == 0) ++kernels;
        printf("%llu launches of %zu of %u kernels, %llu reads: %d failed\n",
               static_cast<unsigned long long>(totals_.launches), totals_.kernels.size(), kernels,
               static_cast<unsigned long long>(totals_.reads), failed_);
        return failed_;
    }

  private:
    void finish_one() {
        int status = 0;
        auto child = running_.find(wait(&status));
        if (child == running_.end()) return;
        int code = exit_code(status);
        if (code != 0 && code != TOLD)
            report(child->second,
                   code < 0 ? "ended by a signal" : "ended by a sanitizer, see above");
        failed_ += code != 0;
        running_.erase(child);
    }

    uint64_t seed_;
    size_t jobs_;
    std::map<pid_t, const char*> running_;
    Totals totals_;
    int failed_ = 0;
};

bool parse_number(const char* text, uint64_t& number) {
    char* end = nullptr;
    errno = 0;
    number = text ? strtoull(text, &end, 10) : 0;
    return text && *text >= '0' && *text <= '9' && !*end && errno == 0;
}

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && strcmp(argv[1], "--self-check") == 0) return self_check() != 0;
    uint64_t seed = 0, jobs = std::thread::hardware_concurrency();
    int at = 1;
    bool good = true;
    for (; good && at < argc && argv[at][0] == '-'; at += 2) {
        if (strcmp(argv[at], "--seed") == 0)
            good = parse_number(argv[at + 1], seed);
        else if (strcmp(argv[at], "--jobs") == 0)
            good = parse_number(argv[at + 1], jobs) && jobs <= 1024;
        else
            good = false;
    }
    if (!good || at >= argc) {
        fprintf(stderr, "usage: replay [--seed N] [--jobs N] TRACE... | replay --self-check\n");
        return 1;
    }
    Replays replays(seed, unsigned(jobs));
    for (; at < argc; ++at) replays.add(argv[at]);
    return replays.finish() != 0;
}
