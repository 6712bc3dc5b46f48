//! What a step of decoding sends to a device: one copy, however many lists it changes.

use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::{EmulatedDriver, EmulatorOptions};
use kvfold::engine::{EngineConfig, LoadOptions, LoadedModel, Request, Runner, generate};
use kvfold::model::Checkpoint;
use kvfold::sample::SamplingParams;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// What an emulated device was asked for (`kernels/emulator/replay/trace.h`).
#[derive(Debug, PartialEq)]
enum Asked {
    /// Bytes from the host.
    Write(u64),
    Launch(String),
    Other,
}

/// Reads a trace.
fn asked(mut trace: &[u8]) -> Vec<Asked> {
    fn word<const N: usize>(trace: &mut &[u8]) -> [u8; N] {
        let (head, rest) = trace.split_first_chunk::<N>().unwrap();
        *trace = rest;
        *head
    }
    fn long(trace: &mut &[u8]) -> u64 {
        u64::from_le_bytes(word(trace))
    }
    fn short(trace: &mut &[u8]) -> u32 {
        u32::from_le_bytes(word(trace))
    }
    assert_eq!(&word::<8>(&mut trace), b"kvftrace");
    short(&mut trace);
    let mut all = Vec::new();
    loop {
        let [kind] = word(&mut trace);
        all.push(match kind {
            3 => {
                long(&mut trace);
                let bytes = long(&mut trace);
                trace = &trace[bytes as usize..];
                Asked::Write(bytes)
            }
            6 => {
                word::<28>(&mut trace);
                let (name, params) = (short(&mut trace) as usize, short(&mut trace) as usize);
                let kernel = std::str::from_utf8(&trace[..name]).unwrap().to_owned();
                trace = &trace[name + params..];
                Asked::Launch(kernel)
            }
            12 => return all,
            other => {
                // Of each kind, fields of fixed size.
                let bytes = [16, 8, 0, 17, 24, 0, 24, 16, 16, 16, 16][usize::from(other) - 1];
                trace = &trace[bytes..];
                Asked::Other
            }
        });
    }
}

/// Writes and launches of each step that drew tokens, the prompt's included.
fn steps(kv: &str, sampling: &SamplingParams) -> Vec<(Vec<u64>, Vec<String>)> {
    let folder = tempfile::tempdir().unwrap();
    let options = EmulatorOptions { seed: 1, host_threads: 2, ..Default::default() };
    let device = Device::new(EmulatedDriver::recording(options, folder.path()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2");
    let model = Checkpoint::open(path)
        .and_then(|checkpoint| {
            LoadedModel::load(&checkpoint, Some(&device), &LoadOptions::default())
        })
        .unwrap();
    let config = EngineConfig::default().with_kv(kv).with_hot_window(64);
    let mut runner = Runner::new(model, config).unwrap();
    // Pages begin and are sealed on the way.
    let prompt = (0..120).map(|i| 3 + i * 37 % 250).collect();
    let request = Request::new(prompt, 90).with_sampling(sampling.clone()).with_ignore_eos(true);
    generate(&mut runner, request, &AtomicBool::new(false)).unwrap();
    drop((runner, device));
    let trace = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut steps = vec![(Vec::new(), Vec::new())];
    for asked in asked(&std::fs::read(trace).unwrap()) {
        let (writes, launches) = steps.last_mut().unwrap();
        match asked {
            Asked::Write(bytes) => writes.push(bytes),
            Asked::Launch(kernel) => {
                launches.push(kernel.clone());
                if kernel == "sample" {
                    steps.push((Vec::new(), Vec::new()));
                }
            }
            Asked::Other => {}
        }
    }
    steps
}

#[test]
fn a_step_of_decoding_is_one_copy() {
    let greedy = SamplingParams::default();
    let penalised = greedy.clone().with_repetition_penalty(1.2).with_temperature(0.8).with_seed(5);
    for (kv, sampling) in [("f16", &greedy), ("kivi2", &penalised)] {
        let steps = steps(kv, sampling);
        let decoding = &steps[1..steps.len() - 1];
        assert!(decoding.len() >= 89, "{}", decoding.len());
        for (i, (writes, launches)) in decoding.iter().enumerate() {
            assert_eq!(writes.len(), 1, "{kv}, step {i}: {writes:?}");
            assert!(writes[0] < 4096, "{kv}, step {i}: {writes:?}");
            let scatters = launches.iter().filter(|kernel| *kernel == "scatter").count();
            assert_eq!(scatters, 1, "{kv}, step {i}");
        }
    }
}
