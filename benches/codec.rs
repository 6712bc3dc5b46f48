//! Encoding and decoding tiles: the scalar code that defines each codec's bytes.
//!
//! Throughput is counted in bytes of the 16-bit form, whatever the codec stores.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvfold::codec::{Codec, Side, TILE_TOKENS};
use std::hint::black_box;
use std::time::Duration;

/// The default model's head; the largest in common use is 128.
const HEAD_DIM: usize = 64;
/// 512 KiB in 16 bits: what one layer seals in a few pages, more than L1 holds.
const TILES: usize = 64;

fn tiles() -> Vec<f32> {
    let mut state = 0x2545_f491u32;
    (0..TILES * TILE_TOKENS * HEAD_DIM)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

fn codec(c: &mut Criterion) {
    let tile = TILE_TOKENS * HEAD_DIM;
    let floats = tiles();
    for (op, encodes) in [("encode", true), ("decode", false)] {
        let mut group = c.benchmark_group(format!("codec/{op}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Bytes((2 * floats.len()) as u64));
        for codec in Codec::ALL {
            let code = codec.tile();
            let bytes = code.tile_bytes(HEAD_DIM);
            for (name, side) in [("key", Side::Key), ("value", Side::Value)] {
                let mut stored = vec![0u8; TILES * bytes];
                for (rows, out) in floats.chunks_exact(tile).zip(stored.chunks_exact_mut(bytes)) {
                    code.encode(side, rows, HEAD_DIM, out);
                }
                let mut rows = vec![0f32; tile];
                group.bench_function(BenchmarkId::new(codec.name(), name), |b| {
                    b.iter(|| {
                        for (i, stored) in stored.chunks_exact_mut(bytes).enumerate() {
                            if encodes {
                                let rows = black_box(&floats[i * tile..(i + 1) * tile]);
                                code.encode(side, rows, HEAD_DIM, stored);
                                black_box(&stored);
                            } else {
                                code.decode(side, black_box(stored), HEAD_DIM, &mut rows);
                                black_box(&rows);
                            }
                        }
                    })
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
