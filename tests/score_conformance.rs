//! Score passes of every backend against float64: sums and maxima of probabilities a
//! kept token, and the best token a query, over mixed formats, windows, relocated runs,
//! live masks and ragged streams. `tests/attention_conformance.rs` says which variables
//! ask for more.

mod common;

use common::oracle::{Mask, Stream};
use common::plan::{cache_of, relocate, rope, round, shares};
use common::subject::{Attended, Kind, LayerStep, Subject, full};
use kvfold::backend::cpu::{CpuBackend, Level};
use kvfold::backend::cuda::attend::{AttentionCall, AttentionShape};
use kvfold::backend::cuda::score::{ScoreCall, Scorer};
use kvfold::backend::cuda::tables::Sizes;
use kvfold::backend::driver::Device;
use kvfold::backend::score::{Heads, Score, Scores, Top, TopHeads};
use kvfold::backend::{Attend, AttendSeq, Backend, KvGroup, LayerIndex, Rope};
use kvfold::cache::{BlockRef, KvCache, SeqId};

const ALL: usize = usize::MAX;
const PASSES: [Score; 6] = [
    Score::Sum { last: 32, heads: Heads::Mean },
    Score::Sum { last: ALL, heads: Heads::Mean },
    Score::Sum { last: 1, heads: Heads::Mean },
    Score::Sum { last: ALL, heads: Heads::Max },
    Score::Max { last: ALL },
    Score::Max { last: 5 },
];

/// One subject, one cache, and the oracle's copy of everything.
struct Bench {
    kind: Kind,
    subject: Box<dyn Subject>,
    cache: KvCache,
    group: KvGroup,
    heads: usize,
    causal: bool,
    window: Option<usize>,
    shift: i32,
    rope: Rope,
    /// Queries are 0: all tokens that a query sees are alike.
    indifferent: bool,
    steps: usize,
    sequences: Vec<Sequence>,
}

struct Sequence {
    id: SeqId,
    /// What its rows are drawn from: the same in every batch.
    seed: u64,
    /// At layer · kv_heads + head.
    streams: Vec<Stream>,
    tokens: usize,
}

/// Scores of one sequence and layer, for comparison bit by bit.
type Bits = Vec<Vec<u32>>;

impl Bench {
    fn new(kind: Kind, group: KvGroup, heads: usize, seeds: &[u64]) -> Self {
        let mut cache = cache_of(&group);
        let rope = rope(group.head_dim);
        let mut subject = kind.subject();
        subject.configure(&group, cache.classes());
        let streams = vec![Stream::default(); group.layers * group.kv_heads];
        let sequences = (seeds.iter())
            .map(|&seed| Sequence { id: cache.create(), seed, streams: streams.clone(), tokens: 0 })
            .collect();
        Self {
            kind,
            subject,
            cache,
            group,
            heads,
            causal: true,
            window: None,
            shift: 0,
            rope,
            indifferent: false,
            steps: 0,
            sequences,
        }
    }

    /// Appends `new[i]` tokens to sequence i, attends, and checks all passes. The bits
    /// of the scores and tops of each sequence that had tokens.
    fn step(&mut self, new: &[usize]) -> Vec<Bits> {
        let asked: Vec<_> = (self.sequences.iter().zip(new))
            .filter(|(_, n)| **n > 0)
            .map(|(seq, n)| (seq.id, *n))
            .collect();
        let mut step = self.cache.prepare(&asked).unwrap();
        self.subject.copy_blocks(&step.copies);
        for seq in &mut step.seqs {
            relocate(&mut seq.views[0], self.shift);
        }
        let seqs = shares(&step.seqs);
        let cols = (self.heads + 2 * self.group.kv_heads) * self.group.head_dim;
        let mut bits = vec![Bits::new(); asked.len()];
        let rope = self.rope.clone();
        for layer in 0..self.group.layers {
            let flat = self.rows(layer, new, cols);
            let call = Attend {
                at: LayerIndex { group: 0, layer },
                heads: self.heads,
                scale: self.scale(),
                causal: self.causal,
                window: self.window,
                rope: Some(&rope),
                seqs: &seqs,
            };
            let layer_step = LayerStep { call: &call, seqs: &step.seqs, qkv: &flat, cols };
            let attended = self.subject.layer(&layer_step);
            self.remember(layer, new, &flat, cols);
            self.check(&layer_step, &asked, &attended, &mut bits);
        }
        for (seq, new) in self.sequences.iter_mut().zip(new) {
            seq.tokens += new;
        }
        self.steps += 1;
        let accepted: Vec<_> = asked.iter().map(|a| a.1).collect();
        let free = self.cache.commit(step, &accepted).unwrap();
        self.subject.free_blocks(&free);
        bits
    }

