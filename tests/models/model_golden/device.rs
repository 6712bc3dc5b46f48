//! The CUDA backend, on the emulated device and on CUDA if there is any.

use super::runner::{Golden, Runner, error, golden_dir};
use half::{bf16, f16};
use kvfold::backend::WeightPolicy;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;

fn emulated(seed: u64) -> Device {
    Device::emulated(EmulatorOptions { seed, host_threads: 2, ..Default::default() })
}

/// Logits, in whole prompts and in chunks, and greedy tokens of a family on a device.
fn check_family<T: Element>(device: &Device, folder: &str, tolerance: f64) {
    let dir = golden_dir().join(folder);
    let golden = Golden::load(&dir.join("golden.safetensors"));
    let pair = |name: &str| [0, 1].map(|i| golden.ids(&format!("{name}.{i}"))).to_vec();
    let (prompts, positions, greedy) = (pair("input_ids"), pair("positions"), pair("greedy"));
    let want: Vec<Vec<Vec<f32>>> =
        (0..2).map(|i| golden.0[&format!("logits.{i}")].to_vec2().unwrap()).collect();

    let backend = || CudaBackend::<T>::new(device).unwrap();
    let kv = T::CODEC.name();
    let mut runner = Runner::new(backend(), &dir, WeightPolicy::Auto, kv);
    for chunk in [200, 64] {
        let error = error(&runner.logits(&prompts, &positions, chunk), &want);
        println!("{folder} {kv} in chunks of {chunk}: {error:.2e}");
        assert!(error < tolerance, "{folder} in chunks of {chunk}: {error}");
    }
    let n = greedy[0].len();
    assert_eq!(runner.greedy_on_device(&prompts, n), greedy, "{folder}");
    // The prompt, a first step and the one that is captured are not repetitions.
    assert!(
        runner.placed.backend().repeated() as usize >= n - 4,
        "{}",
        runner.placed.backend().repeated()
    );
}

#[test]
fn smollm2() {
    check_family::<f16>(&emulated(1), "smollm2", 5e-3);
    check_family::<bf16>(&emulated(2), "smollm2", 4e-2);
}

#[test]
fn llama3_rope_scaling() {
    check_family::<f16>(&emulated(3), "llama3", 5e-3);
}

#[test]
fn yarn_rope_scaling() {
    check_family::<f16>(&emulated(4), "yarn", 5e-3);
}

#[test]
fn mistral_sliding_window() {
    check_family::<f16>(&emulated(5), "mistral", 5e-3);
}

#[test]
fn qwen2_biases() {
    check_family::<f16>(&emulated(6), "qwen2", 5e-3);
}

#[test]
fn qwen3_head_norms() {
    check_family::<f16>(&emulated(7), "qwen3", 5e-3);
}

#[test]
fn gemma3_head_dim_256() {
    check_family::<f16>(&emulated(10), "gemma3", 5e-3);
}

/// Three sequences make a batch of four with one that goes nowhere; sealed pages and
/// single tokens over page boundaries are in it, and every token is the one of the
/// sequence alone.
#[test]
fn padding_changes_no_token() {
    let dir = golden_dir().join("smollm2");
    let ids = Golden::load(&dir.join("golden.safetensors")).ids("input_ids.0");
    let prompts = vec![ids[..190].to_vec(), ids[3..60].to_vec(), ids[20..148].to_vec()];
    for kv in ["f16", "kivi2"] {
        let device = emulated(8);
        let runner = || {
            let backend = CudaBackend::<f16>::new(&device).unwrap();
            Runner::new(backend, &dir, WeightPolicy::Auto, kv)
        };
        let mut batch = runner();
        let got = batch.greedy_on_device(&prompts, 10);
        assert!(batch.placed.backend().repeated() >= 6, "{}", batch.placed.backend().repeated());
        for (prompt, got) in prompts.iter().zip(got) {
            let alone = runner().greedy_on_device(std::slice::from_ref(prompt), 10);
            assert_eq!(alone, [got], "{kv}");
        }
    }
}

/// The default model takes a minute or two here, so it belongs to the full conformance.
#[test]
fn default_model() {
    if std::env::var("KVFOLD_CONFORMANCE").as_deref() != Ok("full") {
        eprintln!("skipped: set KVFOLD_CONFORMANCE=full");
        return;
    }
    let path = super::default_model_path().expect("run `kvfold fetch` first");
    let golden = Golden::load(&golden_dir().join("default-model.safetensors"));
    let (prompt, positions) = (vec![golden.ids("input_ids.0")], vec![golden.ids("positions.0")]);
    let want = vec![golden.0["logits.0"].to_vec2().unwrap()];
    let backend = CudaBackend::<f16>::new(&emulated(9)).unwrap();
    let mut runner = Runner::new(backend, &path, WeightPolicy::Auto, "f16");
    let error = error(&runner.logits(&prompt, &positions, 128), &want);
    println!("default model f16: {error:.2e}");
    assert!(error < 5e-3, "{error}");
    let n = 8;
    assert_eq!(runner.greedy_on_device(&prompt, n), [golden.ids("greedy.0")[..n].to_vec()]);
}
