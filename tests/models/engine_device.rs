//! The engine on the CUDA backend, on the emulated device.

use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::{RowToken, WeightPolicy};
use kvfold::codec::feedback::Feedback;
use kvfold::codec::{Codec, KvFormat};
use kvfold::engine::{
    Engine, EngineConfig, Event, Generated, LoadOptions, LoadedModel, Request, Runner, Share, Want,
    generate,
};
use kvfold::error::Error;
use kvfold::model::{Calibration, Checkpoint};
use kvfold::sample::{Sampler, SamplingParams};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder)
}

fn load_on(path: PathBuf, device: &Device, options: &LoadOptions) -> kvfold::Result<LoadedModel> {
    LoadedModel::load(&Checkpoint::open(path)?, Some(device), options)
}

fn options(seed: u64) -> EmulatorOptions {
    EmulatorOptions { seed, host_threads: 2, ..Default::default() }
}

fn on_device(seed: u64) -> LoadedModel {
    let device = Device::emulated(options(seed));
    load_on(golden("smollm2"), &device, &LoadOptions::default()).unwrap()
}

fn on_cpu() -> LoadedModel {
    LoadedModel::open(golden("smollm2"), WeightPolicy::F32).unwrap()
}

fn config(kv: &str) -> EngineConfig {
    EngineConfig::default().with_kv(kv).with_hot_window(64).with_prefill_chunk(96)
}

/// 150 tokens, so that pages of 64 are sealed with a hot window of 64. Behind them, and what
/// the model says to them, no two tokens are so near that the roundings of a device matter.
fn prompt() -> Vec<u32> {
    (0..150).map(|i| 3 + i * 43 % 250).collect()
}

fn tokens(engine: &Engine, sampling: &SamplingParams) -> Vec<u32> {
    let request = Request::new(prompt(), 12).with_sampling(sampling.clone()).with_ignore_eos(true);
    let events = engine.submit(request).unwrap();
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    tokens
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    let greedy = SamplingParams::default();
    let penalised = greedy.clone().with_repetition_penalty(1.3);
    for kv in ["f16", "kivi4", "kivi4/kivi2", "fp8"] {
        let cpu = Engine::start(on_cpu(), config(kv)).unwrap();
        let device = Engine::start(on_device(1), config(kv)).unwrap();
        for sampling in [&greedy, &penalised] {
            let want = tokens(&cpu, sampling);
            assert_eq!(want.len(), 12);
            assert_eq!(tokens(&device, sampling), want, "{kv}");
        }
    }
}

/// Logits after the prompt.
fn logits(model: LoadedModel, kv: &str) -> Vec<f32> {
    let mut runner = Runner::new(model, config(kv)).unwrap();
    let (seq, ids) = (runner.create(), prompt());
    let (last, most) = ids.split_last().unwrap();
    runner.prefill(seq, most, &AtomicBool::new(false)).unwrap();
    runner.submit(&[Share::prompt(seq, &[*last], Want::Rows(0..1))]).unwrap();
    let mut all = Vec::new();
    runner
        .logits(0..1, |_, logits| {
            all.extend_from_slice(logits);
            Ok(())
        })
        .unwrap();
    all
}

/// Codes flip where the device's 16-bit rounding meets a tie, and a model of random weights
/// has many near ties among its tokens, so logits are compared: what the device changes is
/// far less than what the format does.
#[test]
fn kf_logits_are_those_of_the_cpu_but_for_rounding() {
    let exact = logits(on_cpu(), "f16");
    let off = |a: &[f32], b: &[f32]| {
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        a.iter().zip(b).map(square).sum::<f64>().sqrt()
    };
    let folder = tempfile::tempdir().unwrap();
    let calibration = fed(folder.path());
    let mut all = Vec::new();
    for kv in ["kf4", "kf3", "kf3.2", "kf2", calibration.to_str().unwrap()] {
        let (cpu, device) = (logits(on_cpu(), kv), logits(on_device(1), kv));
        let (rounding, format) = (off(&device, &cpu), off(&cpu, &exact));
        assert!(format > 0.0 && rounding < 0.5 * format, "{kv}: {rounding} {format}");
        all.push(cpu);
    }
    assert_ne!(all[3], all[4], "feedback changes codes");
}

