// A CUDA driver without a device, for tests/cuda/driver.rs: the entry points that
// kvfold uses, over host memory. FAKE_CUDA says what it pretends to be:
//   FAKE_CUDA="version devices arch load memory virtual"
//   version  what cuDriverGetVersion gives, as in 13000
//   devices  how many there are
//   arch     compute capability times ten
//   load     what cuModuleLoadData gives
//   memory   bytes
//   virtual  whether there is virtual memory management
// Its one kernel, "add_one", adds 1 to the `n` bytes at `at` of {u64 at; u64 n}.
//
// Graphs, virtual and pinned memory are kept account of: fake_cuda_calls tells which
// entry points were called, fake_cuda_refuse lets one of them fail once.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

using Result = int;
using Handle = void*;
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901
};

static struct Pretend {
    int version = 13000, devices = 1, arch = 90, load = SUCCESS, virtual_memory = 1;
    size_t memory = 1000000;
    Pretend() {
        if (const char* text = getenv("FAKE_CUDA"))
            sscanf(text, "%d %d %d %d %zu %d", &version, &devices, &arch, &load, &memory, &virtual_memory);
    }
} pretend;

static size_t used;
static int context, stream_handles, modules;
static unsigned shared_limit = 48 << 10;
static thread_local std::vector<Handle> current;

static std::string calls, refused_name;
static Result refused_status;

// What a stream captures, and what became of it.
using Work = std::vector<std::function<void()>>;
static Handle capturing;
static bool spoiled;
static Work captured;
static int graphs, host_buffers;

// Virtual memory: bytes by address, and memory by handle.
constexpr size_t GRANULARITY = 65536;
struct Memory {
    size_t bytes;
    bool mapped;
};
static std::map<uint64_t, size_t> reserved, mapped;
static std::map<uint64_t, Memory> created;

// Everything but the first calls needs a current context.
#define IN_CONTEXT                                                                                 \
    if (current.empty()) return 201

// The same, for a call that is told of and may be refused.
#define NOTED                                                                                      \
    IN_CONTEXT;                                                                                    \
    if (Result status = noted(__func__)) return status

// `with`: what it was called with, if that is told.
static Result noted(const char* name, const std::string& with = "") {
    calls += (calls.empty() ? "" : " ") + (name + with);
    if (refused_name != name) return SUCCESS;
    refused_name.clear();
    return refused_status;
}

// Runs work, or records it if its stream captures.
static Result submit(Handle stream, std::function<void()> work) {
    if (capturing && stream == capturing)
        captured.push_back(work);
    else
        work();
    return SUCCESS;
}

// What is not permitted while this thread, the only one, captures.
#define NOT_CAPTURING                                                                              \
    if (capturing) return spoiled = true, CAPTURE_UNSUPPORTED

