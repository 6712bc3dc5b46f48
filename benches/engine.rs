//! The default model end to end: prefill by length and decode by context.
//!
//! The model file is the one that `KVFOLD_TEST_MODEL` names, else the one that
//! `kvfold fetch` put into its cache folder; without either nothing is measured
//! and a line says so. Throughput is in tokens. A decode iteration is one forward
//! pass and its logits, without sampling. `kvfold bench` times the same things
//! with fewer repetitions, for comparisons with other programs.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvfold::backend::draw::Choice;
use kvfold::backend::{RowToken, WeightPolicy};
use kvfold::cache::SeqId;
use kvfold::engine::{EngineConfig, LoadedModel, Runner, Share, Want};
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, find};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const PROMPTS: [usize; 3] = [128, 512, 2048];
const CONTEXTS: [usize; 4] = [128, 1024, 4096, 7680];
const FORMATS: [&str; 2] = ["f16", "kivi2"];

fn model_file() -> Option<PathBuf> {
    let named = std::env::var_os("KVFOLD_TEST_MODEL").map(PathBuf::from);
    let fetched = || Some(FetchOptions::from_env().ok()?.model_path(find(DEFAULT_MODEL)?));
    named.or_else(fetched).filter(|path| path.is_file())
}

fn random_ids(n: usize, vocab: usize) -> Vec<u32> {
    let mut state = 0x2545_f491u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocab as u32
        })
        .collect()
}

/// A sequence near some context length.
struct Near {
    runner: Runner,
    ids: Vec<u32>,
    context: usize,
    seq: SeqId,
    /// Tokens beyond the context.
    drift: usize,
}

impl Near {
    fn new(mut runner: Runner, ids: Vec<u32>, context: usize) -> Self {
        let seq = runner.create();
        let mut near = Self { runner, ids, context, seq, drift: 0 };
        near.prefill();
        near
    }

    fn prefill(&mut self) {
        prefill(&mut self.runner, self.seq, &self.ids[..self.context]);
        self.drift = 0;
    }

    /// The time of `tokens` decode steps. Every step makes the sequence longer:
    /// before it is a sixteenth (at least 32 tokens) too long, it is computed
    /// again, outside the measured time.
    fn decode(&mut self, tokens: u64) -> Duration {
        let mut spent = Duration::ZERO;
        for i in 0..tokens {
            if self.drift >= (self.context / 16).max(32) {
                self.runner.free(self.seq).unwrap();
                self.seq = self.runner.create();
                self.prefill();
            }
            let start = Instant::now();
            let id = self.ids[i as usize % self.ids.len()];
            let token = vec![RowToken::Given(id)];
            let want = Want::Token(Choice::greedy(0));
            self.runner.submit(&[Share::generated(self.seq, token, want)]).unwrap();
            self.runner.receive().unwrap();
            spent += start.elapsed();
            self.drift += 1;
        }
        spent
    }
}

fn prefill(runner: &mut Runner, seq: SeqId, ids: &[u32]) {
    runner.prefill(seq, ids, &AtomicBool::new(false)).unwrap();
    runner.logits(0..1, |_, _| Ok(())).unwrap();
}

fn engine(c: &mut Criterion) {
    let Some(path) = model_file() else {
        eprintln!(
            "engine: skipped: the default model is not here; \
             run `kvfold fetch`, or set KVFOLD_TEST_MODEL to its file"
        );
        return;
    };
    for format in FORMATS {
        let model = LoadedModel::open(&path, WeightPolicy::Auto).unwrap();
        let ids = random_ids(CONTEXTS[3], model.tokenizer.vocab_size());
        let config = EngineConfig::default().with_kv(format);
        let mut runner = Runner::new(model, config).unwrap();

        let mut group = c.benchmark_group("engine/prefill");
        group.sample_size(10).warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_secs(1));
        for n in PROMPTS {
            group.throughput(Throughput::Elements(n as u64));
            group.bench_function(BenchmarkId::new(format, n), |b| {
                b.iter(|| {
                    let seq = runner.create();
                    prefill(&mut runner, seq, &ids[..n]);
                    runner.free(seq).unwrap();
                })
            });
        }
        group.finish();

        let mut group = c.benchmark_group("engine/decode");
        group.sample_size(10).warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Elements(1));
        for context in CONTEXTS {
            let mut near = Near::new(runner, ids.clone(), context);
            group.bench_function(BenchmarkId::new(format, context), |b| {
                b.iter_custom(|tokens| near.decode(tokens))
            });
            near.runner.free(near.seq).unwrap();
            runner = near.runner;
        }
        group.finish();
    }
}

criterion_group!(benches, engine);
criterion_main!(benches);