    fn scale(&self) -> f32 {
        (self.group.head_dim as f32).powf(-0.5)
    }

    /// Query, key and value heads of the new tokens, as the subject rounds them.
    fn rows(&self, layer: usize, new: &[usize], cols: usize) -> Vec<f32> {
        let mut rows = Vec::new();
        for (seq, new) in self.sequences.iter().zip(new) {
            for token in seq.tokens..seq.tokens + new {
                let place = (layer as u64) << 50 ^ (token as u64) << 20 ^ seq.seed;
                let mut random = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                rows.extend((0..cols).map(|c| {
                    let x: f32 = (0..4).map(|_| uniform(&mut random)).sum::<f32>() * 1.7;
                    let query = c < self.heads * self.group.head_dim;
                    if query && self.indifferent { 0.0 } else { x }
                }));
            }
        }
        if let Some(codec) = self.subject.query_type() {
            rows.iter_mut().for_each(|x| *x = round(codec, *x));
        }
        rows
    }

    fn remember(&mut self, layer: usize, new: &[usize], flat: &[f32], cols: usize) {
        let (d, n) = (self.group.head_dim, self.group.kv_heads);
        let hot = self.group.format.hot();
        let mut rows = flat.chunks_exact(cols);
        for (seq, new) in self.sequences.iter_mut().zip(new) {
            for row in rows.by_ref().take(*new) {
                for head in 0..n {
                    let stream = &mut seq.streams[layer * n + head];
                    let part = |at: usize| row[at * d..][..d].iter().map(|x| round(hot, *x));
                    stream.keys.push(part(self.heads + head).collect());
                    stream.values.push(part(self.heads + n + head).collect());
                }
            }
        }
    }

    fn check(
        &mut self,
        step: &LayerStep<'_>,
        asked: &[(SeqId, usize)],
        attended: &Attended,
        bits: &mut [Bits],
    ) {
        let what = format!("{:?} {} step {}", self.kind, self.group.format, self.steps);
        let p: Vec<_> = (asked.iter().zip(step.call.seqs))
            .map(|(asked, share)| self.probabilities(step, asked.0, share))
            .collect();
        // All passes in turn, some of them a step.
        let (mut passes, mut tops) = (PASSES.to_vec(), vec![TopHeads::Group, TopHeads::Each]);
        if !full() {
            passes = (0..2).map(|i| PASSES[(2 * self.steps + i) % PASSES.len()]).collect();
            tops = vec![tops[(self.steps + self.steps / 2) % 2]];
        }
        for pass in passes {
            let scores = self.subject.score(step, &attended.lse, pass);
            for (seq, p) in p.iter().enumerate() {
                self.check_scores(&format!("{what} {pass:?}"), pass, seq, p, &scores);
                for head in 0..self.group.kv_heads {
                    bits[seq].push(scores.of(seq, head).iter().map(|x| x.to_bits()).collect());
                }
            }
        }
        for of in tops {
            let tops = self.subject.score_top(step, &attended.lse, of);
            let width = if of == TopHeads::Each { self.heads } else { self.group.kv_heads };
            for (seq, (p, share)) in p.iter().zip(step.call.seqs).enumerate() {
                let tops = &tops[share.first_row * width..][..share.q_len * width];
                self.check_tops(&format!("{what} {of:?}"), of, p, tops);
                bits[seq].push(tops.iter().flat_map(|t| [t.value.to_bits(), t.index]).collect());
            }
        }
    }

    /// `[query][head][kept]`.
    fn probabilities(
        &self,
        step: &LayerStep<'_>,
        seq: SeqId,
        share: &AttendSeq<'_>,
    ) -> Vec<Vec<Vec<f64>>> {
        let (d, kv_heads) = (self.group.head_dim, self.group.kv_heads);
        let seq = self.sequences.iter().find(|s| s.id == seq).unwrap();
        let of_head = |i: usize, head: usize| {
            let kv_head = head / (self.heads / kv_heads);
            let stream = &seq.streams[step.call.at.layer * kv_heads + kv_head];
            let query = stream.keys.len() - share.q_len + i;
            let q = &step.qkv[(share.first_row + i) * step.cols + head * d..][..d];
            let (scale, shift) = (self.scale(), self.shift);
            let mask = Mask { causal: self.causal, window: self.window };
            stream.probabilities(&self.group, q, query, scale, mask, shift, &self.rope)
        };
        (0..share.q_len).map(|i| (0..self.heads).map(|head| of_head(i, head)).collect()).collect()
    }

