//! Decode by the kernels without f16 subnormals: right where products take subnormals as 0,
//! and of the same bits as the others where they do not.

use crate::attention_conformance::step;
use crate::common::bench::Bench;
use crate::common::plan::group;
use crate::common::random::Random;
use crate::common::subject::{Kind, OnDevice, full};
use crate::score_conformance;
use kvfold::backend::KvGroup;
use kvfold::backend::cuda::subnormal::Number;

/// Those with codes or e4m3.
const FORMATS: [&str; 16] = [
    "fp8",
    "kivi4",
    "kivi2",
    "kivi4/kivi2",
    "kf4",
    "kf3",
    "kf3.2",
    "kf2",
    "bf16+fp8",
    "bf16+kivi4",
    "bf16+kivi2",
    "bf16+kivi4/kivi2",
    "bf16+kf4",
    "bf16+kf3",
    "bf16+kf3.2",
    "bf16+kf2",
];

/// Head dim, query heads, KV heads: every width of tiles.
const SHAPES: [(usize, usize, usize); 5] =
    [(64, 6, 2), (64, 16, 1), (128, 4, 2), (128, 12, 1), (256, 4, 2)];

/// Whether the emulated device may be used (`KVFOLD_CONFORMANCE_KINDS`).
fn emulates() -> bool {
    Kind::all(0..1).into_iter().any(|kind| matches!(kind, Kind::Emulated(_)))
}

fn two_layers(format: &str, head_dim: usize, kv_heads: usize) -> KvGroup {
    KvGroup { layers: 2, ..group(format, head_dim, kv_heads) }
}

/// Devices that take subnormals as 0, whole backends and kernels alone; prompts and score
/// passes have no other kernels there.
fn flushing() -> Vec<Kind> {
    let seeds = if full() { 4 } else { 2 };
    (0..seeds).filter(|_| emulates()).map(Kind::Flushing).collect()
}

#[test]
fn every_format_agrees_with_float64_without_subnormals() {
    for kind in flushing() {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let (d, heads, kv_heads) = SHAPES[i % SHAPES.len()];
            let seeds = [i as u64, 100, 201];
            let mut bench = Bench::new(kind, two_layers(format, d, kv_heads), heads, &seeds);
            bench.causal = i % 4 != 3;
            bench.shift = [0, 37][i % 2];
            for new in [[200, 70, 230], [1, 130, 2], [2, 1, 1]] {
                step(&mut bench, &new);
            }
        }
    }
}

#[test]
fn random_plans_agree_with_float64_without_subnormals() {
    let mut random = Random::new(777);
    for kind in flushing() {
        for _ in 0..if full() { 30 } else { 4 } {
            let Some(mut bench) = Bench::draw(kind, &mut random) else { continue };
            for _ in 0..6 {
                step(&mut bench, &Bench::draw_chunks(&mut random));
            }
        }
    }
}

#[test]
fn score_passes_agree_with_float64_without_subnormals() {
    for kind in flushing() {
        for format in ["f16", "fp8", "kivi4", "kf3", "bf16+kivi2"] {
            let mut bench = Bench::new(kind, two_layers(format, 64, 2), 6, &[7, 8]);
            for new in [[230, 70], [1, 130]] {
                score_conformance::step(&mut bench, &new);
            }
        }
    }
}

/// Output and log-sum-exp bits of some steps by the kernels alone.
fn bits(kind: Kind, number: Number, format: &str, shape: (usize, usize, usize)) -> Vec<u32> {
    let (d, heads, kv_heads) = shape;
    let subject = Box::new(OnDevice::with_number(&kind.device().unwrap(), number));
    let mut bench = Bench::of(kind, subject, group(format, d, kv_heads), heads, &[40, 51]);
    let mut bits = Vec::new();
    for new in [[300, 200], [1, 70], [2, 1]] {
        bench.step(&new, |_, layer| {
            let all = layer.attended.out.iter().chain(&layer.attended.lse);
            bits.extend(all.map(|x| x.to_bits()));
        });
    }
    bits
}

#[test]
fn both_kinds_of_kernels_give_the_same_bits() {
    // On a GPU the driver compiles a form at a time.
    let kinds = Kind::all(0..1).into_iter().filter(|kind| match kind {
        Kind::Cpu(_) => false,
        Kind::Cuda => full(),
        _ => true,
    });
    for kind in kinds {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let shape = SHAPES[(i / 2 + i) % SHAPES.len()];
            let [subnormal, normal] =
                [Number::Subnormal, Number::Normal].map(|number| bits(kind, number, format, shape));
            assert!(subnormal == normal, "{kind:?} {format} {shape:?}");
        }
    }
}

/// What the other tests would miss if the emulated device did not flush.
#[test]
fn codes_are_lost_by_the_usual_kernels_where_subnormals_are_zero() {
    if !emulates() {
        return;
    }
    for format in FORMATS {
        let of = |kind, number| {
            bits(kind, number, format, SHAPES[0])
                .into_iter()
                .map(f32::from_bits)
                .collect::<Vec<_>>()
        };
        let right = of(Kind::Emulated(0), Number::Subnormal);
        let [lost, kept] = [Number::Subnormal, Number::Normal].map(|number| {
            let got = of(Kind::Flushing(0), number);
            let error: f32 = got.iter().zip(&right).map(|(x, y)| (x - y).powi(2)).sum();
            (error / right.iter().map(|x| x * x).sum::<f32>()).sqrt()
        });
        // Of e4m3 only numbers below 2^-6 are lost.
        let least = if format.ends_with("fp8") { 1e-6 } else { 1e-2 };
        assert!(lost > least, "{format}: {lost:e}");
        assert!(kept < lost / 2.0, "{format}: {kept:e} and {lost:e}");
    }
}
