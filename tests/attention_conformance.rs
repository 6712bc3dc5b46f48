//! Append, seal, compaction and attention of every backend against float64:
//! head dims, groups, unequal lengths, page boundaries, chunk plans, mixed
//! formats, causal or not, windows, relocated runs, live masks, ragged streams.
//!
//! `KVFOLD_CONFORMANCE=full` draws more cases, `KVFOLD_CONFORMANCE_KINDS=cuda` tests
//! the first CUDA device alone (`Kind::all`).

mod common;

use common::oracle::{Mask, Stream};
use common::plan::{cache_of, relocate, rope, round, shares};
use common::random::Random;
use common::subject::{Attended, Kind, LayerStep, Subject, full};
use kvfold::backend::cpu::{CpuBackend, Level};
use kvfold::backend::{Attend, AttendSeq, Backend, KvGroup, LayerIndex, Rope};
use kvfold::cache::{BlockRef, KvCache, SeqId};

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
    random: Random,
    /// Per sequence, per layer · kv_heads + head.
    streams: Vec<(SeqId, Vec<Stream>)>,
}

impl Bench {
    fn new(kind: Kind, group: KvGroup, heads: usize, sequences: usize, seed: u64) -> Self {
        let mut cache = cache_of(&group);
        let rope = rope(group.head_dim);
        let mut subject = kind.subject();
        subject.configure(&group, cache.classes());
        let empty = vec![Stream::default(); group.layers * group.kv_heads];
        let streams = (0..sequences).map(|_| (cache.create(), empty.clone())).collect();
        let random = Random::new(seed);
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
            random,
            streams,
        }
    }

    /// Appends `new[i]` tokens to sequence i and checks every query of theirs.
    fn step(&mut self, new: &[usize]) {
        let asked: Vec<_> = (self.streams.iter().zip(new).filter(|(_, n)| **n > 0))
            .map(|((seq, _), n)| (*seq, *n))
            .collect();
        let mut step = self.cache.prepare(&asked).unwrap();
        self.subject.copy_blocks(&step.copies);
        for seq in &mut step.seqs {
            relocate(&mut seq.views[0], self.shift);
        }
        let (d, n) = (self.group.head_dim, self.group.kv_heads);
        let rows: usize = asked.iter().map(|a| a.1).sum();
        let cols = (self.heads + 2 * n) * d;
        let seqs = shares(&step.seqs);
        for layer in 0..self.group.layers {
            let at = LayerIndex { group: 0, layer };
            let mut flat: Vec<f32> = (0..rows * cols).map(|_| self.random.float()).collect();
            if let Some(codec) = self.subject.query_type() {
                flat.iter_mut().for_each(|x| *x = round(codec, *x));
            }
            let scale = (d as f32).powf(-0.5);
            let call = Attend {
                at,
                heads: self.heads,
                scale,
                causal: self.causal,
                window: self.window,
                rope: Some(&self.rope),
                seqs: &seqs,
            };
            let layer_step = LayerStep { call: &call, seqs: &step.seqs, qkv: &flat, cols };
            let attended = self.subject.layer(&layer_step);
            self.remember(layer, &asked, &flat, cols);
            for (seq, share) in asked.iter().zip(&seqs) {
                self.check(layer, seq.0, share, &flat, cols, &attended);
            }
        }
        let accepted: Vec<_> = asked.iter().map(|a| a.1).collect();
        let free = self.cache.commit(step, &accepted).unwrap();
        self.free(&free);
    }

    fn free(&mut self, blocks: &[BlockRef]) {
        self.subject.free_blocks(blocks);
        assert_eq!(self.subject.held_bytes(), self.cache.held_bytes());
    }

    fn remember(&mut self, layer: usize, asked: &[(SeqId, usize)], flat: &[f32], cols: usize) {
        let (d, n) = (self.group.head_dim, self.group.kv_heads);
        let hot = self.group.format.hot();
        let round = |x: &f32| round(hot, *x);
        let mut rows = flat.chunks_exact(cols);
        for (seq, new) in asked {
            let (_, streams) = self.streams.iter_mut().find(|s| s.0 == *seq).unwrap();
            for row in rows.by_ref().take(*new) {
                for head in 0..n {
                    let stream = &mut streams[layer * n + head];
                    let k = &row[(self.heads + head) * d..][..d];
                    let v = &row[(self.heads + n + head) * d..][..d];
                    stream.keys.push(k.iter().map(round).collect());
                    stream.values.push(v.iter().map(round).collect());
                }
            }
        }
    }

    fn check(
        &mut self,
        layer: usize,
        seq: SeqId,
        share: &AttendSeq<'_>,
        flat: &[f32],
        cols: usize,
        attended: &Attended,
    ) {
        let d = self.group.head_dim;
        let streams = &self.streams.iter().find(|s| s.0 == seq).unwrap().1;
        let (mut error, mut size) = (0f64, 0f64);
        let (rms, lse_error) = self.subject.tolerance();
        let what = format!("{:?} {}", self.kind, self.group.format);
        // Every query near the ends and page boundaries, and a sample between.
        for i in 0..share.q_len {
            if i > 1 && i + 2 < share.q_len && self.random.below(24) != 0 {
                continue;
            }
            for head in 0..self.heads {
                let kv_head = head / (self.heads / self.group.kv_heads);
                let stream = &streams[layer * self.group.kv_heads + kv_head];
                let query = stream.keys.len() - share.q_len + i;
                let row = share.first_row + i;
                let q = &flat[row * cols + head * d..][..d];
                let scale = (d as f32).powf(-0.5);
                let (want, want_lse) = stream.attend(
                    &self.group,
                    q,
                    query,
                    scale,
                    Mask { causal: self.causal, window: self.window },
                    self.shift,
                    &self.rope,
                );
                for (w, got) in want.iter().zip(&attended.out[(row * self.heads + head) * d..][..d])
                {
                    assert!(got.is_finite(), "{what}: row {row} head {head}: {got}");
                    error += (f64::from(*got) - w).powi(2);
                    size += w * w;
                }
                let got = f64::from(attended.lse[row * self.heads + head]);
                assert!((got - want_lse).abs() < lse_error, "{what}: lse {got}, want {want_lse}");
            }
        }
        let relative = (error / size).sqrt();
        assert!(relative <= rms, "{what}: relative rms {relative:e} in layer {layer}");
    }
}

