//! The parameter structs of the kernels: `kernels/common/params.h` in Rust.
//!
//! The header says what the fields mean; shapes stand there. Sizes and offsets are
//! checked where a struct is defined, and against the C++ compiler by a test.

/// "No such index" in run and stream fields.
pub const NONE: u32 = u32::MAX;
/// A row's token is in the slot that the other bits name.
pub const TOKEN_DRAWN: u32 = 1 << 31;

/// Defines a struct as C lays it out, with its size and the offset of each field.
macro_rules! mirror {
    ($(#[$doc:meta])* $name:ident, $bytes:literal bytes {
        $($(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $bytes);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };

        #[cfg(test)]
        impl $name {
            /// Struct, field and offset of all fields, and the size as field "".
            pub(super) const LAYOUT: &[(&str, &str, usize)] = &[
                $((stringify!($name), stringify!($field), $offset),)*
                (stringify!($name), "", $bytes),
            ];
        }
    };
}

mod attention;
mod bench;
mod cache;
mod dense;
mod score;

pub use attention::*;
pub use bench::*;
pub use cache::*;
pub use dense::*;
pub use score::*;

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
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
            AttendSeq::LAYOUT,
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
            &[
                ("KvCodec", "CODEC_F16", CODEC_F16 as usize),
                ("KvCodec", "CODEC_BF16", CODEC_BF16 as usize),
                ("KvCodec", "CODEC_FP8", CODEC_FP8 as usize),
                ("KvCodec", "CODEC_KIVI4", CODEC_KIVI4 as usize),
                ("KvCodec", "CODEC_KIVI2", CODEC_KIVI2 as usize),
                ("KvCodec", "CODEC_KF4", CODEC_KF4 as usize),
                ("KvCodec", "CODEC_KF3", CODEC_KF3 as usize),
                ("KvCodec", "CODEC_KF2", CODEC_KF2 as usize),
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
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
    }
}
