// Makes the calls of a trace again, on this program's own emulated device.
#pragma once

#include <string>

#include "emulator/replay/trace.h"

namespace kvfold::replay {

// `seed` is added to the seed of every launch: results do not depend on it. What went
// wrong, in one line, or "". The trace's addresses must be free in this process, so
// each trace has a process of its own.
std::string replay(const Trace& trace, uint64_t seed);

// Tries what must pass and what must be caught; prints a line a case. How many cases
// failed.
int self_check();

} // namespace kvfold::replay