fn group(format: &str, head_dim: usize, kv_heads: usize) -> KvGroup {
    let format = format.parse().unwrap();
    KvGroup { layers: 2, kv_heads, head_dim, format, sinks: 4, hot_window: 128 }
}

fn kinds() -> Vec<Kind> {
    Kind::all(0..if full() { 8 } else { 2 })
}

const FORMATS: [&str; 14] = [
    "f16",
    "bf16",
    "fp8",
    "kivi4",
    "kivi2",
    "kivi4/kivi2",
    "bf16+fp8",
    "bf16+kivi4",
    "bf16+kivi2",
    "bf16+kivi4/kivi2",
    // On the CPU only.
    "f16/kivi2",
    "kivi2/f16",
    "bf16/kivi4",
    "bf16+f16",
];

/// Chunks across page and seal boundaries, then single tokens, two sequences of
/// unequal length in one batch.
#[test]
fn every_format_agrees_with_float64() {
    for kind in kinds() {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let group = group(format, 64, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, 2, i as u64 + 1);
            for new in [[70, 130], [1, 1], [0, 64], [200, 7], [1, 1], [50, 0], [1, 1], [1, 1]] {
                bench.step(&new);
            }
        }
    }
}

/// Every query sees its whole stream, the tokens behind it too; early queries of a
/// chunk read pages in 16 bits that late ones read sealed.
#[test]
fn every_format_agrees_with_float64_without_a_causal_mask() {
    for kind in kinds() {
        for (i, format) in FORMATS.into_iter().enumerate() {
            let group = group(format, 64, 2);
            if !kind.takes(&group) {
                continue;
            }
            let mut bench = Bench::new(kind, group, 6, 2, i as u64 + 50);
            bench.causal = false;
            bench.shift = [0, 37][i % 2];
            for new in [[40, 5], [200, 1], [5, 200], [1, 40], [1, 1], [70, 5]] {
                bench.step(&new);
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
    for kind in kinds() {
        for (i, (d, heads, kv_heads)) in shapes.into_iter().enumerate() {
            for (format, causal) in
                [("kivi2", true), ("f16", true), ("kivi4", true), ("kivi2", false)]
            {
                if !kind.takes(&group(format, d, kv_heads)) {
                    continue;
                }
                let mut bench =
                    Bench::new(kind, group(format, d, kv_heads), heads, 1, 77 + i as u64);
                bench.causal = causal;
                for new in [[197], [64], [1], [3]] {
                    bench.step(&new);
                }
            }
        }
    }
}

#[test]
fn random_plans_agree_with_float64() {
    let mut random = Random::new(4242);
    for kind in kinds() {
        for seed in 0..if full() { 30 } else { 6 } {
            let mut group = group(random.pick(&FORMATS), 64, random.pick(&[1, 3]));
            group.sinks = random.pick(&[0, 1, 4, 64]);
            group.hot_window = random.pick(&[0, 64, 128, 192]);
            group.layers = 1;
            if !kind.takes(&group) {
                continue;
            }
            let heads = group.kv_heads * random.pick(&[1, 2, 3, 5]);
            let mut bench = Bench::new(kind, group, heads, 3, 1000 + seed);
            bench.window = random.pick(&[None, Some(1), Some(40), Some(150)]);
            bench.causal = bench.window.is_some() || random.below(2) == 0;
            bench.shift = random.pick(&[0, 0, 37, -500]);
            for _ in 0..8 {
                let new: [usize; 3] = std::array::from_fn(|_| match random.below(3) {
                    0 => 1,
                    1 => random.below(20),
                    _ => random.below(150),
                });
                if new.iter().any(|&n| n > 0) {
                    bench.step(&new);
                }
            }
        }
    }
}

/// More pages than one decode item holds, so partial results must merge.
#[test]
fn long_streams_merge_their_splits() {
    for kind in kinds() {
        let mut group = group("kivi2", 64, 1);
        group.layers = 1;
        let mut bench = Bench::new(kind, group, 3, 2, 5);
        bench.step(&[1100, 900]);
        bench.step(&[500, 0]);
        for _ in 0..3 {
            bench.step(&[1, 1]);
        }
        bench.causal = false;
        bench.step(&[5, 70]);
        bench.step(&[1, 16]);
    }
}

/// Whatever the chunks, every query sees what the oracle says: the forms depend on
/// positions alone.
#[test]
fn any_chunking_sees_the_same_forms() {
    for plan in [&[300, 1][..], &[100, 150, 50, 1]] {
        let mut bench = Bench::new(Kind::Cpu(Level::best()), group("kivi2", 64, 1), 3, 1, 9);
        for &n in plan {
            bench.step(&[n]);
        }
    }
}

#[test]
fn evicted_tokens_are_not_seen() {
    for (kind, causal) in kinds().into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut bench = Bench::new(kind, group("kivi2", 64, 1), 4, 2, 31);
        bench.causal = causal;
        bench.step(&[350, 100]);
        let seq = bench.streams[0].0;
        // Single tokens of sealed and hot pages, and one whole sealed page.
        let mut gone: Vec<u32> = vec![9, 70, 71, 230, 340];
        gone.extend(4 + 64..4 + 128);
        gone.sort_unstable();
        gone.dedup();
        bench.shift = -500;
        let free = bench.cache.clear(seq, 0, None, &gone).unwrap();
        bench.free(&free);
        for stream in &mut bench.streams[0].1 {
            stream.dead = gone.iter().map(|&t| t as usize).collect();
        }
        bench.step(&[1, 1]);
        bench.step(&[90, 3]);
        bench.step(&[1, 1]);
    }
}

#[test]
fn compacted_streams_keep_their_rows() {
    for (kind, causal) in kinds().into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let mut bench = Bench::new(kind, group("kivi2", 64, 2), 6, 2, 63);
        bench.causal = causal;
        bench.step(&[180, 60]);
        let (seq, streams) = &mut bench.streams[0];
        let mut random = Random::new(8);
        let keep: Vec<Vec<u32>> = (0..streams.len())
            .map(|_| (0..180).filter(|_| random.below(3) > 0).collect())
            .collect();
        for (stream, keep) in streams.iter_mut().zip(&keep) {
            let pick =
                |rows: &Vec<Vec<f32>>| keep.iter().map(|&t| rows[t as usize].clone()).collect();
            (stream.keys, stream.values) = (pick(&stream.keys), pick(&stream.values));
        }
        let done = bench.cache.compact(*seq, 0, &keep).unwrap();
        bench.subject.gather(&done.gathers);
        bench.free(&done.free);
        for new in [[1, 1], [100, 2], [1, 1], [130, 70], [1, 1]] {
            bench.step(&new);
        }
    }
}

#[test]
fn forks_write_to_their_own_copy() {
    let mut bench = Bench::new(Kind::Cpu(Level::best()), group("kivi2", 64, 1), 2, 1, 17);
    bench.step(&[230]);
    let child = bench.cache.fork(bench.streams[0].0).unwrap();
    let copy = bench.streams[0].1.clone();
    bench.streams.push((child, copy));
    for new in [[1, 1], [30, 5], [1, 90]] {
        bench.step(&new);
    }
}

#[test]
fn a_window_without_a_causal_mask_is_refused() {
    let mut backend = CpuBackend::new();
    backend.configure_kv(&[group("f16", 64, 1)], &[]).unwrap();
    let at = LayerIndex { group: 0, layer: 0 };
    let window = Some(64);
    let call = Attend { at, heads: 1, scale: 1.0, causal: false, window, rope: None, seqs: &[] };
    let (q, mut out) = (backend.buffer(1, 64).unwrap(), backend.buffer(0, 0).unwrap());
    let error = backend.attend(&call, &q, &mut out, None).unwrap_err().to_string();
    assert!(error.contains("a window of 64") && error.contains("causal"), "{error}");
    backend.attend(&Attend { causal: true, ..call }, &q, &mut out, None).unwrap();
}

#[test]
fn head_dims_that_the_kernels_lack_are_named() {
    for d in [48, 512] {
        let mut backend = CpuBackend::new();
        let error = backend.configure_kv(&[group("f16", d, 1)], &[]).unwrap_err().to_string();
        assert!(error.contains(&d.to_string()), "{error}");
    }
}