extern "C" {

// The names of the calls since the last time, separated by blanks.
int fake_cuda_calls(void* text) {
    strcpy(static_cast<char*>(text), calls.c_str());
    return calls.clear(), SUCCESS;
}
// "name status": the next call of this name does nothing but give this status.
int fake_cuda_refuse(void* text) {
    char name[100];
    if (sscanf(static_cast<char*>(text), "%99s %d", name, &refused_status) != 2) return INVALID_VALUE;
    return refused_name = name, SUCCESS;
}

Result cuDriverGetVersion(int* version) { return *version = pretend.version, SUCCESS; }
Result cuInit(unsigned) { return pretend.devices ? SUCCESS : NO_DEVICE; }
Result cuDeviceGetCount(int* n) { return *n = pretend.devices, SUCCESS; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
Result cuDeviceGetName(char* name, int bytes, int) { return snprintf(name, bytes, "Fake device"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = pretend.memory, SUCCESS; }
Result cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: *value = pretend.arch / 10; break;
    case 76: *value = pretend.arch % 10; break;
    case 16: *value = 3; break;         // multiprocessors
    case 97: *value = 227 << 10; break; // shared memory a block may opt in to
    case 38: *value = 50 << 20; break;  // L2
    case 100: *value = 0; break;        // reads the host's page tables
    case 102: *value = pretend.virtual_memory; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}
Result cuGetErrorName(Result error, const char** text) {
    return *text = error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_FAKE", SUCCESS;
}
Result cuGetErrorString(Result, const char** text) { return *text = "as the test asked", SUCCESS; }

Result cuDevicePrimaryCtxRetain(Handle* c, int) { return *c = &context, SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) {
    // Whatever lived in the context must be gone.
    if (modules || stream_handles || used || graphs || host_buffers || reserved.size()) abort();
    return SUCCESS;
}
Result cuCtxPushCurrent_v2(Handle c) { return current.push_back(c), SUCCESS; }
Result cuCtxPopCurrent_v2(Handle* c) {
    IN_CONTEXT;
    *c = current.back();
    return current.pop_back(), SUCCESS;
}
Result cuCtxGetCurrent(Handle* c) { return *c = current.empty() ? nullptr : current.back(), SUCCESS; }
Result cuCtxSynchronize() {
    NOTED;
    NOT_CAPTURING;
    return SUCCESS;
}
Result cuCtxGetDevice(int* device) {
    IN_CONTEXT;
    return *device = 0, SUCCESS;
}

Result cuModuleLoadData(Handle* module, const void* image) {
    IN_CONTEXT;
    if (pretend.load) return pretend.load;
    if (*static_cast<const uint32_t*>(image) != 0xba55ed50) return 200; // a fatbin's magic
    ++modules;
    return *module = &modules, SUCCESS;
}
Result cuModuleUnload(Handle) {
    IN_CONTEXT;
    return --modules, SUCCESS;
}
Result cuModuleGetFunction(Handle* function, Handle, const char* name) {
    IN_CONTEXT;
    if (strcmp(name, "add_one")) return NOT_FOUND;
    return *function = &pretend, SUCCESS;
}
Result cuFuncSetAttribute(Handle, int attribute, int value) {
    IN_CONTEXT;
    std::string with = "(" + std::to_string(attribute) + "," + std::to_string(value) + ")";
    if (Result status = noted(__func__, with)) return status;
    switch (attribute) {
    case 8: shared_limit = value; return SUCCESS;
    case 9: return value < -1 || value > 100 ? INVALID_VALUE : SUCCESS; // percent of shared memory
    default: return INVALID_VALUE;
    }
}
// Registers are enough for any number.
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle, int threads, size_t shared) {
    NOTED;
    if (threads <= 0 || shared > shared_limit) return INVALID_VALUE;
    int by_threads = 2048 / threads, by_shared = (228 << 10) / (shared + 1024);
    return *blocks = by_threads < by_shared ? by_threads : by_shared, SUCCESS;
}
Result cuLaunchKernel(Handle, unsigned x, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, Handle stream,
                      void** params, void** extra) {
    NOTED;
    if (params || shared > shared_limit || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4]) return INVALID_VALUE;
    if (*static_cast<size_t*>(extra[3]) != 16) return 701; // another struct
    const uint64_t* p = static_cast<const uint64_t*>(extra[1]);
    uint64_t at = p[0], n = p[1];
    return submit(stream, [=] {
        for (uint64_t i = 0; i < n; ++i) reinterpret_cast<uint8_t*>(at)[i] += x;
    });
}

Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    return *free = pretend.memory - used, *total = pretend.memory, SUCCESS;
}
// The size stands before the memory.
Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
    NOT_CAPTURING;
    if (bytes > pretend.memory - used) return OUT_OF_MEMORY;
    char* memory = static_cast<char*>(aligned_alloc(256, (bytes + 511) / 256 * 256));
    *reinterpret_cast<size_t*>(memory) = bytes;
    used += bytes;
    return *address = reinterpret_cast<uint64_t>(memory + 256), SUCCESS;
}
Result cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    char* memory = reinterpret_cast<char*>(address) - 256;
    used -= *reinterpret_cast<size_t*>(memory);
    return free(memory), SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Handle stream) {
    IN_CONTEXT;
    return submit(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Handle stream) {
    IN_CONTEXT;
    return submit(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Handle stream) {
    IN_CONTEXT;
    return submit(stream, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
Result cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Handle stream) {
    IN_CONTEXT;
    return submit(stream, [=] { memset(reinterpret_cast<void*>(at), value, bytes); });
}
Result cuPointerGetAttribute(void*, int, uint64_t) { return INVALID_VALUE; }

Result cuStreamCreate(Handle* stream, unsigned) {
    IN_CONTEXT;
    ++stream_handles;
    return *stream = &stream_handles, SUCCESS;
}
Result cuStreamDestroy_v2(Handle) {
    IN_CONTEXT;
    return --stream_handles, SUCCESS;
}
Result cuStreamSynchronize(Handle stream) {
    IN_CONTEXT;
    if (stream == capturing) NOT_CAPTURING;
    return SUCCESS;
}
Result cuStreamWaitEvent(Handle, Handle, unsigned) {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuEventCreate(Handle* event, unsigned flags) {
    IN_CONTEXT;
    if (flags != 0 && flags != 2) return INVALID_VALUE; // 2: without a time
    return *event = new unsigned(flags), SUCCESS;
}
Result cuEventDestroy_v2(Handle event) {
    IN_CONTEXT;
    return delete static_cast<unsigned*>(event), SUCCESS;
}
Result cuEventRecord(Handle, Handle) {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuEventSynchronize(Handle) {
    NOTED;
    return SUCCESS;
}
Result cuEventQuery(Handle) {
    NOTED;
    return SUCCESS;
}
Result cuEventElapsedTime(float* milliseconds, Handle start, Handle end) {
    IN_CONTEXT;
    if (*static_cast<unsigned*>(start) || *static_cast<unsigned*>(end)) return 400; // they have no times
    return *milliseconds = 1.5f, SUCCESS;
}

// ---- graphs ---------------------------------------------------------------

Result cuStreamBeginCapture_v2(Handle stream, int mode) {
    NOTED;
    if (!stream || capturing) return CAPTURE_UNSUPPORTED;
    if (mode != 1) return INVALID_VALUE; // other threads would be in the way
    return capturing = stream, SUCCESS;
}
Result cuStreamIsCapturing(Handle stream, int* status) {
    IN_CONTEXT;
    *status = !capturing || stream != capturing ? 0 : spoiled ? 2 : 1;
    return SUCCESS;
}
Result cuStreamEndCapture(Handle stream, Handle* graph) {
    NOTED;
    if (!capturing || stream != capturing) return INVALID_VALUE;
    Work work;
    work.swap(captured);
    capturing = nullptr;
    if (spoiled) return spoiled = false, *graph = nullptr, CAPTURE_INVALIDATED;
    ++graphs;
    return *graph = new Work(work), SUCCESS;
}
Result cuGraphInstantiateWithFlags(Handle* ready, Handle graph, unsigned long long flags) {
    NOTED;
    if (flags) return INVALID_VALUE;
    ++graphs;
    return *ready = new Work(*static_cast<Work*>(graph)), SUCCESS;
}
Result cuGraphDestroy(Handle graph) {
    NOTED;
    --graphs;
    return delete static_cast<Work*>(graph), SUCCESS;
}
Result cuGraphLaunch(Handle ready, Handle stream) {
    NOTED;
    for (auto& work : *static_cast<Work*>(ready)) submit(stream, work);
    return SUCCESS;
}
Result cuGraphExecDestroy(Handle ready) {
    NOTED;
    --graphs;
    return delete static_cast<Work*>(ready), SUCCESS;
}

// ---- pinned memory --------------------------------------------------------

Result cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    NOTED;
    if (flags != 1) return INVALID_VALUE; // for every context
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*memory, 0xee, bytes);
    return ++host_buffers, SUCCESS;
}
Result cuMemFreeHost(void* memory) {
    NOTED;
    --host_buffers;
    return free(memory), SUCCESS;
}

// ---- virtual memory -------------------------------------------------------

struct Location {
    int type, id;
};
struct Properties {
    int type, handle_types;
    Location location;
    void* windows;
    uint8_t flags[8];
};
struct Access {
    Location location;
    int flags;
};

static bool is_this_device(const Location& l) { return l.type == 1 && l.id == 0; }

Result cuMemGetAllocationGranularity(size_t* bytes, const Properties* p, int option) {
    IN_CONTEXT;
    if (p->type != 1 || !is_this_device(p->location) || option != 0) return INVALID_VALUE;
    return *bytes = GRANULARITY, SUCCESS;
}
Result cuMemAddressReserve(uint64_t* address, size_t bytes, size_t, uint64_t, unsigned long long) {
    NOTED;
    if (!bytes || bytes % GRANULARITY) return INVALID_VALUE;
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    *address = reinterpret_cast<uint64_t>(memory);
    return reserved[*address] = bytes, SUCCESS;
}
Result cuMemCreate(uint64_t* handle, size_t bytes, const Properties* p, unsigned long long) {
    NOTED;
    static uint64_t handles;
    if (p->type != 1 || !is_this_device(p->location) || bytes % GRANULARITY) return INVALID_VALUE;
    if (bytes > pretend.memory - used) return OUT_OF_MEMORY;
    used += bytes;
    return created[*handle = ++handles] = {bytes, false}, SUCCESS;
}
Result cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, unsigned long long) {
    NOTED;
    auto range = reserved.upper_bound(address);
    if (range == reserved.begin() || offset || created[handle].bytes != bytes) return INVALID_VALUE;
    --range;
    if (address + bytes > range->first + range->second || mapped.count(address)) return INVALID_VALUE;
    created[handle].mapped = true;
    return mapped[address] = bytes, SUCCESS;
}
// Here, too, what is mapped lives until it is unmapped.
Result cuMemRelease(uint64_t handle) {
    NOTED;
    Memory memory = created[handle];
    created.erase(handle);
    if (!memory.mapped) used -= memory.bytes;
    return SUCCESS;
}
Result cuMemSetAccess(uint64_t address, size_t bytes, const Access* access, size_t n) {
    NOTED;
    if (n != 1 || !is_this_device(access->location) || access->flags != 3 || mapped[address] != bytes)
        return INVALID_VALUE;
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE), SUCCESS;
}
Result cuMemUnmap(uint64_t address, size_t bytes) {
    NOTED;
    if (!mapped.count(address) || mapped[address] != bytes) return INVALID_VALUE;
    mprotect(reinterpret_cast<void*>(address), bytes, PROT_NONE);
    mapped.erase(address);
    return used -= bytes, SUCCESS;
}
Result cuMemAddressFree(uint64_t address, size_t bytes) {
    NOTED;
    if (!reserved.count(address) || reserved[address] != bytes) return INVALID_VALUE;
    munmap(reinterpret_cast<void*>(address), bytes);
    return reserved.erase(address), SUCCESS;
}
}
