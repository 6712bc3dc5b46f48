// Sizes and offsets of the parameter structs as C++ lays them out, for the test
// in src/backend/cuda/params.
#include <stddef.h>

#include "common/params/attention.h"
#include "common/params/bench.h"
#include "common/params/cache.h"
#include "common/params/dense.h"
#include "common/params/score.h"
#include "common/params/subnormal.h"

namespace {

struct Row {
    const char* structure;
    const char* field; // empty: the struct, whose size stands in for the offset
    uint64_t offset;
};

#define SIZE(S) {#S, "", sizeof(S)}
#define FIELD(S, f) {#S, #f, offsetof(S, f)}
#define VALUE(E, v) {#E, #v, v}

// clang-format off
const Row rows[] = {
    SIZE(KvArena),
    FIELD(KvArena, base), FIELD(KvArena, block_bytes), FIELD(KvArena, page_bytes),
    FIELD(KvArena, key_bytes), FIELD(KvArena, page_tokens), FIELD(KvArena, ragged),
    FIELD(KvArena, key_codec), FIELD(KvArena, value_codec),
    SIZE(KvRun),
    FIELD(KvRun, arena), FIELD(KvRun, kind), FIELD(KvRun, first), FIELD(KvRun, start),
    FIELD(KvRun, n_tokens), FIELD(KvRun, live), FIELD(KvRun, rotation), FIELD(KvRun, reserved),
    SIZE(KvStream),
    FIELD(KvStream, first_run), FIELD(KvStream, n_runs), FIELD(KvStream, first_entry),
    FIELD(KvStream, first_mask), FIELD(KvStream, kept), FIELD(KvStream, sealed_bound),
    SIZE(KvSeq),
    FIELD(KvSeq, first_row), FIELD(KvSeq, q_len), FIELD(KvSeq, first_stream),
    FIELD(KvSeq, flags),
    SIZE(AttendItem),
    FIELD(AttendItem, first_row), FIELD(AttendItem, kv_head), FIELD(AttendItem, first_page),
    FIELD(AttendItem, n_pages), FIELD(AttendItem, part), FIELD(AttendItem, n_splits),
    FIELD(AttendItem, first_run), FIELD(AttendItem, n_runs), FIELD(AttendItem, first_arena),
    FIELD(AttendItem, first_entry), FIELD(AttendItem, first_mask), FIELD(AttendItem, column),
    FIELD(AttendItem, count), FIELD(AttendItem, group), FIELD(AttendItem, base),
    FIELD(AttendItem, sealed_bound), FIELD(AttendItem, first_query),
    FIELD(AttendItem, first_sealed), FIELD(AttendItem, last_query),
    FIELD(AttendItem, last_sealed),
    SIZE(AttendEntry),
    FIELD(AttendEntry, first_item), FIELD(AttendEntry, n_items), FIELD(AttendEntry, first_part),
    FIELD(AttendEntry, n_splits),
    SIZE(AttendPlan),
    FIELD(AttendPlan, n_items), FIELD(AttendPlan, n_parts), FIELD(AttendPlan, overflow),
    FIELD(AttendPlan, reserved),
    SIZE(AttendParams),
    FIELD(AttendParams, q), FIELD(AttendParams, out), FIELD(AttendParams, lse),
    FIELD(AttendParams, seqs), FIELD(AttendParams, streams), FIELD(AttendParams, runs),
    FIELD(AttendParams, table), FIELD(AttendParams, masks), FIELD(AttendParams, arenas),
    FIELD(AttendParams, rotations), FIELD(AttendParams, plan), FIELD(AttendParams, items),
    FIELD(AttendParams, entries), FIELD(AttendParams, part_out), FIELD(AttendParams, part_lse),
    FIELD(AttendParams, n_seqs), FIELD(AttendParams, q_stride), FIELD(AttendParams, heads),
    FIELD(AttendParams, kv_heads), FIELD(AttendParams, layer), FIELD(AttendParams, sinks),
    FIELD(AttendParams, hot_pages), FIELD(AttendParams, window),
    FIELD(AttendParams, tile_columns),
    FIELD(AttendParams, max_items), FIELD(AttendParams, max_parts), FIELD(AttendParams, scale),
    FIELD(AttendParams, causal), FIELD(AttendParams, split_ends),
    SIZE(ScoreParams),
    FIELD(ScoreParams, attend), FIELD(ScoreParams, starts), FIELD(ScoreParams, scores),
    FIELD(ScoreParams, parts), FIELD(ScoreParams, tops), FIELD(ScoreParams, reduce),
    FIELD(ScoreParams, last), FIELD(ScoreParams, rows), FIELD(ScoreParams, chunks),
    FIELD(ScoreParams, per_head), FIELD(ScoreParams, reserved),
    SIZE(ScoreTop),
    FIELD(ScoreTop, value), FIELD(ScoreTop, index),
    SIZE(AppendParams),
    FIELD(AppendParams, qkv), FIELD(AppendParams, positions), FIELD(AppendParams, slots),
    FIELD(AppendParams, arenas), FIELD(AppendParams, inv_turns), FIELD(AppendParams, n_slots),
    FIELD(AppendParams, stride), FIELD(AppendParams, heads), FIELD(AppendParams, kv_heads),
    FIELD(AppendParams, head_dim), FIELD(AppendParams, layer),
    SIZE(AppendSlot),
    FIELD(AppendSlot, row), FIELD(AppendSlot, arena), FIELD(AppendSlot, block),
    FIELD(AppendSlot, slot), FIELD(AppendSlot, stream), FIELD(AppendSlot, reserved),
    SIZE(SealParams),
    FIELD(SealParams, jobs), FIELD(SealParams, arenas), FIELD(SealParams, feedback), FIELD(SealParams, n_jobs),
    FIELD(SealParams, first_layer), FIELD(SealParams, streams), FIELD(SealParams, kv_heads),
    FIELD(SealParams, head_dim), FIELD(SealParams, reserved),
    SIZE(SealJob),
    FIELD(SealJob, from_arena), FIELD(SealJob, from_block), FIELD(SealJob, to_arena),
    FIELD(SealJob, to_block), FIELD(SealJob, stream), FIELD(SealJob, reserved),
    SIZE(GatherParams),
    FIELD(GatherParams, rows), FIELD(GatherParams, arenas), FIELD(GatherParams, n_rows),
    FIELD(GatherParams, head_dim),
    SIZE(GatherRow),
    FIELD(GatherRow, from_arena), FIELD(GatherRow, from_block), FIELD(GatherRow, from_slot),
    FIELD(GatherRow, stream), FIELD(GatherRow, to_arena), FIELD(GatherRow, to_block),
    FIELD(GatherRow, to_slot), FIELD(GatherRow, reserved),
    SIZE(ScatterParams),
    FIELD(ScatterParams, parcel),
    SIZE(ScatterPiece),
    FIELD(ScatterPiece, to), FIELD(ScatterPiece, from), FIELD(ScatterPiece, bytes),
    SIZE(CopyParams),
    FIELD(CopyParams, copies), FIELD(CopyParams, arenas), FIELD(CopyParams, n_copies),
    FIELD(CopyParams, reserved),
    SIZE(CopyJob),
    FIELD(CopyJob, from_arena), FIELD(CopyJob, from), FIELD(CopyJob, to_arena), FIELD(CopyJob, to),
    FIELD(CopyJob, page), FIELD(CopyJob, gap),
    SIZE(GemmParams),
    FIELD(GemmParams, x), FIELD(GemmParams, w), FIELD(GemmParams, y), FIELD(GemmParams, rows),
    FIELD(GemmParams, n), FIELD(GemmParams, k), FIELD(GemmParams, reserved),
    SIZE(NormParams),
    FIELD(NormParams, x), FIELD(NormParams, delta), FIELD(NormParams, weight),
    FIELD(NormParams, out), FIELD(NormParams, cols), FIELD(NormParams, eps),
    SIZE(HeadNormParams),
    FIELD(HeadNormParams, x), FIELD(HeadNormParams, weight), FIELD(HeadNormParams, rows),
    FIELD(HeadNormParams, stride), FIELD(HeadNormParams, first_col), FIELD(HeadNormParams, heads),
    FIELD(HeadNormParams, head_dim), FIELD(HeadNormParams, eps),
    SIZE(EmbedParams),
    FIELD(EmbedParams, table), FIELD(EmbedParams, tokens), FIELD(EmbedParams, slots),
    FIELD(EmbedParams, ids), FIELD(EmbedParams, out), FIELD(EmbedParams, cols),
    FIELD(EmbedParams, vocab), FIELD(EmbedParams, scale), FIELD(EmbedParams, n_slots),
    SIZE(SelectParams),
    FIELD(SelectParams, from), FIELD(SelectParams, rows), FIELD(SelectParams, to),
    FIELD(SelectParams, row_bytes), FIELD(SelectParams, n_from),
    SIZE(ActivateParams),
    FIELD(ActivateParams, x), FIELD(ActivateParams, y), FIELD(ActivateParams, rows),
    FIELD(ActivateParams, cols),
    SIZE(BiasParams),
    FIELD(BiasParams, x), FIELD(BiasParams, bias), FIELD(BiasParams, rows), FIELD(BiasParams, cols),
    SIZE(RopeParams),
    FIELD(RopeParams, x), FIELD(RopeParams, positions), FIELD(RopeParams, inv_turns),
    FIELD(RopeParams, stride), FIELD(RopeParams, heads), FIELD(RopeParams, head_dim),
    FIELD(RopeParams, reserved),
    SIZE(PenaliseParams),
    FIELD(PenaliseParams, logits), FIELD(PenaliseParams, starts), FIELD(PenaliseParams, tokens),
    FIELD(PenaliseParams, factors), FIELD(PenaliseParams, rows), FIELD(PenaliseParams, ids),
    FIELD(PenaliseParams, vocab), FIELD(PenaliseParams, stride),
    SIZE(SampleParams),
    FIELD(SampleParams, logits), FIELD(SampleParams, draws), FIELD(SampleParams, ids),
    FIELD(SampleParams, vocab), FIELD(SampleParams, stride),
    SIZE(SampleDraw),
    FIELD(SampleDraw, top_p), FIELD(SampleDraw, min_weight), FIELD(SampleDraw, scale),
    FIELD(SampleDraw, top_k), FIELD(SampleDraw, uniform), FIELD(SampleDraw, slot),
    SIZE(BenchReadParams),
    FIELD(BenchReadParams, from), FIELD(BenchReadParams, sums), FIELD(BenchReadParams, n_slabs),
    SIZE(BenchMmaParams),
    FIELD(BenchMmaParams, operands), FIELD(BenchMmaParams, sums), FIELD(BenchMmaParams, rounds),
    FIELD(BenchMmaParams, reserved),
    SIZE(SubnormalParams),
    FIELD(SubnormalParams, operands), FIELD(SubnormalParams, sums), FIELD(SubnormalParams, factors),
    FIELD(SubnormalParams, products), FIELD(SubnormalParams, n_matrices),
    FIELD(SubnormalParams, n_pairs),
    VALUE(KvCodec, CODEC_F16), VALUE(KvCodec, CODEC_BF16), VALUE(KvCodec, CODEC_FP8),
    VALUE(KvCodec, CODEC_KIVI4), VALUE(KvCodec, CODEC_KIVI2),
    VALUE(KvCodec, CODEC_KF4), VALUE(KvCodec, CODEC_KF3), VALUE(KvCodec, CODEC_KF2),
    VALUE(KvRunKind, RUN_SINK), VALUE(KvRunKind, RUN_SEALED), VALUE(KvRunKind, RUN_HOT),
    VALUE(AttendFlags, SEQ_RAGGED), VALUE(AttendFlags, SEQ_PROMPT),
    VALUE(ScoreReduce, SCORE_SUM_MEAN), VALUE(ScoreReduce, SCORE_SUM_MAX),
    VALUE(ScoreReduce, SCORE_MAX),
};
// clang-format on

} // namespace

// The row of this index, or null past the last one.
extern "C" const Row* kvfold_params_layout(uint32_t index) {
    return index < sizeof rows / sizeof *rows ? &rows[index] : nullptr;
}
