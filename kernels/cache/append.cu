// append: rotates the queries and keys of new tokens (RoPE) and writes their
// keys and values to 16-bit pages.
//
// Grid (n_slots, kv_heads), 64 threads; (n_slots, 1) if every slot names its stream.
// A block serves one KV head of one slot: the query heads of its group, its key and
// its value. Every (row, KV head) has one slot, so nothing is rotated twice.
// Slots without a row keep the grid of a captured step the same.
//
// Shared memory: f32 cos[d/2], sin[d/2].
// Must move, with RoPE: 2·d·(2·heads + 5·kv_heads) bytes a row (q and k are read
// and rewritten in place, v is read, k and v go to the page); without: 8·d·kv_heads.
//
// sass: append_* wide=4

#include "cache/page.cuh"
#include "common/rope.cuh"

namespace cache {

constexpr uint32_t APPEND_THREADS = 64;

// Rotates the group's query heads and the key head; the key goes to `key_row` as well.
template <class T>
DEVICE void rotate_heads(const AppendParams& p, uint32_t kv_head, uint64_t row, uint64_t key_row,
                         Angles angles) {
    uint32_t d = p.head_dim, group = p.heads / p.kv_heads;
    uint32_t vectors = d / 16; // of half a head
    for (uint32_t i = threadIdx.x; i < (group + 1) * vectors; i += APPEND_THREADS) {
        uint32_t n = i / vectors, v = i % vectors;
        bool is_key = n == group;
        uint32_t head = is_key ? p.heads + kv_head : kv_head * group + n;
        Vec16* low_at = address<Vec16>(row + uint64_t(head) * d * 2) + v;
        Vec16* high_at = low_at + vectors;
        Vec16 low = load(low_at), high = load(high_at);
        rotate<T>(low, high, angles.cos + 8 * v, angles.sin + 8 * v);
        store(low_at, low);
        store(high_at, high);
        if (is_key) {
            store(address<Vec16>(key_row) + v, low);
            store(address<Vec16>(key_row) + vectors + v, high);
        }
    }
}

template <class T> DEVICE void append(const AppendParams& p) {
    const AppendSlot* slot = address<const AppendSlot>(p.slots) + blockIdx.x;
    uint32_t token = load(&slot->row);
    if (token == KV_NONE) return;
    uint32_t stream = served_stream(load(&slot->stream), p.layer * p.kv_heads);
    uint32_t kv_head = stream - p.layer * p.kv_heads;
    uint32_t arena = load(&slot->arena), block = load(&slot->block);
    uint32_t row_bytes = 2 * p.head_dim;
    uint64_t row = p.qkv + uint64_t(token) * p.stride * 2;
    uint64_t key = row + uint64_t(p.heads + kv_head) * row_bytes;
    uint64_t value = key + uint64_t(p.kv_heads) * row_bytes;
    uint64_t in_half = uint64_t(load(&slot->slot)) * row_bytes;
    uint64_t key_row = page_half<KEY>(p.arenas, arena, block, stream) + in_half;
    uint64_t value_row = page_half<VALUE>(p.arenas, arena, block, stream) + in_half;

    if (p.inv_turns) {
        Angles angles = angles_in(shared_memory(), p.head_dim);
        uint32_t position = load(address<const uint32_t>(p.positions) + token);
        compute_angles(p.inv_turns, position, p.head_dim, APPEND_THREADS, angles);
        sync_block();
        rotate_heads<T>(p, kv_head, row, key_row, angles);
    } else {
        copy_vectors(key, key_row, row_bytes, threadIdx.x, APPEND_THREADS);
    }
    copy_vectors(value, value_row, row_bytes, threadIdx.x, APPEND_THREADS);
}

} // namespace cache

using namespace cache;

KERNEL(append_f16, AppendParams, APPEND_THREADS, 16) { append<F16>(params); }
KERNEL(append_bf16, AppendParams, APPEND_THREADS, 16) { append<Bf16>(params); }
