// What replays must catch, and what they must let pass.
#include <string.h>

#include "common/params.h"
#include "emulator/emulator.h"
#include "emulator/fiber.h"
#include "emulator/replay/process.h"
#include "emulator/replay/replay.h"

namespace kvfold::replay {

namespace {

int failures;
constexpr int SAID = 2; // the exit code of a process that has printed its failure

void report(const std::string& name, bool good, const std::string& got = "") {
    printf("%-6s %s%s%s\n", good ? "ok" : "FAILED", name.c_str(), got.empty() ? "" : ": ",
           got.c_str());
    failures += !good;
}

template <class T> std::string bytes_of(const T& value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

Record record(Kind kind, uint64_t address, uint64_t bytes) {
    Record r = {kind};
    r.address = address;
    r.bytes = bytes;
    return r;
}

Record write(uint64_t address, const std::string& data) {
    Record r = record(Kind::write, address, data.size());
    r.data = data;
    return r;
}

// Three blocks of 16 bytes, the third of which becomes a copy of the first. Of its
// records, these are the ones that cases change.
constexpr size_t BLOCKS = 0, ARENAS = 1, WRITE_JOBS = 5, LAUNCH = 6, READ = 7;
constexpr uint64_t BASE = 0x300000000000;

Trace copy_of_a_block() {
    const uint64_t blocks = BASE, arenas = BASE + (1 << 20), jobs = BASE + (2 << 20);
    const std::string before = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL";
    KvArena arena = {};
    arena.base = blocks;
    arena.block_bytes = 16;
    CopyJob job = {0, 0, 2, 0};
    Record launch = {Kind::launch};
    launch.kernel = "copy";
    launch.grid[0] = launch.grid[1] = launch.grid[2] = 1;
    launch.threads = 256;
    launch.data = bytes_of(CopyParams{jobs, arenas, 1, 0});
    Record read = record(Kind::read, blocks, 48);
    const std::string after = before.substr(0, 32) + before.substr(0, 16);
    read.hash = hash_of(after.data(), after.size());
    return {record(Kind::alloc, blocks, 48),
            record(Kind::alloc, arenas, sizeof arena),
            record(Kind::alloc, jobs, sizeof job),
            write(blocks, before.substr(0, 32)),
            write(arenas, bytes_of(arena)),
            write(jobs, bytes_of(job)),
            launch,
            read,
            record(Kind::free, blocks, 0)};
}

// Each in a process of its own, as replays are; `word` is part of what is to be said.
void expect(const std::string& name, const Trace& trace, const char* word) {
    pid_t child = start([&] {
        std::string problem = replay(trace, 7);
        bool good = *word ? problem.find(word) != std::string::npos : problem.empty();
        report(name, good, problem);
        return good ? 0 : SAID;
    });
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) return report(name, false, "no process");
    int code = exit_code(status);
    if (code == SAID)
        ++failures;
    else if (code != 0)
        report(name, false, "the process broke off");
}

void check_replay() {
    const Trace good = copy_of_a_block();
    expect("a copy of a block", good, "");
    Trace t = good;
    t[BLOCKS].bytes -= 1;
    expect("a kernel writes one byte past an allocation", t, "out of bounds");
    t = good;
    t[WRITE_JOBS].data = bytes_of(CopyJob{0, 3, 2, 0});
    expect("a kernel reads one element past an allocation", t, "out of bounds");
    t = good;
    t.insert(t.begin() + LAUNCH, record(Kind::free, t[ARENAS].address, 0));
    expect("a kernel reads what was freed", t, "freed allocation");
    t = good;
    t[READ].hash ^= 1;
    expect("a read of other bytes", t, "reads other bytes than were recorded");
    t = good;
    t[LAUNCH].kernel = "no_such_kernel";
    expect("an unknown kernel", t, "no kernel 'no_such_kernel'");
    t = good;
    t[READ].bytes += 1;
    expect("a read past an allocation", t, "reads outside of all allocations");
    t = good;
    t[ARENAS].address = t[BLOCKS].address;
    expect("an allocation on top of another", t, "cannot be had at their address");
}

// What no check of the emulator's own stands before.
#ifdef KVFOLD_ASAN
void expect_asan(const std::string& name, bool freed, uint64_t at) {
    pid_t child = start([&] {
        if (!freopen("/dev/null", "w", stderr)) return 0;
        auto* memory = static_cast<volatile uint8_t*>(kvfold_emulator_alloc_at(BASE, 100));
        if (!memory) return 0;
        if (freed) kvfold_emulator_free(const_cast<uint8_t*>(memory));
        return memory[at] * 0;
    });
    int status = 0;
    report(name, child > 0 && waitpid(child, &status, 0) == child && exit_code(status) != 0);
}
#endif

void check_sanitizer() {
#ifdef KVFOLD_ASAN
    expect_asan("a byte past an allocation, by AddressSanitizer", false, 100);
    expect_asan("64 KiB past an allocation, by AddressSanitizer", false, 100 + (64 << 10));
    expect_asan("a byte that was freed, by AddressSanitizer", true, 99);
#endif
}

void check_files() {
    uint32_t version = 1;
    uint64_t address = BASE, bytes = 16, count = 1;
    std::string start = "kvftrace" + bytes_of(version);
    std::string alloc = '\1' + bytes_of(address) + bytes_of(bytes);
    std::string end = '\10' + bytes_of(count);
    auto refused = [](const std::string& file, const char* word) {
        Trace trace;
        std::string problem = parse(file, trace);
        return !problem.empty() && problem.find(word) != std::string::npos;
    };
    Trace trace;
    report("a file with one record", parse(start + alloc + end, trace).empty() &&
                                         trace.size() == 1 && trace[0].address == BASE &&
                                         trace[0].bytes == 16);
    std::string whole = start + alloc + end;
    bool all = true;
    for (size_t n = 0; n < whole.size(); ++n) all &= refused(whole.substr(0, n), "");
    for (size_t n = start.size(); n < whole.size(); ++n) all &= refused(whole.substr(0, n), "torn");
    report("torn files are refused", all);
    report("another format", refused("kvfTRACE" + whole.substr(8), "not a trace"));
    report("another version", refused("kvftrace" + bytes_of(count << 1) + alloc, "version 2"));
    report("another number of records", refused(start + end, "records are missing"));
    report("bytes behind the end", refused(whole + '\0', "bytes behind"));
    report("an unknown kind", refused(start + '\11' + end, "unknown kind 9"));
    std::string write = start + '\3' + bytes_of(address) + bytes_of(~0ull);
    report("a write of more bytes than there are", refused(write + "few", "torn"));
}

} // namespace

int self_check() {
    check_replay();
    check_sanitizer();
    check_files();
    printf("%d failed\n", failures);
    return failures;
}

} // namespace kvfold::replay
