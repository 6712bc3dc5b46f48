//! Append, seal, compaction and attention of every backend against float64:
//! head dims, groups, unequal lengths, page boundaries, chunk plans, mixed
//! formats, causal or not, windows, relocated runs, live masks, ragged streams.
//!
//! `KVFOLD_CONFORMANCE=full` draws more cases, `KVFOLD_CONFORMANCE_KINDS=cuda` tests
//! the first CUDA device alone (`Kind::all`). `common/chosen.rs` says how the tests of every
//! format are asked for some of them, or for other head dims.

use crate::common::bench::{Bench, FORMATS, Layer};
use crate::common::chosen::chosen;
use crate::common::errors::Errors;
use crate::common::oracle::Stream;
use crate::common::plan::{MIXED, cache_of, group, relocate, rope};
use crate::common::random::Random;
use crate::common::subject::{Kind, full, kinds};
use kvfold::backend::cpu::{CpuBackend, Level};
use kvfold::backend::score_pass::{Score, Scores};
use kvfold::backend::{Attend, Kv, KvGroup, LayerIndex, Memory, Rope, RowToken, StepInput};
use std::sync::Arc;

/// Does a step and checks its queries: relative rms errors of all outputs of a call.
pub fn step(bench: &mut Bench, new: &[usize]) {
    bench.step(new, |bench, layer| {
        let sums: Vec<_> = (0..layer.asked.len()).map(|seq| check(bench, layer, seq)).collect();
        let what = format!("{:?} {}", bench.kind, bench.group.format);
        Errors::of_all(&sums).hold(bench, 1.0, &what);
    });
}

/// Checks the queries of one sequence: every one near the ends, and a sample between. Where
/// queries are rounded to 16 bits, one query of two heads is a small sample of that rounding:
/// the worst of hundreds may err twice as much as a call may.
fn check(bench: &Bench, layer: &Layer<'_>, seq: usize) -> Errors {
    let share = &layer.step.seqs[seq];
    let place = [layer.step.call.at.layer, bench.steps, share.first_row];
    let mut random = Random::new(place.iter().fold(0, |seed, &x| seed << 20 | x as u64));
    let sampled = |&i: &usize| i <= 1 || i + 2 >= share.q_len || random.below(24) == 0;
    let queries: Vec<_> = (0..share.q_len).filter(sampled).collect();
    let what = format!("{:?} {} layer {}", bench.kind, bench.group.format, place[0]);
    let errors = Errors::of_queries(bench, layer, seq, &queries, &what);
    let times = if bench.subject.query_type().is_some() { 2.0 } else { 1.0 };
    errors.hold(bench, times, &what);
    errors
}

fn two_layers(format: &str, head_dim: usize, kv_heads: usize) -> KvGroup {
    KvGroup { layers: 2, ..group(format, head_dim, kv_heads) }
}

/// Chunks across page and seal boundaries, then single tokens, two sequences of
/// unequal length in one batch.
#[test]
fn every_format_agrees_with_float64() {
    for kind in kinds(2) {
        for (i, (format, d)) in chosen(&FORMATS, 64).into_iter().enumerate() {
            let group = two_layers(format, d, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, &[i as u64, 100]);
            for new in [[70, 130], [1, 1], [0, 64], [200, 7], [1, 1], [50, 0], [1, 1], [1, 1]] {
                step(&mut bench, &new);
            }
        }
    }
}

/// Every query sees its whole stream, the tokens behind it too; early queries of a
/// chunk read pages in 16 bits that late ones read sealed.
#[test]
fn every_format_agrees_with_float64_without_a_causal_mask() {
    for kind in kinds(2) {
        for (i, (format, d)) in chosen(&FORMATS, 64).into_iter().enumerate() {
            let group = two_layers(format, d, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, &[i as u64, 100]);
            bench.causal = false;
            bench.shift = [0, 37][i % 2];
            for new in [[40, 5], [200, 1], [5, 200], [1, 40], [1, 1], [70, 5]] {
                step(&mut bench, &new);
            }
        }
    }
}

#[test]
fn shapes_agree_with_float64() {
    // head_dim, query heads, KV heads.
    let shapes = [
        (32, 2, 1),
        (64, 1, 1),
        (64, 16, 1),
        (96, 10, 2),
        (128, 8, 2),
        (128, 12, 1),
        (256, 4, 4),
        (256, 10, 1),
    ];
    for kind in kinds(2) {
        for (i, (d, heads, kv_heads)) in shapes.into_iter().enumerate() {
            for (format, causal) in [
                ("kivi2", true),
                ("f16", true),
                ("kivi4", true),
                ("kivi2", false),
                ("kf2", true),
                ("kf3.2", false),
                ("kf3", true),
                ("kf4", true),
            ] {
                let group = two_layers(format, d, kv_heads);
                if !kind.takes(&group) {
                    continue;
                }
                let mut bench = Bench::new(kind, group, heads, &[77 + i as u64]);
                bench.causal = causal;
                for new in [[197], [64], [1], [3]] {
                    step(&mut bench, &new);
                }
            }
        }
    }
}

