#include "emulator/replay/trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <memory>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "traces are little-endian");

namespace kvfold::replay {

namespace {

constexpr char MAGIC[] = "kvftrace";
constexpr uint32_t VERSION = 1;

// Takes numbers and bytes from the front of a file. Past its end it gives zeros and
// says so.
class Reader {
  public:
    explicit Reader(const std::string& file) : file_(file) {}

    template <class T> T number() {
        T value = 0;
        if (!has(sizeof value)) return 0;
        memcpy(&value, file_.data() + at_, sizeof value);
        at_ += sizeof value;
        return value;
    }
    std::string bytes(uint64_t n) {
        if (!has(n)) return "";
        at_ += n;
        return file_.substr(at_ - n, n);
    }
    bool ok() const { return ok_; }
    bool at_end() const { return at_ == file_.size(); }
    uint64_t at() const { return at_; }

  private:
    bool has(uint64_t n) { return ok_ = ok_ && n <= file_.size() - at_; }

    const std::string& file_;
    uint64_t at_ = 0;
    bool ok_ = true;
};

Record parse_launch(Reader& from) {
    Record r = {Kind::launch};
    for (uint32_t& n : r.grid) n = from.number<uint32_t>();
    r.threads = from.number<uint32_t>();
    r.shared_bytes = from.number<uint32_t>();
    r.seed = from.number<uint64_t>();
    uint32_t name_bytes = from.number<uint32_t>(), params_bytes = from.number<uint32_t>();
    r.kernel = from.bytes(name_bytes);
    r.data = from.bytes(params_bytes);
    return r;
}

Record parse_record(Kind kind, Reader& from) {
    if (kind == Kind::launch) return parse_launch(from);
    Record r = {kind};
    r.address = from.number<uint64_t>();
    if (kind == Kind::free) return r;
    if (kind == Kind::copy) r.to = from.number<uint64_t>();
    r.bytes = from.number<uint64_t>();
    if (kind == Kind::write) r.data = from.bytes(r.bytes);
    if (kind == Kind::fill) r.value = from.number<uint8_t>();
    if (kind == Kind::read) r.hash = from.number<uint64_t>();
    return r;
}

} // namespace

uint64_t hash_of(const void* bytes, uint64_t n) {
    const char* from = static_cast<const char*>(bytes);
    uint64_t hash = n;
    for (uint64_t at = 0; at < n; at += 8) {
        uint64_t word = 0;
        memcpy(&word, from + at, n - at < 8 ? n - at : 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 32;
    }
    return hash;
}

std::string parse(const std::string& file, Trace& trace) {
    Reader from(file);
    if (from.bytes(8) != MAGIC) return "not a trace";
    uint32_t version = from.number<uint32_t>();
    if (version != VERSION)
        return "a trace of version " + std::to_string(version) + ", not " + std::to_string(VERSION);
    for (;;) {
        std::string place = "at byte " + std::to_string(from.at());
        uint8_t kind = from.number<uint8_t>();
        if (!from.ok()) return "torn: it ends without an end, " + place;
        if (kind < uint8_t(Kind::alloc) || kind > uint8_t(Kind::end))
            return "a record of the unknown kind " + std::to_string(kind) + ", " + place;
        if (Kind(kind) == Kind::end) break;
        trace.push_back(parse_record(Kind(kind), from));
        if (!from.ok()) return "torn in the record " + place;
    }
    if (from.number<uint64_t>() != trace.size() || !from.ok()) return "torn: records are missing";
    return from.at_end() ? "" : "bytes behind its end";
}

std::string read_trace(const char* path, Trace& trace) {
    std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path, "rb"), fclose);
    if (!file) return strerror(errno);
    std::string all;
    char part[1 << 16];
    while (size_t n = fread(part, 1, sizeof part, file.get())) all.append(part, n);
    if (ferror(file.get())) return "it cannot be read";
    return parse(all, trace);
}

} // namespace kvfold::replay
