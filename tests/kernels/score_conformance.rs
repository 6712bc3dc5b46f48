//! Score passes of every backend against float64: sums and maxima of probabilities a
//! kept token, and the best token a query, over mixed formats, windows, relocated runs,
//! live masks and ragged streams. `attention_conformance.rs` says which variables
//! ask for more.

use crate::common::bench::{Bench, FORMATS, Layer};
use crate::common::plan::group;
use crate::common::random::Random;
use crate::common::subject::{Kind, full, kinds};
use kvfold::backend::cpu::{CpuBackend, Level};
use kvfold::backend::cuda::attend::{AttentionCall, AttentionShape};
use kvfold::backend::cuda::score::{ScoreCall, Scorer};
use kvfold::backend::cuda::tables::Sizes;
use kvfold::backend::driver::Device;
use kvfold::backend::score_pass::{Heads, Score, Scores, Top, TopHeads};
use kvfold::backend::{Attend, Kv, LayerIndex, Memory};

const ALL: usize = usize::MAX;
const PASSES: [Score; 6] = [
    Score::Sum { last: 32, heads: Heads::Mean },
    Score::Sum { last: ALL, heads: Heads::Mean },
    Score::Sum { last: 1, heads: Heads::Mean },
    Score::Sum { last: ALL, heads: Heads::Max },
    Score::Max { last: ALL },
    Score::Max { last: 5 },
];

/// Scores and tops of one sequence, for comparison bit by bit.
pub type Bits = Vec<Vec<u32>>;

/// Probabilities `[query][head][kept]`.
type Probabilities = Vec<Vec<Vec<f64>>>;

/// Does a step and checks some passes over it, all if many are asked for. The bits of each
/// sequence that had tokens.
pub fn step(bench: &mut Bench, new: &[usize]) -> Vec<Bits> {
    let mut bits = vec![Bits::new(); new.iter().filter(|&&n| n > 0).count()];
    bench.step(new, |bench, layer| check(bench, layer, &mut bits));
    bits
}

fn check(bench: &mut Bench, layer: &Layer<'_>, bits: &mut [Bits]) {
    let what = format!("{:?} {} step {}", bench.kind, bench.group.format, bench.steps);
    let p: Vec<_> = (0..layer.asked.len()).map(|seq| probabilities(bench, layer, seq)).collect();
    // All passes in turn, some of them a step.
    let (mut passes, mut tops) = (PASSES.to_vec(), vec![TopHeads::Group, TopHeads::Each]);
    if !full() {
        passes = (0..2).map(|i| PASSES[(2 * bench.steps + i) % PASSES.len()]).collect();
        tops = vec![tops[(bench.steps + bench.steps / 2) % 2]];
    }
    let lse = &layer.attended.lse;
    for pass in passes {
        let scores = bench.subject.score(&layer.step, lse, pass);
        for (seq, p) in p.iter().enumerate() {
            check_scores(bench, &format!("{what} {pass:?}"), pass, seq, p, &scores);
            for head in 0..bench.group.kv_heads {
                bits[seq].push(scores.of(seq, head).iter().map(|x| x.to_bits()).collect());
            }
        }
    }
    for of in tops {
        let tops = bench.subject.score_top(&layer.step, lse, of);
        let width = columns(bench, of);
        for (seq, (p, share)) in p.iter().zip(layer.step.seqs).enumerate() {
            let tops = &tops[share.first_row * width..][..share.q_len * width];
            check_tops(bench, &format!("{what} {of:?}"), of, p, tops);
            bits[seq].push(tops.iter().flat_map(|t| [t.value.to_bits(), t.index]).collect());
        }
    }
}

fn probabilities(bench: &Bench, layer: &Layer<'_>, seq: usize) -> Probabilities {
    let of_head = |i: usize, head: usize| {
        let (stream, query) = bench.query(layer, seq, i, head);
        stream.probabilities(&query)
    };
    let queries = layer.step.seqs[seq].q_len;
    (0..queries).map(|i| (0..bench.heads).map(|head| of_head(i, head)).collect()).collect()
}

