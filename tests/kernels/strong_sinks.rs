//! Weights far below the largest: beside a strong sink all other tokens have weights near
//! the smallest numbers of 16 bits, and values of a huge range carry those of low-bit pages
//! to the largest. Neither may cost precision, nor change a bit of what stands beside.

use crate::common::bench::{Bench, Layer, Reshape};
use crate::common::errors::Errors;
use crate::common::oracle::rotate;
use crate::common::plan::{group, rope};
use crate::common::subject::Kind;
use kvfold::backend::cpu::Level;
use kvfold::backend::score_pass::{Heads, Score};
use kvfold::cache::RowKind;

/// Every named format, and every form of sealed pages beside hot ones of bf16.
const FORMATS: [&str; 18] = [
    "f16",
    "bf16",
    "fp8",
    "bf16+fp8",
    "kivi4",
    "bf16+kivi4",
    "kivi2",
    "bf16+kivi2",
    "kivi4/kivi2",
    "bf16+kivi4/kivi2",
    "kf4",
    "bf16+kf4",
    "kf3",
    "bf16+kf3",
    "kf3.2",
    "bf16+kf3.2",
    "kf2",
    "bf16+kf2",
];

/// Logits of a sink above those of other tokens, in nats.
const ABOVE: f32 = 14.0;
/// The sinks: one that stays in 16 bits, and one in a page that is sealed.
const SINKS: [usize; 2] = [0, 70];
/// Positions that sealed pages are moved by.
const SHIFT: i32 = 37;

/// Kinds for the i-th case: this processor at its best, and the emulated device, the whole
/// backend or the kernels alone.
fn kinds(i: usize) -> Vec<Kind> {
    let all = Kind::all(i as u64 % 2..i as u64 % 2 + 1);
    let chosen = |kind: &Kind| !matches!(kind, Kind::Cpu(level) if *level != Level::best());
    all.into_iter().filter(chosen).collect()
}

/// What all queries lean to, and the keys of sinks point to.
fn direction(d: usize, shift: i32) -> Vec<f32> {
    let mut row: Vec<f64> = (0..d).map(|i| if i * 7 % 11 < 5 { -1.0 } else { 1.0 }).collect();
    rotate(&mut row, &rope(d), -f64::from(shift));
    row.into_iter().map(|x| x as f32).collect()
}

/// The values of a sequence: a size, and a mean that each channel has.
#[derive(Clone, Copy)]
struct Values {
    size: f32,
    mean: f32,
}

/// Makes sinks with values of 0, for rows of one KV head.
fn sinks(d: usize, values: Vec<Values>) -> Reshape {
    let [lean, moved] = [0, SHIFT].map(|shift| direction(d, shift));
    Box::new(move |seq, token, row| {
        let queries = row.len() - 2 * d;
        let (queries, rest) = row.split_at_mut(queries);
        let (key, value) = rest.split_at_mut(d);
        for query in queries.chunks_exact_mut(d) {
            query.iter_mut().zip(&lean).for_each(|(x, lean)| *x = 0.25 * *x + lean);
        }
        let along = key.iter().zip(&lean).map(|(x, lean)| x * lean).sum::<f32>() / d as f32;
        for (i, x) in key.iter_mut().enumerate() {
            *x = match SINKS.iter().position(|&at| at == token) {
                Some(sink) => ABOVE / (d as f32).sqrt() * [&lean, &moved][sink][i],
                None => 0.5 * (*x - along * lean[i]),
            };
        }
        let Values { size, mean } = values[seq];
        for (i, x) in value.iter_mut().enumerate() {
            let own = size * *x + mean * (i as f32 * 2.4).sin();
            *x = if SINKS.contains(&token) { 0.0 } else { own };
        }
    })
}

/// Attends and checks each query by itself, since outputs may differ in size by far. One
/// query's roundings may err twice as much as those of many.
fn step(bench: &mut Bench, rows: RowKind, new: &[usize]) {
    bench.rows_are = Some(rows);
    bench.step(new, |bench, layer| {
        for (seq, share) in layer.step.seqs.iter().enumerate() {
            let what = format!("{:?} {} {rows:?} {seq}", bench.kind, bench.group.format);
            for i in 0..share.q_len {
                Errors::of_queries(bench, layer, seq, &[i], &what).hold(bench, 2.0, &what);
            }
            check_scores(bench, layer, seq, &what);
        }
    });
}

/// Sums of probabilities, however small.
fn check_scores(bench: &mut Bench, layer: &Layer<'_>, seq: usize, what: &str) {
    let pass = Score::Sum { last: usize::MAX, heads: Heads::Mean };
    let scores = bench.subject.score(&layer.step, &layer.attended.lse, pass);
    let queries = layer.step.seqs[seq].q_len;
    let mut want = vec![0f64; scores.of(seq, 0).len()];
    for (i, head) in (0..queries).flat_map(|i| (0..bench.heads).map(move |head| (i, head))) {
        let (stream, query) = bench.query(layer, seq, i, head);
        let p = stream.probabilities(&query);
        want.iter_mut().zip(p).for_each(|(want, p)| *want += p / bench.heads as f64);
    }
    // A probability is off by what its exponent may be off by.
    let relative = (2.0 * bench.subject.tolerance().1).exp2() - 1.0;
    for (t, (got, want)) in scores.of(seq, 0).iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= relative * want, "{what}: token {t} has {got}, not {want}");
    }
}

