//! Decode attention of the CPU backend: one query token over a cache of a given
//! length, by KV format and instruction set.
//!
//! The geometry is the default model's: 30 layers, 9 query and 3 KV heads of 64
//! channels. One iteration attends in every layer, so it is the attention of
//! one generated token, and each layer's pages have left L2 when they come
//! round again (the smallest cell, KIVI-2 at 1,024 tokens, holds 5 MB).
//! Throughput is given in bytes that the cache holds, all of which are read, and
//! in elements of K and V.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvfold::backend::cpu::{Buffer, CpuBackend, Level};
use kvfold::backend::{Attend, AttendSeq, Backend, KvGroup, LayerIndex};
use kvfold::cache::{KvCache, SeqId, SeqStep, Step};
use kvfold::codec::KvFormat;
use kvfold::model::cache_config;
use std::hint::black_box;
use std::time::Duration;

const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const CONTEXTS: [usize; 3] = [1024, 4096, 8192];
const FORMATS: [&str; 4] = ["f16", "fp8", "kivi4", "kivi2"];
const CHUNK: usize = 512;

/// A sequence that grows from one context to the next.
struct Cached {
    backend: CpuBackend,
    cache: KvCache,
    seq: SeqId,
    /// `CHUNK` rows of random queries, keys and values, the same in every layer.
    qkv: Buffer,
    out: Buffer,
}

impl Cached {
    fn new(level: Level, format: KvFormat) -> Self {
        let group = KvGroup {
            layers: LAYERS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            format,
            streams: None,
            sinks: 4,
            hot_window: 128,
        };
        let groups = [group];
        let mut cache = KvCache::new(cache_config(&groups, u64::MAX)).unwrap();
        let mut backend = CpuBackend::with_level(level);
        backend.configure_kv(&groups, cache.classes(), cache.budget()).unwrap();
        let seq = cache.create();
        let (qkv, out) = (backend.buffer(0, 0).unwrap(), backend.buffer(0, 0).unwrap());
        Self { backend, cache, seq, qkv, out }
    }

    /// Random rows for the next `rows` tokens.
    fn draw(&mut self, rows: usize) {
        let cols = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
        let mut state = 0x9e37_79b9u32 ^ rows as u32;
        let floats: Vec<f32> = (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.backend.write(&floats, cols, &mut self.qkv).unwrap();
    }

    /// Appends `rows` tokens to every layer; the step is to be committed.
    fn append(&mut self, rows: usize) -> Step {
        self.draw(rows);
        let step = self.cache.prepare(&[(self.seq, rows)]).unwrap();
        self.backend.copy_blocks(&step.copies).unwrap();
        for layer in 0..LAYERS {
            let at = LayerIndex { group: 0, layer };
            self.backend.append(at, HEADS, None, &mut self.qkv, &step.seqs).unwrap();
            self.backend.seal(at.group, at.layer..at.layer + 1, &step.seqs).unwrap();
        }
        step
    }

    fn commit(&mut self, step: Step, rows: usize) {
        let free = self.cache.commit(step, &[rows]).unwrap();
        self.backend.free_blocks(&free);
    }

    /// Fills the cache up to one token before `context` and appends that token.
    fn grow_to(&mut self, context: usize) -> Step {
        let mut held = self.cache.len(self.seq).unwrap();
        while held + 1 < context {
            let rows = CHUNK.min(context - 1 - held);
            let step = self.append(rows);
            self.commit(step, rows);
            held += rows;
        }
        self.append(1)
    }

    /// Attention of the last token in every layer.
    fn attend(&mut self, seq: &SeqStep) {
        let seqs = [AttendSeq { first_row: 0, q_len: 1, view: &seq.views[0] }];
        for layer in 0..LAYERS {
            let call = Attend {
                at: LayerIndex { group: 0, layer },
                heads: HEADS,
                scale: (HEAD_DIM as f32).powf(-0.5),
                causal: true,
                window: None,
                rope: None,
                seqs: &seqs,
            };
            self.backend.attend(&call, &self.qkv, &mut self.out, None).unwrap();
            black_box(self.out.row(0));
        }
    }
}

fn attention(c: &mut Criterion) {
    for level in Level::ALL.into_iter().filter(|l| l.available()) {
        let mut group = c.benchmark_group(format!("attention/{}", level.name()));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        for format in FORMATS {
            let mut cached = Cached::new(level, format.parse().unwrap());
            for context in CONTEXTS {
                let step = cached.grow_to(context);
                group.throughput(Throughput::ElementsAndBytes {
                    elements: (context * LAYERS * KV_HEADS * HEAD_DIM * 2) as u64,
                    bytes: cached.cache.held_bytes(),
                });
                group.bench_function(BenchmarkId::new(format, context), |b| {
                    b.iter(|| cached.attend(&step.seqs[0]))
                });
                cached.commit(step, 1);
            }
        }
        group.finish();
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
