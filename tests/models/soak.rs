//! An engine under random traffic: clients side by side whose requests come, end, are
//! cancelled and dropped at random, within a budget that is always short. Whatever the
//! others do, each request has the tokens that it has alone, and in the end a request that
//! needs nearly the whole budget finds it free.
//!
//! `KVFOLD_SOAK_SECONDS` says for how long (scripts/long-tests).

use crate::random::Random;
use kvfold::Error;
use kvfold::backend::WeightPolicy;
use kvfold::engine::{Engine, EngineConfig, Event, LoadedModel, Request, Runner, generate};
use kvfold::sample::SamplingParams;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const CLIENTS: u64 = 3;
const LONGEST: usize = 440;

fn load() -> LoadedModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2");
    // Products of Q8_0 do not depend on the batch.
    LoadedModel::open(path, WeightPolicy::Auto).unwrap()
}

/// Prompts and answers of all lengths up to the longest, greedy and not.
fn requests(random: &mut Random) -> Vec<Request> {
    let draw = |_| {
        let tokens = 2 + random.below(LONGEST - 1);
        let answer = 1 + random.below(tokens.min(40) - 1);
        let prompt = (answer..tokens).map(|_| 3 + random.below(250) as u32).collect();
        let sampling = match random.below(2) {
            0 => SamplingParams::default().with_repetition_penalty(1.2),
            _ => SamplingParams::default().with_temperature(1.2).with_seed(random.next()),
        };
        let request = Request::new(prompt, answer).with_sampling(sampling).with_ignore_eos(true);
        // Those of higher priority take the room of others.
        request.with_priority(random.below(3) as i32 - 1)
    };
    (0..16).map(draw).collect()
}

/// Takes part in the traffic until `end`.
fn client(seed: u64, engine: &Engine, requests: &[(Request, Vec<u32>)], end: Instant) -> Counts {
    let (mut random, mut counts) = (Random::new(seed), Counts::default());
    let mut open = Vec::new();
    loop {
        let more = Instant::now() < end;
        if more && open.len() < 4 {
            let (request, alone) = &requests[random.below(requests.len())];
            open.push((engine.submit(request.clone()).unwrap(), Vec::new(), alone));
            continue;
        }
        if open.is_empty() {
            return counts;
        }
        let i = random.below(open.len());
        let (stream, ids, alone) = &mut open[i];
        match random.below(12) {
            0 => stream.cancel(),
            1 => {
                counts.dropped += 1;
                open.swap_remove(i);
                continue;
            }
            _ => {}
        }
        let mut over = false;
        for event in stream.take(1 + random.below(20)) {
            match event {
                Event::Token { id, .. } => ids.push(id),
                Event::Finished { .. } => {
                    assert_eq!(ids, *alone);
                    counts.finished += 1;
                    over = true;
                }
                Event::Failed(Error::Cancelled) => {
                    counts.cancelled += 1;
                    over = true;
                }
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert!(alone.starts_with(ids), "{ids:?}, not {alone:?}");
        if over {
            open.swap_remove(i);
        }
    }
}

#[derive(Default)]
struct Counts {
    finished: usize,
    cancelled: usize,
    dropped: usize,
}

#[test]
fn traffic_changes_no_token_and_leaves_nothing_behind() {
    let seconds = std::env::var("KVFOLD_SOAK_SECONDS").map_or(4, |text| text.parse().unwrap());
    let (start, mut round, mut total) = (Instant::now(), 0, Counts::default());
    while start.elapsed() < Duration::from_secs(seconds) {
        let mut random = Random::new(round);
        let kv = ["f16", "kivi2", "kf3.2", "kivi4/kivi2"][round as usize % 4];
        let chunk = random.pick(&[16, 96, 300]);
        let config = EngineConfig::default()
            .with_kv(kv)
            .with_hot_window(64)
            .with_prefill_chunk(chunk)
            .with_max_batch(random.pick(&[2, 5, 64]));
        let mut runner = Runner::new(load(), config.clone()).unwrap();
        let go = AtomicBool::new(false);
        let requests: Vec<_> = (requests(&mut random).into_iter())
            .map(|r| (r.clone(), generate(&mut runner, r, &go).unwrap().ids))
            .collect();
        let budget = 2 * runner.cache().bytes_within(LONGEST, chunk);
        drop(runner);

        let engine = Engine::start(load(), config.with_kv_budget(Some(budget))).unwrap();
        let end = Instant::now() + Duration::from_secs(seconds.div_ceil(8));
        let traffic = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|i| {
                    let (engine, requests) = (engine.clone(), &requests);
                    scope.spawn(move || client(round * CLIENTS + i, &engine, requests, end))
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        for counts in traffic {
            total.finished += counts.finished;
            total.cancelled += counts.cancelled;
            total.dropped += counts.dropped;
        }
        // These two fill the budget: what leaked would fail one of them.
        let whole = Request::new(vec![7; LONGEST - 1], 1).with_ignore_eos(true);
        let streams = [0, 1].map(|_| engine.submit(whole.clone()).unwrap());
        for stream in streams {
            let last = stream.last().unwrap();
            assert!(matches!(last, Event::Finished { .. }), "{last:?}");
        }
        round += 1;
    }
    let Counts { finished, cancelled, dropped } = total;
    println!("{round} rounds: {finished} finished, {cancelled} cancelled, {dropped} dropped");
    assert!(finished > 0 && cancelled + dropped > 0);
}