/// Results of a query.
fn columns(bench: &Bench, of: TopHeads) -> usize {
    match of {
        TopHeads::Each => bench.heads,
        TopHeads::Group => bench.group.kv_heads,
    }
}

fn check_scores(
    bench: &Bench,
    what: &str,
    pass: Score,
    seq: usize,
    p: &Probabilities,
    scores: &Scores,
) {
    let group = bench.heads / bench.group.kv_heads;
    let rms = bench.subject.tolerance().0;
    let counted = &p[p.len().saturating_sub(pass.last().unwrap())..];
    let (mut error, mut size) = (0f64, 0f64);
    for kv_head in 0..bench.group.kv_heads {
        let heads = kv_head * group..(kv_head + 1) * group;
        let got = scores.of(seq, kv_head);
        assert_eq!(got.len(), counted[0][heads.start].len(), "{what}");
        let column = |head: usize, j: usize| counted.iter().map(move |i| i[head][j]);
        for (j, got) in got.iter().enumerate() {
            let sums = heads.clone().map(|head| column(head, j).sum::<f64>());
            let want = match pass {
                Score::Sum { heads: Heads::Mean, .. } => sums.sum::<f64>() / group as f64,
                Score::Sum { heads: Heads::Max, .. } => sums.fold(0.0, f64::max),
                Score::Max { .. } => {
                    heads.clone().flat_map(|head| column(head, j)).fold(0.0, f64::max)
                }
            };
            let got = f64::from(*got);
            assert!(got.is_finite(), "{what}: token {j}: {got}");
            assert!(want > 0.0 || got == 0.0, "{what}: token {j} is not seen: {got}");
            error += (got - want).powi(2);
            size += want * want;
        }
        if let Score::Sum { heads: Heads::Mean, .. } = pass {
            // Each query hands out 1 in all, if it sees anything.
            let total: f64 = got.iter().map(|&x| f64::from(x)).sum();
            let seeing = counted.iter().filter(|i| i[heads.start].iter().any(|&p| p > 0.0));
            let queries = seeing.count() as f64;
            assert!((total - queries).abs() <= rms * queries, "{what}: {total} of {queries}");
        }
    }
    assert!(error.sqrt() <= rms * size.sqrt(), "{what}: relative rms {}", (error / size).sqrt());
}

fn check_tops(bench: &Bench, what: &str, of: TopHeads, p: &Probabilities, tops: &[Top]) {
    let group = bench.heads / bench.group.kv_heads;
    let width = columns(bench, of);
    // A probability is off by what both exponents may be off by.
    let relative = (2.0 * bench.subject.tolerance().1).exp2() - 1.0;
    for (i, p) in p.iter().enumerate() {
        for column in 0..width {
            let of_token = |j: usize| match of {
                TopHeads::Each => p[column][j],
                TopHeads::Group => {
                    (0..group).map(|g| p[column * group + g][j]).sum::<f64>() / group as f64
                }
            };
            let head = if of == TopHeads::Each { column } else { column * group };
            let best = (0..p[head].len()).map(of_token).fold(0.0, f64::max);
            let got = tops[i * width + column];
            if best == 0.0 {
                assert_eq!(got, Top::NONE, "{what}: query {i}");
                continue;
            }
            let value = f64::from(got.value);
            assert!((value - best).abs() <= relative * best, "{what}: {value}, want {best}");
            let there = of_token(got.index as usize);
            assert!(there >= best * (1.0 - relative), "{what}: {there} at {}", got.index);
            if bench.indifferent {
                let first = (0..p[head].len()).find(|&j| of_token(j) > 0.0).unwrap();
                assert_eq!(got.index as usize, first, "{what}: query {i}");
            }
        }
    }
}

