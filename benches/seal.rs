//! Sealing of the CPU backend: what 512 more tokens of a prompt seal, eight pages in each
//! head and layer of the default model's geometry. Throughput is given in tokens, so that
//! its share of a prefill is the ratio of the two rates.

#[path = "common/cached.rs"]
mod cached;

use cached::{CHUNK, Cached, HEAD_DIM, KV_HEADS, LAYERS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvfold::backend::StreamFormat;
use kvfold::backend::cpu::Level;
use kvfold::codec::feedback::Feedback;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FORMATS: [&str; 5] = ["kivi4", "kivi2", "kf4", "kf3.2", "kf2"];

fn seal(c: &mut Criterion) {
    let moment = vec![1.0; HEAD_DIM * HEAD_DIM];
    let feedback = Arc::new(Feedback::new(&moment, HEAD_DIM));
    for level in Level::ALL.into_iter().filter(|l| l.available()) {
        let mut group = c.benchmark_group(format!("seal/{}", level.name()));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(CHUNK as u64));
        for (name, fed) in FORMATS.map(|name| (name, false)).into_iter().chain([("kf2", true)]) {
            let format = name.parse().unwrap();
            let stream = StreamFormat { format, feedback: Some(feedback.clone()) };
            let streams = fed.then(|| vec![stream; LAYERS * KV_HEADS].into());
            let mut cached = Cached::new(level, format, streams);
            let name = if fed { format!("{name} with feedback") } else { name.to_owned() };
            group.bench_function(name, |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| chunk(&mut cached)).sum())
            });
        }
        group.finish();
    }
}

/// Time to seal what the second chunk of a sequence seals.
fn chunk(cached: &mut Cached) -> Duration {
    cached.clear();
    let step = cached.append(CHUNK);
    cached.seal();
    cached.commit(step, CHUNK);
    let step = cached.append(CHUNK);
    let start = Instant::now();
    cached.seal();
    let time = start.elapsed();
    cached.commit(step, CHUNK);
    time
}

criterion_group!(benches, seal);
criterion_main!(benches);