/// A long stream of small values and a short one of larger ones: in one or the other what
/// is lost beside a sink shows in every format.
#[test]
fn a_strong_sink_costs_no_precision() {
    let values = [Values { size: 6.0, mean: 0.0 }, Values { size: 0.05, mean: 0.05 }];
    for (i, format) in FORMATS.into_iter().enumerate() {
        let d = [64, 128][i / 2 % 2];
        for kind in kinds(i) {
            let mut bench = Bench::new(kind, group(format, d, 1), 2, &[1, 2]);
            bench.shift = SHIFT;
            bench.reshape = Some(sinks(d, values.to_vec()));
            bench.rows_are = Some(RowKind::Prompt);
            // What the hot type changes shows in the short one.
            let long = usize::from(!format.contains('+'));
            bench.fill(&[550, 16_300 * long]);
            step(&mut bench, RowKind::Generated, &[2, long]);
            step(&mut bench, RowKind::Prompt, &[3, 2 * long]);
        }
    }
}

/// Sizes of values: scales of low-bit pages are within what weights may be multiplied by,
/// around it, far beyond it, and as large as they can be.
const SIZES: [f32; 4] = [8.0, 40.0, 300.0, 1e4];

/// Sequences with values of some of [`SIZES`], a third of which are small. Every other query
/// sees a sink beside them, and so weights of two sorts meet: such as may be multiplied by
/// large scales and must not lose their last bits, and such as may not.
fn of_sizes(kind: Kind, format: &str, sizes: &[usize]) -> Bench {
    const D: usize = 64;
    let seeds: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
    let mut bench = Bench::new(kind, group(format, D, 1), 3, &seeds);
    let values: Vec<_> =
        sizes.iter().map(|&size| Values { size: SIZES[size], mean: 0.0 }).collect();
    let (beside_sinks, lean) = (sinks(D, values), direction(D, 0));
    bench.shift = SHIFT;
    bench.reshape = Some(Box::new(move |seq, token, row| {
        beside_sinks(seq, token, row);
        let (heads, value) = row.split_at_mut(row.len() - D);
        let small = if token % 3 == 0 { 0.1 } else { 1.0 };
        value.iter_mut().for_each(|x| *x = (*x * small).clamp(-3e4, 3e4));
        if token % 2 == 0 {
            let (queries, _) = heads.split_at_mut(heads.len() - D);
            let indifferent = |(x, lean): (&mut f32, &f32)| *x = 4.0 * (*x - lean);
            let leans = |query: &mut [f32]| query.iter_mut().zip(&lean).for_each(indifferent);
            queries.chunks_exact_mut(D).for_each(leans);
        }
    }));
    bench.rows_are = Some(RowKind::Prompt);
    bench.fill(&vec![400; seeds.len()]);
    bench
}

/// Outputs of a step, by sequence.
fn outputs(bench: &mut Bench, new: &[usize]) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    bench.step(new, |bench, layer| {
        let width = bench.heads * bench.group.head_dim();
        let rows = |first: usize, n: usize| &layer.attended.out[first * width..][..n * width];
        let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect();
        all = layer.step.seqs.iter().map(|seq| bits(rows(seq.first_row, seq.q_len))).collect();
    });
    all
}

#[test]
fn values_of_any_range_are_summed() {
    for (i, format) in FORMATS.into_iter().enumerate() {
        for kind in kinds(i) {
            let mut bench = of_sizes(kind, format, &[0, 1, 2, 3]);
            step(&mut bench, RowKind::Generated, &[1, 5, 2, 3]);
            step(&mut bench, RowKind::Prompt, &[2, 1, 3, 4]);
        }
    }
}

/// A column whose weights are done again, since they left the range of f16, does not make
/// those beside it others: neither other sequences nor other queries of its own.
#[test]
fn values_of_any_range_change_no_bit_beside_them() {
    for (i, format) in FORMATS.into_iter().enumerate() {
        for kind in kinds(i) {
            let generated = |sizes: &[usize]| {
                let mut bench = of_sizes(kind, format, sizes);
                bench.rows_are = Some(RowKind::Generated);
                bench
            };
            let together = outputs(&mut generated(&[0, 1, 2, 3]), &[4; 4]);
            for (size, together) in together.into_iter().enumerate() {
                let mut alone = generated(&[size]);
                let one_by_one: Vec<_> =
                    (0..4).flat_map(|_| outputs(&mut alone, &[1]).concat()).collect();
                assert!(together == one_by_one, "{kind:?} {format}: values of {}", SIZES[size]);
            }
        }
    }
}
