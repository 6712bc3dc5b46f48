// The table of kernels, filled by static constructors of the .cu files.
#pragma once

#include <stdint.h>

namespace kvfold::emulator {

struct Kernel {
    const char* name;
    void (*body)(const void* params); // one thread of the kernel
    uint64_t params_bytes;
    uint32_t threads;
    uint32_t blocks;
    Kernel* next;

    // Adds itself to the table; lives as long as the program.
    Kernel(const char* name, void (*body)(const void*), uint64_t params_bytes, uint32_t threads,
           uint32_t blocks);
};

const Kernel* first_kernel();

} // namespace kvfold::emulator
