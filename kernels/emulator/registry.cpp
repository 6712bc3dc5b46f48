#include "emulator/registry.h"

#include "emulator/emulator.h"

namespace kvfold::emulator {

// Initialised statically, so it is there before any constructor runs.
static Kernel* kernels = nullptr;

Kernel::Kernel(const char* name, void (*body)(const void*), uint64_t params_bytes, uint32_t threads,
               uint32_t blocks)
    : name(name), body(body), params_bytes(params_bytes), threads(threads), blocks(blocks),
      next(kernels) {
    kernels = this;
}

const Kernel* first_kernel() { return kernels; }

} // namespace kvfold::emulator

extern "C" int kvfold_emulator_kernel(uint32_t index, KvfoldEmulatorKernel* kernel) {
    const kvfold::emulator::Kernel* k = kvfold::emulator::first_kernel();
    for (; k && index > 0; --index) k = k->next;
    if (!k) return 1;
    *kernel = {k->name, k->params_bytes, k->threads, k->blocks};
    return 0;
}
