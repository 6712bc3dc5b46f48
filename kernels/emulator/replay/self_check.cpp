// What replays must catch, and what they must let pass.
#include <string.h>

#include "common/params/cache.h"
#include "emulator/emulator.h"
#include "emulator/fiber.h"
#include "emulator/pages.h"
#include "emulator/replay/process.h"
#include "emulator/replay/replay.h"

#ifdef KVFOLD_ASAN
#include <sanitizer/asan_interface.h>
#endif

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
    CopyJob job = {0, 0, 0, 2, 0, 0};
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

// The same in virtual memory, of whose four pages two are committed.
constexpr size_t COMMIT = 1;
constexpr uint64_t PAGE = 4096, RANGE = 4 * PAGE;

Trace copy_of_a_committed_block() {
    Trace t = copy_of_a_block();
    t[BLOCKS] = record(Kind::reserve, BASE, RANGE);
    t.insert(t.begin() + COMMIT,
             {record(Kind::commit, BASE, PAGE), record(Kind::commit, BASE + PAGE, PAGE)});
    t.back() = record(Kind::decommit, BASE + PAGE, PAGE);
    t.push_back(record(Kind::decommit, BASE, PAGE));
    t.push_back(record(Kind::release, BASE, RANGE));
    return t;
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
    t[WRITE_JOBS].data = bytes_of(CopyJob{0, 3, 0, 2, 0, 0});
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

void check_reservations() {
    const Trace good = copy_of_a_committed_block();
    // Two records stand before these now.
    const size_t write_jobs = WRITE_JOBS + 2, launch = LAUNCH + 2, read = READ + 2;
    const auto page_1 = uint32_t(PAGE / 16), page_2 = 2 * page_1; // as blocks
    expect("a copy of a block in virtual memory", good, "");
    Trace t = good;
    t[write_jobs].data = bytes_of(CopyJob{0, 1, 0, page_1, 0, 0});
    t[read] = record(Kind::read, BASE + PAGE, 16);
    t[read].hash = hash_of("ghijklmnopqrstuv", 16);
    expect("a kernel writes the second page", t, "");
    t.insert(t.begin() + launch, record(Kind::decommit, BASE + PAGE, PAGE));
    expect("a kernel writes what was decommitted", t, "out of bounds");
    t = good;
    t[write_jobs].data = bytes_of(CopyJob{0, page_2, 0, 2, 0, 0});
    expect("a kernel reads what has no memory", t, "out of bounds");
    t = good;
    Record decommit = record(Kind::decommit, BASE, PAGE), commit = record(Kind::commit, BASE, PAGE);
    t.insert(t.begin() + launch, {decommit, commit});
    expect("memory that came back holds other bytes", t, "reads other bytes than were recorded");
    t = good;
    t[COMMIT].bytes = RANGE + PAGE;
    expect("a commit past its range", t, "commits what is not reserved");
    t = good;
    t[COMMIT + 1].address = BASE;
    expect("a commit of what has memory", t, "or has memory");
    t = good;
    t.back().bytes += PAGE;
    expect("a release of another range", t, "releases what is not reserved");
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

bool all_poisoned(uint64_t begin, uint64_t end, bool wanted = true) {
    bool all = true;
    for (uint64_t at = begin; at < end; ++at)
        all &= (__asan_address_is_poisoned(reinterpret_cast<void*>(at)) != 0) == wanted;
    return all;
}

void check_poison_of_a_reservation() {
    auto* range = static_cast<uint8_t*>(kvfold_emulator_reserve(BASE, RANGE));
    const uint64_t begin = BASE + PAGE, end = begin + PAGE, past = BASE + RANGE + emulator::PLACE;
    if (!range || kvfold_emulator_commit(range + PAGE, PAGE) != 0)
        return report("a page in a reservation", false);
    report("poison in a reservation, but for its page with memory",
           all_poisoned(BASE, begin) && all_poisoned(begin, end, false) && all_poisoned(end, past));
    kvfold_emulator_decommit(range + PAGE, PAGE);
    report("poison in its page that lost its memory", all_poisoned(begin, end));
    kvfold_emulator_release(range, RANGE);
    report("no poison left by it", all_poisoned(BASE, past, false));
}
#endif

void check_sanitizer() {
#ifdef KVFOLD_ASAN
    expect_asan("a byte past an allocation, by AddressSanitizer", false, 100);
    expect_asan("64 KiB past an allocation, by AddressSanitizer", false, 100 + (64 << 10));
    expect_asan("a byte that was freed, by AddressSanitizer", true, 99);
    check_poison_of_a_reservation();
#endif
}

void check_files() {
    uint32_t version = 1;
    uint64_t address = BASE, bytes = 16, count = 1;
    std::string start = "kvftrace" + bytes_of(version);
    std::string alloc = '\1' + bytes_of(address) + bytes_of(bytes);
    std::string end = '\14' + bytes_of(count);
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
    report("an unknown kind", refused(start + '\15' + end, "unknown kind 13"));
    std::string write = start + '\3' + bytes_of(address) + bytes_of(~0ull);
    report("a write of more bytes than there are", refused(write + "few", "torn"));
}

} // namespace

int self_check() {
    check_replay();
    check_reservations();
    check_sanitizer();
    check_files();
    printf("%d failed\n", failures);
    return failures;
}

} // namespace kvfold::replay
