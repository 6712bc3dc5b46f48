// Makes the calls of a trace again, on this program's own emulated device.
#pragma once

#include <string>

#include "emulator/replay/trace.h"

namespace kvfold::replay {

// `seed` is added to the seed of every launch: results do not depend on it. What went
// wrong, in one line, or "". The trace's addresses must be free in this process, and
// are not used again: a process can replay several traces, but each trace only once.
std::string replay(const Trace& trace, uint64_t seed);

// Replays what must pass and what must be caught; prints a line a case. How many were
// not as they should be.
int self_check();

} // namespace kvfold::replay