/// A calibration of kf2 with feedback.
fn fed(folder: &Path) -> PathBuf {
    let checkpoint = Checkpoint::open(golden("smollm2")).unwrap();
    let config = checkpoint.config();
    let d = config.head_dim;
    let feedback = Arc::new(Feedback::new(&vec![1.0; d * d], d));
    let formats = vec![vec![KvFormat::uniform(Codec::Kf2); config.kv_heads]; config.layers];
    let fingerprint = checkpoint.fingerprint().unwrap().text().unwrap();
    let feedback = vec![vec![feedback; config.kv_heads]; config.layers];
    let calibration = Calibration::new("small", &fingerprint, formats, feedback);
    let path = folder.join("fed.json");
    std::fs::write(&path, calibration.to_json()).unwrap();
    path
}

/// One arithmetic draws on every device: each token is what the host would draw from the
/// device's own logits. (Tokens of two devices differ where the rounding of logits shows:
/// this model's are so even that it does in one of thirty draws.)
#[test]
fn a_seed_draws_the_same_from_the_same_logits() {
    for load in [on_cpu, || on_device(1)] {
        let engine = Engine::start(load(), config("f16")).unwrap();
        let mut runner = Runner::new(load(), config("f16")).unwrap();
        for seed in 1..5 {
            let sampling = SamplingParams::default().with_temperature(0.8).with_top_p(0.95);
            let sampling = sampling.with_repetition_penalty(1.1).with_seed(seed);
            assert_eq!(tokens(&engine, &sampling), drawn(&mut runner, &sampling), "seed {seed}");
        }
    }
}

/// [`tokens`], chosen by hand.
fn drawn(runner: &mut Runner, sampling: &SamplingParams) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling.clone()).unwrap();
    let (seq, mut history) = (runner.create(), prompt());
    runner.prefill(seq, &history, &AtomicBool::new(false)).unwrap();
    for i in 0..12 {
        if i > 0 {
            let last = RowToken::Given(*history.last().unwrap());
            runner.submit(&[Share::generated(seq, vec![last], Want::Rows(0..1))]).unwrap();
        }
        let (last, before) = history.split_last().unwrap();
        let choice = sampler.choice(before, 0);
        let mut logits = Vec::new();
        let keep = |_, row: &[f32]| {
            logits.extend_from_slice(row);
            Ok(())
        };
        runner.logits(0..1, keep).unwrap();
        choice.penalty.apply(&mut logits, *last);
        history.push(choice.draw.token(&logits).unwrap().unwrap());
    }
    runner.free(seq).unwrap();
    history.split_off(prompt().len())
}

/// Prompts and answers of several lengths, greedy and not.
fn requests() -> Vec<Request> {
    let drawn = SamplingParams::default().with_temperature(1.2).with_top_k(40).with_seed(3);
    let greedy = SamplingParams::default().with_repetition_penalty(1.2);
    [(150, 12, &greedy), (20, 40, &drawn), (300, 5, &greedy), (70, 20, &drawn), (1, 30, &greedy)]
        .map(|(n, max_tokens, sampling)| {
            let prompt = (0..n).map(|i| 3 + (i * 37 + n) % 250).collect();
            Request::new(prompt, max_tokens).with_sampling(sampling.clone()).with_ignore_eos(true)
        })
        .to_vec()
}

/// Chunks of prompts and single tokens side by side, in batches that change all the time:
/// each request gets the tokens that it gets alone.
fn batches_change_no_token(load: impl Fn() -> LoadedModel) {
    for kv in ["f16", "kivi2"] {
        // Room for all of them.
        let config = || config(kv).with_kv_budget(Some(24 << 20));
        let mut runner = Runner::new(load(), config()).unwrap();
        let go = AtomicBool::new(false);
        let alone: Vec<_> = requests()
            .into_iter()
            .map(|request| generate(&mut runner, request, &go).unwrap())
            .collect();
        assert_eq!((runner.cache().held_bytes(), runner.kv_bytes()), (0, 0));
        let engine = Engine::start(load(), config()).unwrap();
        let streams: Vec<_> =
            requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
        for (stream, alone) in streams.into_iter().zip(alone) {
            let together = Generated::collect(stream).unwrap();
            assert_eq!(together.ids, alone.ids, "{kv}");
            // What a request cost is its own.
            let (a, b) = (together.stats, alone.stats);
            assert_eq!(
                (a.prompt_tokens, a.generated_tokens),
                (b.prompt_tokens, b.generated_tokens)
            );
            assert_eq!((a.kv_bytes, a.kv_bytes_16_bit), (b.kv_bytes, b.kv_bytes_16_bit));
        }
    }
}