/// Chunks across page and seal boundaries, then single tokens, two sequences of unequal
/// length in one batch.
#[test]
fn every_format_agrees_with_float64() {
    for kind in kinds(3) {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let mut group = group(format, 64, 2);
            group.layers = 1 + i % 2;
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, &[i as u64, 100]);
            for new in [[70, 130], [1, 1], [200, 7], [1, 1], [40, 0]] {
                step(&mut bench, &new);
            }
        }
    }
}

#[test]
fn shapes_agree_with_float64() {
    // head_dim, query heads, KV heads.
    let shapes = [(32, 2, 1), (64, 16, 1), (96, 10, 2), (128, 8, 2), (128, 5, 1), (256, 4, 4)];
    for kind in kinds(3) {
        for (d, heads, kv_heads) in shapes {
            for format in ["kivi2", "f16", "kivi4", "fp8", "kf2", "kf3"] {
                let group = group(format, d, kv_heads);
                if !kind.takes(&group) {
                    continue;
                }
                let mut bench = Bench::new(kind, group, heads, &[d as u64]);
                for new in [[150], [1], [70]] {
                    step(&mut bench, &new);
                }
            }
        }
    }
}

/// Windows, no causal mask, relocation, other sinks and hot windows, three sequences.
#[test]
fn random_plans_agree_with_float64() {
    let mut random = Random::new(4243);
    for kind in kinds(3) {
        for _ in 0..if full() { 24 } else { 5 } {
            let Some(mut bench) = Bench::draw(kind, &mut random) else { continue };
            for _ in 0..6 {
                step(&mut bench, &Bench::draw_chunks(&mut random));
            }
        }
    }
}

#[test]
fn evicted_tokens_have_no_score() {
    for kind in kinds(3) {
        let mut bench = Bench::new(kind, group("kivi2", 64, 1), 4, &[31, 32]);
        step(&mut bench, &[350, 100]);
        // Single tokens of sinks, sealed and hot pages, and one whole sealed page.
        let mut gone: Vec<u32> = vec![2, 9, 70, 71, 230, 340];
        gone.extend(4 + 64..4 + 128);
        gone.sort_unstable();
        gone.dedup();
        bench.evict(0, &gone);
        for new in [[1, 1], [90, 3], [1, 1]] {
            step(&mut bench, &new);
        }
    }
}

#[test]
fn ragged_streams_have_scores_of_their_own_length() {
    for kind in kinds(3) {
        let mut bench = Bench::new(kind, group("kivi2", 64, 2), 6, &[63, 64]);
        step(&mut bench, &[180, 60]);
        let mut random = Random::new(8);
        // Streams of different lengths.
        let keep = [7, 3].map(|tenths| (0..180).filter(|_| random.below(10) < tenths).collect());
        let keep: [Vec<u32>; 2] = keep;
        assert_ne!(keep[0].len(), keep[1].len());
        bench.compact(0, &keep);
        for new in [[1, 1], [100, 2], [1, 1], [130, 70], [1, 1]] {
            step(&mut bench, &new);
        }
    }
}

/// Queries that prefer nothing: the first token that they see is the best.
#[test]
fn equals_give_the_lowest_index() {
    for kind in kinds(3) {
        for format in ["f16", "kivi2"] {
            let mut bench = Bench::new(kind, group(format, 64, 2), 4, &[5]);
            bench.indifferent = true;
            bench.window = Some(90);
            step(&mut bench, &[300]);
            step(&mut bench, &[1]);
        }
    }
}