    fn check_scores(
        &self,
        what: &str,
        pass: Score,
        seq: usize,
        p: &[Vec<Vec<f64>>],
        scores: &Scores,
    ) {
        let group = self.heads / self.group.kv_heads;
        let rms = self.subject.tolerance().0;
        let counted = &p[p.len().saturating_sub(pass.last().unwrap())..];
        let (mut error, mut size) = (0f64, 0f64);
        for kv_head in 0..self.group.kv_heads {
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
        assert!(
            error.sqrt() <= rms * size.sqrt(),
            "{what}: relative rms {}",
            (error / size).sqrt()
        );
    }

    fn check_tops(&self, what: &str, of: TopHeads, p: &[Vec<Vec<f64>>], tops: &[Top]) {
        let group = self.heads / self.group.kv_heads;
        let width = if of == TopHeads::Each { self.heads } else { self.group.kv_heads };
        // A probability is off by what both exponents may be off by.
        let relative = (2.0 * self.subject.tolerance().1).exp2() - 1.0;
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
                if self.indifferent {
                    let first = (0..p[head].len()).find(|&j| of_token(j) > 0.0).unwrap();
                    assert_eq!(got.index as usize, first, "{what}: query {i}");
                }
            }
        }
    }

    fn free(&mut self, blocks: &[BlockRef]) {
        self.subject.free_blocks(blocks);
    }
}

/// Uniform in [−½, ½).
fn uniform(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 40) as f32 / (1 << 24) as f32 - 0.5
}

fn group(format: &str, head_dim: usize, kv_heads: usize) -> KvGroup {
    let format = format.parse().unwrap();
    KvGroup { layers: 1, kv_heads, head_dim, format, sinks: 4, hot_window: 128 }
}

fn kinds() -> Vec<Kind> {
    Kind::all(0..if full() { 8 } else { 3 })
}

const FORMATS: [&str; 12] = [
    "f16",
    "bf16",
    "fp8",
    "kivi4",
    "kivi2",
    "kivi4/kivi2",
    "bf16+fp8",
    "bf16+kivi4",
    "bf16+kivi2",
    // On the CPU only.
    "f16/kivi2",
    "kivi2/f16",
    "bf16+f16",
];

/// Chunks across page and seal boundaries, then single tokens, two sequences of unequal
/// length in one batch.
#[test]
fn every_format_agrees_with_float64() {
    for kind in kinds() {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let mut group = group(format, 64, 2);
            group.layers = 1 + i % 2;
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, &[i as u64, 100]);
            for new in [[70, 130], [1, 1], [200, 7], [1, 1], [40, 0]] {
                bench.step(&new);
            }
        }
    }
}

#[test]
fn shapes_agree_with_float64() {
    // head_dim, query heads, KV heads.
    let shapes = [(32, 2, 1), (64, 16, 1), (96, 10, 2), (128, 8, 2), (128, 5, 1), (256, 4, 4)];
    for kind in kinds() {
        for (d, heads, kv_heads) in shapes {
            for format in ["kivi2", "f16", "kivi4", "fp8"] {
                let group = group(format, d, kv_heads);
                if !kind.takes(&group) {
                    continue;
                }
                let mut bench = Bench::new(kind, group, heads, &[d as u64]);
                for new in [[150], [1], [70]] {
                    bench.step(&new);
                }
            }
        }
    }
}

/// Windows, no causal mask, relocation, other sinks and hot windows, three sequences.
#[test]
fn random_plans_agree_with_float64() {
    let mut state = 4243;
    let mut below = |n: usize| ((uniform(&mut state) + 0.5) * n as f32) as usize % n;
    for kind in kinds() {
        for seed in 0..if full() { 24 } else { 5 } {
            let mut group = group(FORMATS[below(FORMATS.len())], 64, [1, 3][below(2)]);
            group.sinks = [0, 1, 4, 64][below(4)];
            group.hot_window = [0, 64, 128, 192][below(4)];
            if !kind.takes(&group) {
                continue;
            }
            let heads = group.kv_heads * [1, 2, 3, 5][below(4)];
            let mut bench = Bench::new(kind, group, heads, &[seed, seed + 40, seed + 80]);
            bench.window = [None, Some(1), Some(40), Some(150)][below(4)];
            bench.causal = bench.window.is_some() || below(3) > 0;
            bench.shift = [0, 37, -500][below(3)];
            for _ in 0..6 {
                let new: [usize; 3] = std::array::from_fn(|_| match below(3) {
                    0 => 1,
                    1 => below(20),
                    _ => below(150),
                });
                if new.iter().any(|&n| n > 0) {
                    bench.step(&new);
                }
            }
        }
    }
}