#[test]
fn batches_change_no_token_on_the_cpu() {
    // Products of Q8_0 do not depend on the batch.
    batches_change_no_token(|| LoadedModel::open(golden("smollm2"), WeightPolicy::Auto).unwrap());
}

#[test]
fn batches_change_no_token_on_a_device() {
    batches_change_no_token(|| on_device(2));
}

/// One that is cancelled, in the middle of its prompt or of its answer, leaves the others
/// alone and gives its memory back.
#[test]
fn the_cancelled_leave_the_others_alone() {
    let config = || config("kivi2").with_prefill_chunk(32).with_kv_budget(Some(24 << 20));
    let go = AtomicBool::new(false);
    let [first, second, third, ..] = &requests()[..] else { panic!() };
    let mut runner = Runner::new(on_device(3), config()).unwrap();
    let alone = generate(&mut runner, first.clone(), &go).unwrap();
    let engine = Engine::start(on_device(3), config()).unwrap();
    let stream = engine.submit(first.clone()).unwrap();
    // Its answer takes the emulated device seconds, so it is not over before it is cancelled.
    let long = Request::new(second.prompt.clone(), 480).with_ignore_eos(true);
    let mut answering = engine.submit(long).unwrap();
    let prompting = engine.submit(third.clone()).unwrap();
    // The second has begun its answer; the third may be anywhere in its prompt.
    while !matches!(answering.next(), Some(Event::Token { .. })) {}
    answering.cancel();
    drop(prompting);
    let last = answering.last().unwrap();
    assert!(matches!(last, Event::Failed(Error::Cancelled)), "{last:?}");
    assert_eq!(Generated::collect(stream).unwrap().ids, alone.ids);
}

/// A budget for two at once: the third waits, and all are served. What could never fit is
/// refused by itself.
#[test]
fn a_budget_bounds_the_batch() {
    let load = || LoadedModel::open(golden("smollm2"), WeightPolicy::Auto).unwrap();
    let budget = {
        let runner = Runner::new(load(), config("f16")).unwrap();
        2 * runner.cache().bytes_within(162, 96)
    };
    let engine = Engine::start(load(), config("f16").with_kv_budget(Some(budget))).unwrap();
    let request = || Request::new(prompt(), 12).with_ignore_eos(true);
    let streams: Vec<_> = (0..3).map(|_| engine.submit(request()).unwrap()).collect();
    let long = engine.submit(Request::new(vec![5; 400], 100)).unwrap();
    let unknown = engine.submit(Request::new(vec![5, 1 << 20], 1)).unwrap();
    let ids: Vec<_> =
        streams.into_iter().map(|stream| Generated::collect(stream).unwrap().ids).collect();
    assert!(ids[0].len() == 12 && ids.iter().all(|other| *other == ids[0]));
    let error = Generated::collect(long).unwrap_err();
    assert!(matches!(error, Error::KvBudget { .. }), "{error}");
    let error = Generated::collect(unknown).unwrap_err().to_string();
    assert!(error.starts_with("prompt: token 1048576"), "{error}");
}

#[test]
fn a_seed_gives_the_same_tokens_again() {
    let sampling = SamplingParams::default().with_temperature(1.5).with_top_k(50).with_top_p(0.95);
    let of = |device_seed, seed| {
        let engine = Engine::start(on_device(device_seed), config("kivi2")).unwrap();
        tokens(&engine, &sampling.clone().with_seed(seed))
    };
    let first = of(1, 7);
    assert_eq!(of(2, 7), first, "the order of threads changes a token");
    assert_ne!(of(1, 8), first);
}