#[test]
fn random_plans_agree_with_float64() {
    let mut random = Random::new(4242);
    for kind in kinds(2) {
        for _ in 0..if full() { 30 } else { 6 } {
            let Some(mut bench) = Bench::draw(kind, &mut random) else { continue };
            for _ in 0..8 {
                step(&mut bench, &Bench::draw_chunks(&mut random));
            }
        }
    }
}

/// More pages than one decode item holds, so partial results must merge.
#[test]
fn long_streams_merge_their_splits() {
    for kind in kinds(2) {
        let mut bench = Bench::new(kind, group("kivi2", 64, 1), 3, &[5, 6]);
        step(&mut bench, &[1100, 900]);
        step(&mut bench, &[500, 0]);
        for _ in 0..3 {
            step(&mut bench, &[1, 1]);
        }
        bench.causal = false;
        step(&mut bench, &[5, 70]);
        step(&mut bench, &[1, 16]);
    }
}

/// Whatever the chunks, every query sees what the oracle says: the forms depend on
/// positions alone.
#[test]
fn any_chunking_sees_the_same_forms() {
    for plan in [&[300, 1][..], &[100, 150, 50, 1]] {
        let mut bench = Bench::new(Kind::Cpu(Level::best()), two_layers("kivi2", 64, 1), 3, &[9]);
        for &n in plan {
            step(&mut bench, &[n]);
        }
    }
}

#[test]
fn evicted_tokens_are_not_seen() {
    for (kind, causal) in kinds(2).into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut bench = Bench::new(kind, two_layers("kivi2", 64, 1), 4, &[31, 32]);
        bench.causal = causal;
        step(&mut bench, &[350, 100]);
        // Single tokens of sealed and hot pages, and one whole sealed page.
        let mut gone: Vec<u32> = vec![9, 70, 71, 230, 340];
        gone.extend(4 + 64..4 + 128);
        gone.sort_unstable();
        gone.dedup();
        bench.shift = -500;
        bench.evict(0, &gone);
        step(&mut bench, &[1, 1]);
        step(&mut bench, &[90, 3]);
        step(&mut bench, &[1, 1]);
    }
}

#[test]
fn compacted_streams_keep_their_rows() {
    for (kind, causal) in kinds(2).into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut bench = Bench::new(kind, two_layers("kivi2", 64, 2), 6, &[63, 64]);
        bench.causal = causal;
        step(&mut bench, &[180, 60]);
        let mut random = Random::new(8);
        let keep: Vec<Vec<u32>> = (bench.sequences[0].streams.iter())
            .map(|_| (0..180).filter(|_| random.below(3) > 0).collect())
            .collect();
        bench.compact(0, &keep);
        for new in [[1, 1], [100, 2], [1, 1], [130, 70], [1, 1]] {
            step(&mut bench, &new);
        }
    }
}

/// Sealed pages stay whole in a compaction, with what is dropped masked.
#[test]
fn compacted_streams_keep_their_sealed_pages() {
    for kind in kinds(2) {
        for format in ["kivi2", "kf3.2", MIXED] {
            let group = two_layers(format, 64, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, &[65, 66]);
            step(&mut bench, &[500, 60]);
            let mut random = Random::new(9);
            for _ in 0..2 {
                let mut keep = |(stream, share): (&Stream, usize)| -> Vec<u32> {
                    let live = (0..stream.keys.len()).filter(|t| !stream.dead.contains(t));
                    live.filter(|_| random.below(4) < share).map(|t| t as u32).collect()
                };
                // Nothing of one stream, all of another, of one no sinks and few others.
                let streams = bench.sequences[0].streams.iter();
                let mut keep: Vec<_> = streams.zip([2, 4, 1, 0]).map(&mut keep).collect();
                keep[2].retain(|t: &u32| (4..132).contains(t));
                bench.compact(0, &keep);
                for new in [[1, 1], [100, 2], [1, 1], [130, 70], [1, 1]] {
                    step(&mut bench, &new);
                }
            }
        }
    }
}

/// Pages of another sequence, seen at other positions than they were written at.
#[test]
fn attached_pages_are_read_where_they_stand() {
    for kind in kinds(2) {
        for (format, sinks, window) in [
            ("kivi2", 4, None),
            ("kivi2", 4, Some(150)),
            ("f16", 0, None),
            ("kf3.2", 4, None),
            (MIXED, 4, None),
        ] {
            let group = two_layers(format, 64, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 4, &[67, 68, 69]);
            bench.window = window;
            step(&mut bench, &[500, 20, 0]);
            bench.attach(0, sinks + 64..sinks + 192, 1, 27);
            // From the beginning: what another request has prefilled already.
            bench.attach(0, 0..sinks + 256, 2, 0);
            for new in [[1, 1, 1], [0, 30, 100], [1, 1, 1]] {
                step(&mut bench, &new);
            }
            bench.attach(0, sinks..sinks + 64, 1, 400);
            for new in [[1, 70, 1], [1, 1, 70]] {
                step(&mut bench, &new);
            }
            let keep =
                |stream: &Stream| (0..stream.keys.len() as u32).filter(|t| t % 3 > 0).collect();
            let keep: Vec<Vec<u32>> = bench.sequences[1].streams.iter().map(keep).collect();
            bench.compact(1, &keep);
            for new in [[1, 1, 1], [1, 150, 3]] {
                step(&mut bench, &new);
            }
        }
    }
}

