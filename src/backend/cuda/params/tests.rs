//! The structs as the C++ compiler lays them out.

use super::*;
use crate::codec::Codec;
use std::ffi::{CStr, c_char};

/// A row of the table in kernels/emulator/params_layout.cpp.
#[repr(C)]
struct Row {
    structure: *const c_char,
    field: *const c_char,
    offset: u64,
}

unsafe extern "C" {
    fn kvfold_params_layout(index: u32) -> *const Row;
}

#[test]
fn the_cpp_compiler_lays_out_the_same_structs() {
    let text = |p| {
        // SAFETY: the table holds string literals.
        unsafe { CStr::from_ptr(p) }.to_str().unwrap()
    };
    let mut theirs = Vec::new();
    for index in 0.. {
        // SAFETY: any index may be asked for; the end is null.
        let Some(row) = (unsafe { kvfold_params_layout(index).as_ref() }) else { break };
        theirs.push((text(row.structure), text(row.field), row.offset as usize));
    }
    let mut ours = [
        KvArena::LAYOUT,
        KvRun::LAYOUT,
        KvStream::LAYOUT,
        KvSeq::LAYOUT,
        AttendItem::LAYOUT,
        AttendEntry::LAYOUT,
        AttendPlan::LAYOUT,
        AttendParams::LAYOUT,
        ScoreParams::LAYOUT,
        ScoreTop::LAYOUT,
        AppendParams::LAYOUT,
        AppendSlot::LAYOUT,
        SealParams::LAYOUT,
        SealJob::LAYOUT,
        GatherParams::LAYOUT,
        GatherRow::LAYOUT,
        ScatterParams::LAYOUT,
        ScatterPiece::LAYOUT,
        CopyParams::LAYOUT,
        CopyJob::LAYOUT,
        GemmParams::LAYOUT,
        NormParams::LAYOUT,
        HeadNormParams::LAYOUT,
        EmbedParams::LAYOUT,
        SelectParams::LAYOUT,
        ActivateParams::LAYOUT,
        BiasParams::LAYOUT,
        RopeParams::LAYOUT,
        PenaliseParams::LAYOUT,
        SampleParams::LAYOUT,
        SampleDraw::LAYOUT,
        BenchReadParams::LAYOUT,
        BenchMmaParams::LAYOUT,
        SubnormalParams::LAYOUT,
        &[
            ("KvRunKind", "RUN_SINK", RUN_SINK as usize),
            ("KvRunKind", "RUN_SEALED", RUN_SEALED as usize),
            ("KvRunKind", "RUN_HOT", RUN_HOT as usize),
            ("AttendFlags", "SEQ_RAGGED", SEQ_RAGGED as usize),
            ("AttendFlags", "SEQ_PROMPT", SEQ_PROMPT as usize),
            ("ScoreReduce", "SCORE_SUM_MEAN", SCORE_SUM_MEAN as usize),
            ("ScoreReduce", "SCORE_SUM_MAX", SCORE_SUM_MAX as usize),
            ("ScoreReduce", "SCORE_MAX", SCORE_MAX as usize),
        ],
    ]
    .concat();
    let names = Codec::ALL.map(|codec| (format!("CODEC_{codec}").to_uppercase(), codec.number()));
    ours.extend(names.iter().map(|(name, n)| ("KvCodec", name.as_str(), *n as usize)));
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}
