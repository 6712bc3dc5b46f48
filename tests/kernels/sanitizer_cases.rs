//! Small cases for compute-sanitizer, which makes kernels a hundred times slower: of each
//! way to store a page, and of each width of a head, all that is done to pages (append,
//! seal, copy, gather, prefill, decode, score passes), against float64 as elsewhere.
//! `cargo test --test kernels sanitizer_cases::`

use crate::common::bench::Bench;
use crate::common::plan::group;
use crate::common::subject::kinds;
use crate::{attention_conformance, score_conformance};
use kvfold::backend::{KvGroup, StreamFormat};
use kvfold::codec::feedback::Feedback;
use std::sync::Arc;

/// Two sequences of sinks, sealed and hot pages; `seeds` make one of them a prompt where the
/// other has generated rows.
fn everything(group: &KvGroup) {
    for kind in kinds(2) {
        let mut bench = Bench::new(kind, group.clone(), 2, &[2, 3]);
        // Pages are sealed as soon as they are full and one more begins.
        attention_conformance::step(&mut bench, &[150, 70]);
        attention_conformance::step(&mut bench, &[3, 66]);
        score_conformance::step(&mut bench, &[1, 1]);
        // A copy of a page that is partly filled, and one of its own for each stream.
        bench.fork(0, 5);
        attention_conformance::step(&mut bench, &[1, 0, 2]);
        let keep = |t: &u32| !t.is_multiple_of(3);
        let keep: Vec<Vec<u32>> = (bench.sequences[1].streams.iter())
            .map(|stream| (0..stream.keys.len() as u32).filter(keep).collect())
            .collect();
        bench.compact(1, &keep);
        score_conformance::step(&mut bench, &[1, 1, 1]);
        attention_conformance::step(&mut bench, &[1, 65, 1]);
    }
}

fn plain(format: &str, head_dim: usize) {
    everything(&KvGroup { hot_window: 0, ..group(format, head_dim, 1) });
}

/// With feedback of keys.
fn fed(format: &str, head_dim: usize) {
    let mut group = KvGroup { hot_window: 0, ..group(format, head_dim, 1) };
    let direction = |i: usize| (i % 5) as f64 - 1.0;
    let moment = |i: usize| direction(i / head_dim) * direction(i % head_dim);
    let moment: Vec<_> = (0..head_dim * head_dim).map(moment).collect();
    let feedback = Some(Arc::new(Feedback::new(&moment, head_dim)));
    group.streams = Some(Arc::new([StreamFormat { format: group.format, feedback }]));
    everything(&group);
}

macro_rules! cases {
    ($($name:ident: $case:ident($format:literal, $head_dim:literal);)*) => {
        $(#[test]
        fn $name() {
            $case($format, $head_dim);
        })*
    };
}

cases! {
    f16_d64: plain("f16", 64);
    f16_d128: plain("f16", 128);
    f16_d256: plain("f16", 256);
    bf16_d64: plain("bf16", 64);
    bf16_d128: plain("bf16", 128);
    bf16_d256: plain("bf16", 256);
    fp8_d64: plain("fp8", 64);
    fp8_d128: plain("fp8", 128);
    fp8_d256: plain("fp8", 256);
    kivi2_d64: plain("kivi2", 64);
    kivi2_d128: plain("kivi2", 128);
    kivi2_d256: plain("kivi2", 256);
    kf2_d64: fed("kf2", 64);
    kf2_d128: fed("kf2", 128);
    kf2_d256: fed("kf2", 256);
}