/// Each stream of a uniform group loses tokens of its own.
#[test]
fn streams_over_one_table_have_masks_of_their_own() {
    for kind in kinds(2) {
        let mut bench = Bench::new(kind, two_layers("kivi2", 64, 2), 6, &[70, 71]);
        step(&mut bench, &[350, 100]);
        for stream in 0..4u32 {
            let gone: Vec<u32> = (0..349).filter(|t| (t / 7 + stream) % 4 == 0).collect();
            bench.evict_of(0, stream as usize, &gone);
        }
        for new in [[1, 1], [90, 3], [1, 1]] {
            step(&mut bench, &new);
        }
    }
}

#[test]
fn forks_write_to_their_own_copy() {
    let mut bench = Bench::new(Kind::Cpu(Level::best()), two_layers("kivi2", 64, 1), 2, &[17]);
    step(&mut bench, &[230]);
    bench.fork(0, 18);
    for new in [[1, 1], [30, 5], [1, 90]] {
        step(&mut bench, &new);
    }
}

#[test]
fn a_window_without_a_causal_mask_is_refused() {
    let mut backend = CpuBackend::new();
    let mut arena = backend.arena(&[group("f16", 64, 1)], &[], 0).unwrap();
    let at = LayerIndex { group: 0, layer: 0 };
    let call = Attend { at, heads: 1, scale: 1.0, causal: false, window: Some(64) };
    let (q, mut out) = (backend.buffer(1, 64).unwrap(), backend.buffer(0, 0).unwrap());
    let mut attend = |call: &Attend| backend.attend(&mut arena, call, &q, &mut out, None);
    let error = attend(&call).unwrap_err().to_string();
    assert!(error.contains("a window of 64") && error.contains("causal"), "{error}");
    attend(&Attend { causal: true, ..call }).unwrap();
}

/// Without the frequencies of its keys a relocated run would be read where it was written.
#[test]
fn relocated_runs_need_the_rotation() {
    for (inv_freq, works) in [
        (Some(rope(64).inv_freq), true),
        (None, false),
        (Some(Vec::new()), false),
        (Some(vec![1.0; 33]), false),
    ] {
        let mut backend = CpuBackend::new();
        let mut group = group("kivi2", 64, 1);
        group.rope = inv_freq.map(|inv_freq| Arc::new(Rope { inv_freq }));
        let mut cache = cache_of(&group);
        let groups = std::slice::from_ref(&group);
        let mut arena = backend.arena(groups, cache.classes(), cache.budget()).unwrap();
        let seq = cache.create();
        let mut step = cache.prepare(&[(seq, 300)]).unwrap();
        relocate(&mut step.seqs[0].views[0], 37);
        let tokens = [RowToken::Given(0); 300];
        let input = StepInput { step: &step, tokens: &tokens, rows: &[], choices: &[] };
        backend.begin(&mut arena, &input).unwrap();
        let at = LayerIndex { group: 0, layer: 0 };
        let mut qkv = backend.buffer(0, 0).unwrap();
        backend.write(&[0.5; 300 * 3 * 64], 3 * 64, &mut qkv).unwrap();
        backend.append(&mut arena, at, 1, true, &mut qkv).unwrap();
        backend.seal(&mut arena, 0, 0..1).unwrap();
        let mut out = backend.buffer(0, 0).unwrap();
        let mut lse = backend.buffer(0, 0).unwrap();
        backend.write(&[1.0; 300], 1, &mut lse).unwrap();
        let call = Attend { at, heads: 1, scale: 1.0, causal: true, window: None };
        let attended = backend.attend(&mut arena, &call, &qkv, &mut out, None);
        let (pass, mut scores) = (Score::Max { last: 1 }, Scores::default());
        let scored = backend.score(&mut arena, &call, pass, &qkv, &lse, &mut scores);
        for result in [attended, scored] {
            let error = result.err().map(|error| error.to_string());
            assert_eq!(error.is_none(), works, "{error:?}");
            let names = |e: String| e.contains("by 37") && e.contains("32 frequencies");
            assert!(error.is_none_or(names));
        }
    }
}

#[test]
fn head_dims_that_the_kernels_lack_are_named() {
    for d in [48, 512] {
        let mut backend = CpuBackend::new();
        let error = backend.arena(&[group("f16", d, 1)], &[], 0).err().unwrap().to_string();
        assert!(error.contains(&d.to_string()), "{error}");
    }
}