#[test]
fn evicted_tokens_have_no_score() {
    for kind in kinds() {
        let mut bench = Bench::new(kind, group("kivi2", 64, 1), 4, &[31, 32]);
        bench.step(&[350, 100]);
        // Single tokens of sinks, sealed and hot pages, and one whole sealed page.
        let mut gone: Vec<u32> = vec![2, 9, 70, 71, 230, 340];
        gone.extend(4 + 64..4 + 128);
        gone.sort_unstable();
        gone.dedup();
        let free = bench.cache.clear(bench.sequences[0].id, 0, None, &gone).unwrap();
        bench.free(&free);
        for stream in &mut bench.sequences[0].streams {
            stream.dead = gone.iter().map(|&t| t as usize).collect();
        }
        for new in [[1, 1], [90, 3], [1, 1]] {
            bench.step(&new);
        }
    }
}

#[test]
fn ragged_streams_have_scores_of_their_own_length() {
    for kind in kinds() {
        let mut bench = Bench::new(kind, group("kivi2", 64, 2), 6, &[63, 64]);
        bench.step(&[180, 60]);
        let seq = &mut bench.sequences[0];
        let mut state = 8;
        // Streams of different lengths.
        let keep: Vec<Vec<u32>> = (0..seq.streams.len())
            .map(|i| {
                let limit = [0.2, -0.2][i % 2];
                (0..180).filter(|_| uniform(&mut state) < limit).collect()
            })
            .collect();
        assert_ne!(keep[0].len(), keep[1].len());
        for (stream, keep) in seq.streams.iter_mut().zip(&keep) {
            let pick =
                |rows: &Vec<Vec<f32>>| keep.iter().map(|&t| rows[t as usize].clone()).collect();
            (stream.keys, stream.values) = (pick(&stream.keys), pick(&stream.values));
        }
        let done = bench.cache.compact(seq.id, 0, &keep).unwrap();
        bench.subject.gather(&done.gathers);
        bench.free(&done.free);
        for new in [[1, 1], [100, 2], [1, 1], [130, 70], [1, 1]] {
            bench.step(&new);
        }
    }
}

/// Queries that prefer nothing: the first token that they see is the best.
#[test]
fn equals_give_the_lowest_index() {
    for kind in kinds() {
        for format in ["f16", "kivi2"] {
            let mut bench = Bench::new(kind, group(format, 64, 2), 4, &[5]);
            bench.indifferent = true;
            bench.window = Some(90);
            bench.step(&[300]);
            bench.step(&[1]);
        }
    }
}

/// Scores of a sequence alone have the bits that they have in a batch, wherever its
/// blocks lie.
#[test]
fn the_batch_changes_no_bit() {
    for kind in Kind::all(3..4) {
        for format in ["f16", "kivi4/kivi2"] {
            let mut alone = Bench::new(kind, group(format, 64, 2), 6, &[7]);
            let mut among = Bench::new(kind, group(format, 64, 2), 6, &[1, 7, 2]);
            for (one, all) in
                [([70], [90, 70, 10]), ([230], [100, 230, 40]), ([1], [1, 1, 1]), ([1], [7, 1, 30])]
            {
                assert!(alone.step(&one)[0] == among.step(&all)[1], "{kind:?} {format}");
            }
        }
    }
}

#[test]
fn what_cannot_be_scored_is_named() {
    let none = Score::Max { last: 0 };
    let mut backend = CpuBackend::with_level(Level::best());
    backend.configure_kv(&[group("f16", 64, 1)], &[]).unwrap();
    let at = LayerIndex { group: 0, layer: 0 };
    let call =
        Attend { at, heads: 2, scale: 1.0, causal: true, window: None, rope: None, seqs: &[] };
    let mut q = backend.buffer(0, 0).unwrap();
    backend.write(&[0.0; 128], 128, &mut q).unwrap();
    let mut out = Scores::default();
    let mut refused = |call: &Attend<'_>, pass, lse: &_| {
        backend.score(call, pass, &q, lse, &mut out).unwrap_err().to_string()
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
    let sizes = Sizes { rows: 2, max_q_len: 2, tokens: 2 };
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
    let mut workspace = scorer.top_workspace(1, TopHeads::Each, 1).unwrap();
    // SAFETY: as above.
    let top = unsafe { scorer.top(&good, TopHeads::Each, 0, &mut workspace, &stream) };
    let error = top.unwrap_err().to_string();
    assert!(error.contains("workspace"), "{error}");
    let bad = AttentionShape { head_dim: 96, ..scorer.shape().clone() };
    let error = Scorer::new(&device, bad).err().unwrap().to_string();
    assert!(error.contains("96"), "{error}");
}