/// Scores of a sequence alone have the bits that they have in a batch, wherever its
/// blocks lie.
#[test]
fn the_batch_changes_no_bit() {
    for kind in Kind::all(3..4) {
        for format in ["f16", "kivi4/kivi2", "kf3.2"] {
            let mut alone = Bench::new(kind, group(format, 64, 2), 6, &[7]);
            let mut among = Bench::new(kind, group(format, 64, 2), 6, &[1, 7, 2]);
            for (one, all) in
                [([70], [90, 70, 10]), ([230], [100, 230, 40]), ([1], [1, 1, 1]), ([1], [7, 1, 30])]
            {
                assert!(
                    step(&mut alone, &one)[0] == step(&mut among, &all)[1],
                    "{kind:?} {format}"
                );
            }
        }
    }
}

#[test]
fn what_cannot_be_scored_is_named() {
    let none = Score::Max { last: 0 };
    let mut backend = CpuBackend::with_level(Level::best());
    let mut arena = backend.arena(&[group("f16", 64, 1)], &[], 0).unwrap();
    let at = LayerIndex { group: 0, layer: 0 };
    let call = Attend { at, heads: 2, scale: 1.0, causal: true, window: None };
    let mut q = backend.buffer(0, 0).unwrap();
    backend.write(&[0.0; 128], 128, &mut q).unwrap();
    let mut out = Scores::default();
    let mut refused = |call: &Attend, pass, lse: &_| {
        let scored = backend.score(&mut arena, call, pass, &q, lse, &mut out);
        scored.unwrap_err().to_string()
    };
    let error = refused(&call, none, &q);
    assert!(error.contains("last"), "{error}");
    // The queries are no log-sum-exps.
    let error = refused(&call, PASSES[0], &q);
    assert!(error.contains("lse") && error.contains("128"), "{error}");
    let error = refused(&Attend { heads: 3, ..call }, PASSES[0], &q);
    assert!(error.contains('3'), "{error}");

    let device = Device::emulated(Default::default());
    let stream = device.stream().unwrap();
    let shape = AttentionShape {
        head_dim: 64,
        heads: 4,
        kv_heads: 2,
        format: "kivi2".parse().unwrap(),
        sinks: 4,
        hot_window: 128,
        causal: true,
        window: None,
        scale: 0.125,
    };
    let scorer = Scorer::new(&device, shape).unwrap();
    let attention = AttentionCall { q_stride: 256, lse: 256, n_seqs: 1, ..Default::default() };
    let sizes = Sizes { rows: 2, seqs: 1, max_prompt: 2, tokens: 2, ..Sizes::default() };
    let good = ScoreCall { attention, sizes };
    let refused = |attention, pass| {
        let call = ScoreCall { attention, ..good };
        // SAFETY: a refused call reads nothing.
        unsafe { scorer.score(&call, pass, 0, 0, &stream).unwrap_err().to_string() }
    };
    let error = refused(attention, none);
    assert!(error.contains("last"), "{error}");
    let error = refused(AttentionCall { lse: 0, ..attention }, PASSES[0]);
    assert!(error.contains("lse"), "{error}");
    let error = refused(AttentionCall { q_stride: 255, ..attention }, PASSES[0]);
    assert!(error.contains("q_stride"), "{error}");
    let mut workspace = scorer.top_scratch(1, TopHeads::Each, 1).unwrap();
    // SAFETY: as above.
    let top = unsafe { scorer.top(&good, TopHeads::Each, 0, &mut workspace, &stream) };
    let error = top.unwrap_err().to_string();
    assert!(error.contains("scratch"), "{error}");
    // No rows, no parts, nothing to do.
    let mut workspace = scorer.top_scratch(0, TopHeads::Each, 1).unwrap();
    let nothing = ScoreCall { sizes: Sizes { seqs: 1, tokens: 2, ..Sizes::default() }, ..good };
    // SAFETY: there are no rows.
    unsafe { scorer.top(&nothing, TopHeads::Each, 0, &mut workspace, &stream).unwrap() };
    let bad = AttentionShape { head_dim: 96, ..scorer.shape().clone() };
    let error = Scorer::new(&device, bad).err().unwrap().to_string();
    assert!(error.contains("96"), "{error}");
}
