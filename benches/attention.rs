//! Decode attention of the CPU backend: one query token over a cache of a given
//! length, by KV format and instruction set; and verification, 1 and 8 of them.
//!
//! The geometry is the default model's: 30 layers, 9 query and 3 KV heads of 64
//! channels. One iteration attends in every layer, so it is the attention of
//! one generated token, and each layer's pages have left L2 when they come
//! round again (the smallest cell, KIVI-2 at 1,024 tokens, holds 5 MB).
//! Throughput is given in bytes that the cache holds, all of which are read, and
//! in elements of K and V.

#[path = "common/cached.rs"]
mod cached;

use cached::{CHUNK, Cached, HEAD_DIM, HEADS, KV_HEADS, LAYERS};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvfold::backend::cpu::{CpuBackend, CpuBuffer, Level};
use kvfold::backend::{Attend, Dense, Kv, LayerIndex, MatrixBytes, Memory, WeightPolicy};
use kvfold::cache::Step;
use kvfold::codec::WeightType;
use std::hint::black_box;
use std::time::Duration;

const CONTEXTS: [usize; 3] = [1024, 4096, 8192];
const FORMATS: [&str; 8] = ["f16", "fp8", "kivi4", "kivi2", "kf4", "kf3", "kf3.2", "kf2"];

/// Fills the cache up to `last` tokens before `context` and appends those.
fn grow_to(cached: &mut Cached, context: usize, last: usize) -> Step {
    let mut held = cached.cache.len(cached.seq).unwrap();
    while held + last < context {
        let rows = CHUNK.min(context - last - held);
        let step = cached.append(rows);
        cached.seal();
        cached.commit(step, rows);
        held += rows;
    }
    let step = cached.append(last);
    cached.seal();
    step
}

/// Attention of the last tokens in every layer.
fn attend(cached: &mut Cached, out: &mut CpuBuffer) {
    for layer in 0..LAYERS {
        let call = Attend {
            at: LayerIndex { group: 0, layer },
            heads: HEADS,
            scale: (HEAD_DIM as f32).powf(-0.5),
            causal: true,
            window: None,
        };
        let Cached { backend, arena, qkv, .. } = cached;
        backend.attend(arena, &call, qkv, out, None).unwrap();
        black_box(out.row(0));
    }
}

fn attention(c: &mut Criterion) {
    for level in Level::ALL.into_iter().filter(|l| l.available()) {
        let mut group = c.benchmark_group(format!("attention/{}", level.name()));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        for format in FORMATS {
            let mut cached = Cached::new(level, format.parse().unwrap(), None);
            let mut out = cached.backend.buffer(0, 0).unwrap();
            for context in CONTEXTS {
                let step = grow_to(&mut cached, context, 1);
                group.throughput(Throughput::ElementsAndBytes {
                    elements: (context * LAYERS * KV_HEADS * HEAD_DIM * 2) as u64,
                    bytes: cached.cache.held_bytes(),
                });
                group.bench_function(BenchmarkId::new(format, context), |b| {
                    b.iter(|| attend(&mut cached, &mut out))
                });
                cached.commit(step, 1);
            }
        }
        group.finish();
    }
}

/// A draft's tokens: one item is one call of all layers.
fn verify(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for format in ["kivi2", "kf3.2", "f16"] {
        for context in [128, 4096] {
            for rows in [1, 8] {
                let mut cached = Cached::new(Level::best(), format.parse().unwrap(), None);
                let mut out = cached.backend.buffer(0, 0).unwrap();
                let step = grow_to(&mut cached, context, rows);
                group.bench_function(BenchmarkId::new(format, format!("{context}/{rows}")), |b| {
                    b.iter(|| attend(&mut cached, &mut out))
                });
                cached.commit(step, rows);
            }
        }
    }
    group.finish();
}

/// The products of a draft's rows with all layers' matrices, Q4_1.
fn products(c: &mut Criterion) {
    let backend = CpuBackend::new();
    let qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let (hidden, mlp) = (HEADS * HEAD_DIM, 1536);
    let shapes = [(qkv, hidden), (hidden, hidden), (2 * mlp, hidden), (hidden, mlp)];
    let matrix = |(rows, cols): (usize, usize)| {
        // 20 bytes a block of 32; two of them are a scale, and these a normal one.
        let bytes = vec![0x11; rows * cols / 32 * 20];
        let part = MatrixBytes { dtype: WeightType::Q4_1, rows, cols, bytes: &bytes };
        (cols, backend.matrix(&[part], WeightPolicy::Auto).unwrap())
    };
    let layers: Vec<_> = (0..LAYERS).flat_map(|_| shapes.map(matrix)).collect();
    let mut group = c.benchmark_group("verify/products");
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for rows in [1, 2, 4, 7, 8, 16] {
        let (mut x, mut y) = (backend.buffer(0, 0).unwrap(), backend.buffer(0, 0).unwrap());
        let floats = |cols: usize| (0..rows * cols).map(|i| (i % 31) as f32 - 15.0).collect();
        let inputs: [Vec<f32>; 2] = [hidden, mlp].map(floats);
        group.bench_function(BenchmarkId::from_parameter(rows), |b| {
            b.iter(|| {
                for (cols, matrix) in &layers {
                    let input = &inputs[usize::from(*cols == mlp)];
                    backend.write(input, *cols, &mut x).unwrap();
                    backend.matmul(matrix, &mut x, &mut y).unwrap();
                }
                black_box(y.row(0));
            })
        });
    }
    group.finish();
}

criterion_group!(benches, attention, verify, products);
criterion_main!(benches);
