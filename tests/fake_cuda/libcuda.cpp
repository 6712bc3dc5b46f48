// A CUDA driver without a device, for tests/cuda_driver.rs: the entry points that
// kvfold uses, over host memory. FAKE_CUDA says what it pretends to be:
//   FAKE_CUDA="version devices arch load memory instantiate"
//   version  what cuDriverGetVersion gives, as in 13000
//   devices  how many there are
//   arch     compute capability times ten
//   load     what cuModuleLoadData gives
//   memory   bytes
//   instantiate  what cuGraphInstantiateWithFlags gives
// Its one kernel, "add_one", adds 1 to the `n` bytes at `at` of {u64 at; u64 n}.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

using Result = int;
using Handle = void*;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500 };

static struct Pretend {
    int version = 13000, devices = 1, arch = 90, load = SUCCESS;
    size_t memory = 1000000;
    int instantiate = SUCCESS;
    Pretend() {
        if (const char* text = getenv("FAKE_CUDA"))
            sscanf(text, "%d %d %d %d %zu %d", &version, &devices, &arch, &load, &memory, &instantiate);
    }
} pretend;

static size_t used;
static int context, stream_handles, modules;
static unsigned shared_limit = 48 << 10;
static thread_local std::vector<Handle> current;

// Everything but the first calls needs a current context.
#define IN_CONTEXT                                                                                 \
    if (current.empty()) return 201

#include "graphs.h"
#include "memory.h"

extern "C" {

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
    case 102: *value = 1; break;        // virtual memory management
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
    if (modules || stream_handles || used || graphs || capture.stream) abort();
    if (!reserved.empty() || !page_locked.empty()) abort();
    return SUCCESS;
}
Result cuCtxPushCurrent_v2(Handle c) { return current.push_back(c), SUCCESS; }
Result cuCtxPopCurrent_v2(Handle* c) {
    IN_CONTEXT;
    *c = current.back();
    return current.pop_back(), SUCCESS;
}
Result cuCtxGetCurrent(Handle* c) { return *c = current.empty() ? nullptr : current.back(), SUCCESS; }
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
    if (attribute != 8) return INVALID_VALUE;
    return shared_limit = value, SUCCESS;
}
Result cuLaunchKernel(Handle, unsigned x, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared,
                      Handle stream, void** params, void** extra) {
    IN_CONTEXT;
    if (params || shared > shared_limit || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4]) return INVALID_VALUE;
    if (*static_cast<size_t*>(extra[3]) != 16) return 701; // another struct
    const uint64_t* p = static_cast<const uint64_t*>(extra[1]);
    return enqueue(stream, [x, at = reinterpret_cast<uint8_t*>(p[0]), n = p[1]] {
        for (uint64_t i = 0; i < n; ++i) at[i] += x;
    });
}

Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    return *free = pretend.memory - used, *total = pretend.memory, SUCCESS;
}
// The size stands before the memory.
Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
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
// A capture keeps the addresses, so those of the host must stay: page-locked memory only.
static Result copy(void* to, const void* from, size_t bytes, Handle stream, const void* host) {
    IN_CONTEXT;
    if (host && !is_page_locked(host))
        if (Result refused = outside_capture(stream)) return refused;
    return enqueue(stream, [=] { memcpy(to, from, bytes); });
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Handle stream) {
    return copy(reinterpret_cast<void*>(to), from, bytes, stream, from);
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Handle stream) {
    return copy(to, reinterpret_cast<void*>(from), bytes, stream, to);
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Handle stream) {
    return copy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, stream, nullptr);
}
Result cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Handle stream) {
    IN_CONTEXT;
    return enqueue(stream, [=] { memset(reinterpret_cast<void*>(at), value, bytes); });
}

Result cuStreamCreate(Handle* stream, unsigned) {
    IN_CONTEXT;
    ++stream_handles;
    return *stream = new int, SUCCESS;
}
Result cuStreamDestroy_v2(Handle stream) {
    IN_CONTEXT;
    --stream_handles;
    return delete static_cast<int*>(stream), SUCCESS;
}
Result cuStreamSynchronize(Handle stream) {
    IN_CONTEXT;
    return outside_capture(stream);
}
Result cuCtxSynchronize() {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuStreamWaitEvent(Handle, Handle, unsigned) {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuEventCreate(Handle* event, unsigned) {
    IN_CONTEXT;
    return *event = new int, SUCCESS;
}
Result cuEventDestroy_v2(Handle event) {
    IN_CONTEXT;
    return delete static_cast<int*>(event), SUCCESS;
}
Result cuEventRecord(Handle, Handle) {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuEventSynchronize(Handle) {
    IN_CONTEXT;
    return SUCCESS;
}
Result cuEventElapsedTime(float* milliseconds, Handle, Handle) {
    IN_CONTEXT;
    return *milliseconds = 1.5f, SUCCESS;
}
}