#[test]
fn formats_follow_the_devices_type() {
    let bf16 = LoadOptions::default().with_element(Some(Codec::Bf16));
    let device = Device::emulated(options(3));
    let load = || load_on(golden("smollm2"), &device, &bf16).unwrap();
    let runner = Runner::new(load(), config("kivi2")).unwrap();
    assert_eq!(runner.format().to_string(), "bf16+kivi2");
    assert!(runner.model().device().contains("bf16"), "{}", runner.model().device());
    let error = Runner::new(load(), config("f16")).err().unwrap().to_string();
    assert!(error.contains("f16") && error.contains("bf16"), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    let load = |folder: &str, memory, load: LoadOptions| {
        let device = Device::emulated(EmulatorOptions { memory, ..options(4) });
        load_on(golden(folder), &device, &load)
    };
    let plain = LoadOptions::default;
    let error = load("smollm2", 100_000, plain()).err().unwrap();
    let Error::DeviceOutOfMemory { needed, free } = error else { panic!("{error}") };
    assert!(needed > free && free == 100_000);

    let refused = |folder, policy| {
        let options = LoadOptions::default().with_weights(policy);
        load(folder, 1 << 30, options).err().unwrap().to_string()
    };
    let error = refused("smollm2", WeightPolicy::F32);
    assert!(error.contains("F32") && error.contains("--weights auto"), "{error}");
    let error = refused("qwen2", WeightPolicy::Keep);
    assert!(error.contains("F32") && error.contains("--weights auto"), "{error}");
    assert!(load("smollm2", 1 << 30, plain().with_weights(WeightPolicy::Keep)).is_ok());
    let error = refused("llama2", WeightPolicy::Auto);
    assert!(error.contains("172 columns"), "{error}");

    let model = load("smollm2", 8 << 20, plain()).unwrap();
    let error = Runner::new(model, config("f16").with_kv_budget(Some(1 << 30))).err().unwrap();
    assert!(matches!(error, Error::DeviceOutOfMemory { needed, .. } if needed > 1 << 30));
    // Without a budget the cache takes what is free, and the device holds no more.
    let model = load("smollm2", 512 << 10, plain()).unwrap();
    let runner = Runner::new(model, config("f16")).unwrap();
    assert!(runner.cache().budget() < 512 << 10);
    let error = runner.admit(500, 12).unwrap_err();
    assert!(matches!(error, Error::KvBudget { .. }), "{error}");
}

#[test]
fn a_lost_device_fails_the_request_in_flight() {
    let mut failed_after = Vec::new();
    for launches in [5, 40, 90, 120, 150] {
        let device = EmulatorOptions { lost_after: Some(launches), ..options(5) };
        let device = Device::emulated(device);
        let load = LoadOptions::default();
        let model = load_on(golden("smollm2"), &device, &load).unwrap();
        let engine = Engine::start(model, config("kivi2")).unwrap();
        let request = || Request::new(prompt(), 8).with_ignore_eos(true);
        let events: Vec<_> = engine.submit(request()).unwrap().collect();
        let (last, before) = events.split_last().unwrap();
        let Event::Failed(error) = last else { panic!("{last:?}") };
        assert!(error.to_string().contains("lost"), "{error}");
        let ids = before.iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        });
        failed_after.push(ids.collect::<Vec<_>>());
        // The engine lives, and the next request is told as well.
        let last = engine.submit(request()).unwrap().last().unwrap();
        assert!(matches!(last, Event::Failed(_)), "{last:?}");
    }
    // What was given out before is right.
    let engine = Engine::start(on_cpu(), config("kivi2")).unwrap();
    let right = tokens(&engine, &SamplingParams::default());
    assert!(failed_after.iter().all(|ids| right.starts_with(ids)), "{failed_after:?}");
    assert!(failed_after[0].is_empty() && !failed_after[4].is_empty(), "{failed_after:?}");
}

