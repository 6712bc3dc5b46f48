// What a launch's error says of threads that cannot go on.
#include "emulator/block.h"

namespace kvfold::emulator {

const char* name_of(Wait wait) {
    switch (wait) {
    case Wait::none: return "runnable";
    case Wait::exited: return "exited";
    case Wait::sync_block: return "sync_block";
    case Wait::sync_named: return "sync_named";
    case Wait::sync_warp: return "sync_warp";
    case Wait::shuffle_xor: return "shuffle_xor";
    case Wait::shuffle: return "shuffle";
    case Wait::ballot: return "warp_ballot";
    case Wait::any: return "warp_any";
    case Wait::ldmatrix_x4: return "ldmatrix_x4";
    case Wait::ldmatrix_x4_trans: return "ldmatrix_x4_trans";
    case Wait::movmatrix_trans: return "movmatrix_trans";
    case Wait::mma_f16: return "mma_f16";
    case Wait::mma_bf16: return "mma_bf16";
    }
    return "?";
}

// "wait at sync_block (file:line)", "exited", "not arrived".
static std::string state(const Thread& thread) {
    if (thread.wait == Wait::none) return "not arrived";
    if (thread.wait == Wait::exited) return "exited";
    std::string name = name_of(thread.wait);
    if (thread.wait == Wait::sync_named) name += " " + std::to_string(thread.barrier);
    return "at " + name + " (" + thread.site.file + ":" + std::to_string(thread.site.line) + ")";
}

// "lanes 0-3,7 at shuffle (…); lanes 4-6,8-31 exited": the threads in groups of
// one state each.
static std::string groups(const Thread* threads, uint32_t count, const char* unit) {
    std::string text;
    std::vector<bool> told(count, false);
    for (uint32_t i = 0; i < count; ++i) {
        if (told[i]) continue;
        std::string shared_state = state(threads[i]);
        text += (text.empty() ? "" : "; ") + std::string(unit) + " ";
        const char* comma = "";
        for (uint32_t first = i; first < count; ++first) {
            if (state(threads[first]) != shared_state) continue;
            uint32_t last = first;
            while (last < count && state(threads[last]) == shared_state) told[last++] = true;
            text += comma + std::to_string(first);
            if (last - 1 > first) text += "-" + std::to_string(last - 1);
            comma = ",";
            first = last - 1;
        }
        text += " " + shared_state;
    }
    return text;
}

// "kernel 'x', block (0,0,0)", and the thread if there is one.
std::string Block::place(const Thread* thread) const {
    std::string text = "kernel '" + std::string(launch->kernel->name) + "', block (" +
                       std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," +
                       std::to_string(blockIdx.z) + ")";
    if (thread) {
        uint32_t id = id_of(thread);
        text += ", thread " + std::to_string(id) + " (warp " + std::to_string(id / WARP) +
                ", lane " + std::to_string(id % WARP) + ")";
    }
    return text;
}

std::string Block::describe_mismatch(uint32_t warp, Wait collective, Site site) const {
    return place(running) + ": came to " + name_of(collective) + " (" + site.file + ":" +
           std::to_string(site.line) +
           ") in a divergent warp: " + groups(&threads_[warp * WARP], WARP, "lanes");
}

// Nobody can go on, or a barrier was completed by the wrong threads. A warp
// that is not of one mind explains most; else the block as a whole.
std::string Block::describe_deadlock() const {
    for (uint32_t w = 0; w < n_threads_ / WARP; ++w) {
        const Thread* lanes = &threads_[w * WARP];
        bool divergent = false;
        for (uint32_t l = 1; l < WARP; ++l) divergent |= state(lanes[l]) != state(lanes[0]);
        if (divergent)
            return place(nullptr) + ": divergence in warp " + std::to_string(w) + ": " +
                   groups(lanes, WARP, "lanes");
    }
    return place(nullptr) +
           ": a barrier that some threads miss: " + groups(threads_.data(), n_threads_, "threads");
}

} // namespace kvfold::emulator
