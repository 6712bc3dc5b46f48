// append: rotates the queries and keys of new tokens (RoPE) and writes their
// keys and values to 16-bit pages.
//
// Grid (n_slots, kv_heads), 64 threads; (n_slots, 1) if every slot names its stream.
// A block serves one KV head of one slot: the query heads of its group, its key and
// its value. Every (row, KV head) has one slot, so nothing is rotated twice. Slots of
// other layers' streams are skipped.
//
// RoPE is half-split: channel i turns with channel i + d/2 by position · inv_freq.
// The angle is reduced in f64 (positions go to 10^6 and beyond), rotated in f32.
//
// Shared memory: f32 cos[d/2], sin[d/2].
// Must move, with RoPE: 2·d·(2·heads + 5·kv_heads) bytes a row (q and k are read
// and rewritten in place, v is read, k and v go to the page); without: 8·d·kv_heads.

#include "cache/page.cuh"

constexpr uint32_t APPEND_THREADS = 64;

// The cosines and sines of one position, side by side in shared memory.
struct Angles {
    float* cos;
    float* sin;
};

DEVICE void compute_angles(const AppendParams& p, uint32_t position, Angles to) {
    for (uint32_t i = threadIdx.x; i < p.head_dim / 2; i += APPEND_THREADS) {
        double turns = mul_rn(double(position), load(address<const double>(p.inv_turns) + i));
        float fraction = float(sub_rn(turns, rint_rn(turns))); // −½ … ½
        sincos_pi(2.0f * fraction, &to.sin[i], &to.cos[i]);
    }
}

// Turns eight pairs of channels (i.., i + d/2..) in place.
template <class T> DEVICE void rotate(Vec16& low, Vec16& high, const float* cos, const float* sin) {
    UNROLL
    for (uint32_t w = 0; w < 4; ++w) {
        Pair a = unpack<T>(low.w[w]), b = unpack<T>(high.w[w]);
        float c0 = cos[2 * w], c1 = cos[2 * w + 1], s0 = sin[2 * w], s1 = sin[2 * w + 1];
        low.w[w] = T::pack(fma_fast(a.low, c0, -mul_rn(b.low, s0)), fma_fast(a.high, c1, -mul_rn(b.high, s1)));
        high.w[w] = T::pack(fma_fast(b.low, c0, mul_rn(a.low, s0)), fma_fast(b.high, c1, mul_rn(a.high, s1)));
    }
}

// Rotates the group's query heads and the key head; the key goes to `key_row` as
// well, if there is one.
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
        if (is_key && key_row) {
            store(address<Vec16>(key_row) + v, low);
            store(address<Vec16>(key_row) + vectors + v, high);
        }
    }
}

template <class T> DEVICE void append(const AppendParams& p) {
    const AppendSlot* slot = address<const AppendSlot>(p.slots) + blockIdx.x;
    uint32_t stream = served_stream(load(&slot->stream), p.layer * p.kv_heads, p.kv_heads);
    if (stream == KV_NONE) return;

    uint32_t kv_head = stream - p.layer * p.kv_heads;
    uint32_t token = load(&slot->row), arena = load(&slot->arena);
    uint32_t row_bytes = 2 * p.head_dim;
    uint64_t row = p.qkv + uint64_t(token) * p.stride * 2;
    uint64_t key_row = 0, value_row = 0; // none: the slot only rotates
    if (arena != KV_NONE) {
        uint32_t block = load(&slot->block);
        uint64_t in_half = uint64_t(load(&slot->slot)) * row_bytes;
        key_row = page_half<KEY>(p.arenas, arena, block, stream) + in_half;
        value_row = page_half<VALUE>(p.arenas, arena, block, stream) + in_half;
    }

    uint64_t key = row + uint64_t(p.heads + kv_head) * row_bytes;
    if (p.inv_turns) {
        float* shared = reinterpret_cast<float*>(shared_memory());
        Angles angles{shared, shared + p.head_dim / 2};
        compute_angles(p, load(address<const uint32_t>(p.positions) + token), angles);
        sync_block();
        rotate_heads<T>(p, kv_head, row, key_row, angles);
    } else if (key_row) {
        copy_vectors(key, key_row, row_bytes, threadIdx.x, APPEND_THREADS);
    }
    if (value_row) {
        uint64_t value = key + uint64_t(p.kv_heads) * row_bytes;
        copy_vectors(value, value_row, row_bytes, threadIdx.x, APPEND_THREADS);
    }
}

KERNEL(append_f16, AppendParams, APPEND_THREADS, 16) { append<F16>(params); }
KERNEL(append_bf16, AppendParams, APPEND_THREADS, 16) { append<Bf16>(params); }