/// However little memory there is, a request gets its right tokens or an error, also after
/// others have failed half way.
#[test]
fn short_memory_gives_errors_and_never_wrong_tokens() {
    let long: Vec<u32> = (0..400).map(|i| 3 + i * 53 % 250).collect();
    let prompts = [vec![7], prompt(), long.clone(), vec![7], long, prompt()];
    let run = |engine: &Engine, prompt: &Vec<u32>| {
        let request = Request::new(prompt.clone(), 6).with_ignore_eos(true);
        let mut ids = Vec::new();
        for event in engine.submit(request).unwrap() {
            match event {
                Event::Token { id, .. } => ids.push(id),
                Event::Failed(Error::DeviceOutOfMemory { .. } | Error::KvBudget { .. }) => {
                    return Err(ids);
                }
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        Ok(ids)
    };
    let config = config("kivi4").with_prefill_chunk(400);
    let cpu = Engine::start(on_cpu(), config.clone()).unwrap();
    let right = prompts.each_ref().map(|prompt| run(&cpu, prompt).unwrap());
    let (mut good, mut failed, mut mixed) = (0, 0, 0);
    for memory in (450..2000).step_by(50) {
        let device = Device::emulated(EmulatorOptions { memory: memory << 10, ..options(6) });
        let Ok(model) = load_on(golden("smollm2"), &device, &LoadOptions::default()) else {
            continue;
        };
        let config = config.clone().with_kv_budget(Some(150 << 10));
        let Ok(engine) = Engine::start(model, config) else { continue };
        let results = prompts.each_ref().map(|prompt| run(&engine, prompt));
        for (result, right) in results.iter().zip(&right) {
            let (Ok(ids) | Err(ids)) = result;
            assert!(right.starts_with(ids), "{memory} KiB: {ids:?}, not {right:?}");
            assert!(result.is_err() || ids == right, "{memory} KiB");
        }
        let n = results.iter().filter(|result| result.is_ok()).count();
        good += n;
        failed += results.len() - n;
        mixed += usize::from(n > 0 && n < results.len());
    }
    assert!(good > 20 && failed > 20 && mixed > 3, "{good}, {failed}, {mixed}");
}

/// Where captures fail, steps are launched piece by piece, to the same bits: also when the
/// first that fails is the one at which a stream has a split more.
#[test]
fn steps_that_cannot_be_captured_give_the_same_bits() {
    let ids: Vec<u32> = (0..1540).map(|i| 3 + i * 41 % 250).collect();
    let logits = |captures| {
        let device = Device::emulated(EmulatorOptions { captures, ..options(7) });
        let model = load_on(golden("smollm2"), &device, &LoadOptions::default()).unwrap();
        let config = config("f16").with_prefill_chunk(512).with_kv_budget(Some(4 << 20));
        let mut runner = Runner::new(model, config).unwrap();
        let seq = runner.create();
        runner.submit(&[Share::prompt(seq, &ids[..1535], Want::Rows(1534..1535))]).unwrap();
        // What this allocates would have the first step forgotten.
        runner.logits(0..1, |_, _| Ok(())).unwrap();
        let mut bits = Vec::new();
        for id in &ids[1535..] {
            let token = vec![RowToken::Given(*id)];
            runner.submit(&[Share::generated(seq, token, Want::Rows(0..1))]).unwrap();
            let keep = |_, row: &[f32]| {
                bits.extend(row.iter().map(|x| x.to_bits()));
                Ok(())
            };
            runner.logits(0..1, keep).unwrap();
        }
        bits
    };
    assert!(logits(false) == logits(true));
}

/// Products of Q8_0 do not depend on the batch.
fn quantised_on_cpu() -> LoadedModel {
    LoadedModel::open(golden("smollm2"), WeightPolicy::Auto).unwrap()
}

/// A request whose memory another one takes is computed anew, its drawn tokens as generated
/// rows, and ends as if nothing had been.
#[test]
fn who_makes_room_goes_on_with_the_same_tokens() {
    let never = AtomicBool::new(false);
    let drawn = SamplingParams::default().with_temperature(0.8).with_seed(7);
    let request = |n| {
        let request = Request::new(prompt(), n).with_ignore_eos(true);
        request.with_sampling(drawn.clone())
    };
    let loads: [(fn() -> LoadedModel, usize); 2] = [(quantised_on_cpu, 250), (|| on_device(1), 50)];
    for (load, n) in loads {
        for kv in ["f16", "kivi4"] {
            let mut runner = Runner::new(load(), config(kv)).unwrap();
            let alone = generate(&mut runner, request(n), &never).unwrap();
            let other = generate(&mut runner, request(8), &never).unwrap();
            let budget = runner.cache().bytes_within(prompt().len() + n, 96);
            let engine = Engine::start(load(), config(kv).with_kv_budget(Some(budget))).unwrap();
            // The second request may come too late to be in the way.
            let preempted = (0..10).any(|_| {
                let mut stream = engine.submit(request(n)).unwrap();
                let mut ids = Vec::new();
                while ids.len() < 20 {
                    match stream.next() {
                        Some(Event::Token { id, .. }) => ids.push(id),
                        Some(Event::Failed(_)) | None => panic!("it has ended"),
                        _ => {}
                    }
                }
                let urgent = engine.submit(request(8).with_priority(1)).unwrap();
                assert_eq!(Generated::collect(urgent).unwrap().ids, other.ids, "{kv}");
                let rest = Generated::collect(stream).unwrap();
                ids.extend(rest.ids);
                assert_eq!(ids, alone.ids, "{kv}");
                rest.stats.preemptions > 0
            });
            assert!(preempted, "{kv}");
        }
    }
}

#[test]
fn a_deadline_ends_a_request() {
    let engine = Engine::start(on_cpu(), config("f16")).unwrap();
    let late = Request::new(prompt(), 4).with_deadline(std::time::Duration::ZERO);
    let error = Generated::collect(engine.submit(late).unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("not done 0 s after"), "{error}");
    assert_eq!(tokens(&engine, &SamplingParams::default()).len(), 12);
}
