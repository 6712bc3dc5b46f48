//! Logits and greedy tokens against PyTorch + transformers
//! (`tests/golden/README.md`), in f32 weights and 16-bit KV.

mod device;
mod passes;
mod runner;

use kvfold::backend::WeightPolicy;
use kvfold::backend::cpu::CpuBackend;
use kvfold::codec::KvFormat;
use kvfold::model::Checkpoint;
use runner::{Golden, Runner, error, golden_dir};
use std::path::PathBuf;

fn check_family(folder: &str, model: &str) {
    let dir = golden_dir().join(folder);
    let golden = Golden::load(&dir.join("golden.safetensors"));
    let pair = |name: &str| [0, 1].map(|i| golden.ids(&format!("{name}.{i}"))).to_vec();
    let (prompts, positions, greedy) = (pair("input_ids"), pair("positions"), pair("greedy"));
    let want: Vec<Vec<Vec<f32>>> =
        (0..2).map(|i| golden.0[&format!("logits.{i}")].to_vec2().unwrap()).collect();

    let mut runner = Runner::new(CpuBackend::new(), &dir.join(model), WeightPolicy::F32, "f16");
    // 16-bit keys and values are the only rounding, and it adds up over layers.
    for chunk in [200, 64, 33, 1] {
        let error = error(&runner.logits(&prompts, &positions, chunk), &want);
        assert!(error < 2e-3, "{folder} in chunks of {chunk}: {error}");
    }
    for (prompt, greedy) in prompts.iter().zip(&greedy) {
        assert_eq!(&runner.greedy(prompt, greedy.len()), greedy, "{folder}");
    }
    // A lossy cache must stay in the neighbourhood, whatever the chunking.
    let mut folded = Runner::new(CpuBackend::new(), &dir.join(model), WeightPolicy::F32, "kivi4");
    let whole = folded.logits(&prompts, &positions, 200);
    let pieces = folded.logits(&prompts, &positions, 50);
    assert_eq!(self::error(&pieces, &whole), 0.0, "{folder}: chunking changes what is seen");
}

#[test]
fn smollm2() {
    check_family("smollm2", "");
    check_family("smollm2", "model.gguf");
}

#[test]
fn llama2() {
    check_family("llama2", "");
}

#[test]
fn llama3_rope_scaling_and_shards() {
    check_family("llama3", "");
    check_family("llama3", "model.gguf");
}

#[test]
fn yarn_rope_scaling() {
    check_family("yarn", "");
    check_family("yarn", "model.gguf");
}

#[test]
fn mistral_sliding_window() {
    check_family("mistral", "");
}

#[test]
fn qwen2_biases() {
    check_family("qwen2", "");
}

#[test]
fn qwen3_head_norms() {
    check_family("qwen3", "");
    check_family("qwen3", "model.gguf");
}

#[test]
fn gemma3_two_ropes_and_norms_on_both_sides() {
    check_family("gemma3", "");
    check_family("gemma3", "model.gguf");
}

/// The same numbers in the words of older versions of transformers.
#[test]
fn gemma3_older_configuration() {
    let folder = golden_dir().join("gemma3");
    let copy = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    std::fs::copy(folder.join("config-older.json"), copy.path().join("config.json")).unwrap();
    let [older, newer] = [copy.path(), &folder].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(older.config(), newer.config());
}

/// Sliding layers keep their window, whatever the length: the cache grows as its full
/// layers do.
#[test]
fn gemma3_sliding_layers_keep_their_window() {
    for kv in ["f16", "kivi2"] {
        let folder = golden_dir().join("gemma3");
        let mut runner = Runner::new(CpuBackend::new(), &folder, WeightPolicy::F32, kv);
        let at = |runner: &mut Runner<CpuBackend>, n: usize| runner.held_after(n, 64);
        let (short, long) = (at(&mut runner, 256), at(&mut runner, 448));
        // Three pages of one full layer with two heads.
        let format: KvFormat = kv.parse().unwrap();
        let page = 2 * format.page_bytes([256; 2]) as u64;
        assert_eq!(long - short, 3 * page, "{kv}");
    }
}

#[test]
fn default_model() {
    let Some(path) = default_model_path() else {
        eprintln!("skipped: no default model; run `kvfold fetch` or set KVFOLD_TEST_MODEL");
        return;
    };
    let golden = Golden::load(&golden_dir().join("default-model.safetensors"));
    let (prompt, positions) = (vec![golden.ids("input_ids.0")], vec![golden.ids("positions.0")]);
    let want = vec![golden.0["logits.0"].to_vec2().unwrap()];
    let greedy = golden.ids("greedy.0");

    let mut exact = Runner::new(CpuBackend::new(), &path, WeightPolicy::F32, "f16");
    let worst = error(&exact.logits(&prompt, &positions, 128), &want);
    assert!(worst < 2e-3, "f32 weights: {worst}");
    assert_eq!(exact.greedy(&prompt[0], greedy.len()), greedy);
    drop(exact);
    // The weights as `run` uses them: Q8_0, with 8-bit activations.
    let mut fast = Runner::new(CpuBackend::new(), &path, WeightPolicy::Auto, "f16");
    let worst = error(&fast.logits(&prompt, &positions, 128), &want);
    assert!(worst < 0.25, "Q8_0 weights: {worst}");
    assert_eq!(fast.greedy(&prompt[0], greedy.len()), greedy);
}

fn default_model_path() -> Option<PathBuf> {
    let manifest = kvfold::fetch::find(kvfold::fetch::DEFAULT_MODEL)?;
    let given = std::env::var_os("KVFOLD_TEST_MODEL").map(PathBuf::from);
    let options = kvfold::fetch::FetchOptions::from_env().ok()?;
    given.or_else(|| Some(options.model_path(manifest))).filter(|p| p.exists())
}
