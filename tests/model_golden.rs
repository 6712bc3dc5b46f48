//! Logits and greedy tokens against PyTorch + transformers
//! (`tests/golden/README.md`), in f32 weights and 16-bit KV.

use candle_core::{Device, Tensor};
use kvfold::backend::cpu::CpuBackend;
use kvfold::backend::{Backend, WeightPolicy};
use kvfold::cache::KvCache;
use kvfold::model::{Checkpoint, KvOptions, Llama, Workspace, cache_config};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load(path: &Path) -> Self {
        Golden(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.0[name].to_dtype(candle_core::DType::I64).unwrap();
        ids.to_vec1::<i64>().unwrap().into_iter().map(|i| i as u32).collect()
    }
}

struct Runner {
    backend: CpuBackend,
    model: Llama<CpuBackend>,
    ws: Workspace<CpuBackend>,
    cache: KvCache,
}

impl Runner {
    fn new(path: &Path, policy: WeightPolicy, kv: &str) -> Self {
        let mut backend = CpuBackend::new();
        let model = Llama::load(&Checkpoint::open(path).unwrap(), &backend, policy).unwrap();
        let groups = model.kv_groups(&KvOptions::new(kv.parse().unwrap()));
        let cache = KvCache::new(cache_config(&groups, 1 << 30)).unwrap();
        backend.configure_kv(&groups, cache.classes()).unwrap();
        let ws = Workspace::new(&backend).unwrap();
        Self { backend, model, ws, cache }
    }

    /// Feeds sequences as one batch, each in the same number of chunks; logits
    /// of the wanted positions.
    fn logits(
        &mut self,
        prompts: &[Vec<u32>],
        wanted: &[Vec<u32>],
        chunk: usize,
    ) -> Vec<Vec<Vec<f32>>> {
        let seqs: Vec<_> = prompts.iter().map(|_| self.cache.create()).collect();
        let mut out: Vec<Vec<Vec<f32>>> = prompts.iter().map(|_| Vec::new()).collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap();
        for start in (0..longest).step_by(chunk) {
            let (mut asked, mut ids, mut rows, mut owners) = (vec![], vec![], vec![], vec![]);
            for (i, prompt) in prompts.iter().enumerate().filter(|(_, p)| p.len() > start) {
                let part = &prompt[start..prompt.len().min(start + chunk)];
                for position in &wanted[i] {
                    if let Some(offset) =
                        (*position as usize).checked_sub(start).filter(|o| *o < part.len())
                    {
                        rows.push(ids.len() + offset);
                        owners.push(i);
                    }
                }
                asked.push((seqs[i], part.len()));
                ids.extend_from_slice(part);
            }
            let step = self.cache.prepare(&asked).unwrap();
            self.model.forward(&mut self.backend, &mut self.ws, &step, &ids, &rows).unwrap();
            let push = |row: usize, logits: &[f32]| {
                out[owners[row]].push(logits.to_vec());
                Ok(())
            };
            self.model.logits(&self.backend, &mut self.ws, 0..rows.len(), push).unwrap();
            let accepted: Vec<_> = asked.iter().map(|a| a.1).collect();
            let free = self.cache.commit(step, &accepted).unwrap();
            self.backend.free_blocks(&free);
        }
        for seq in seqs {
            let free = self.cache.free(seq).unwrap();
            self.backend.free_blocks(&free);
        }
        assert_eq!((self.cache.held_bytes(), self.backend.kv_bytes()), (0, 0));
        out
    }

    fn greedy(&mut self, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        let seq = self.cache.create();
        let mut new = prompt.len();
        for _ in 0..n {
            let step = self.cache.prepare(&[(seq, new)]).unwrap();
            let part = &ids[ids.len() - new..];
            self.model.forward(&mut self.backend, &mut self.ws, &step, part, &[new - 1]).unwrap();
            let mut next = 0;
            let best = |_, logits: &[f32]| {
                next = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                Ok(())
            };
            self.model.logits(&self.backend, &mut self.ws, 0..1, best).unwrap();
            self.cache.commit(step, &[new]).map(|free| self.backend.free_blocks(&free)).unwrap();
            ids.push(next as u32);
            new = 1;
        }
        ids.split_off(prompt.len())
    }
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Root mean square error of the logits, relative to their own.
fn error(got: &[Vec<Vec<f32>>], want: &[Vec<Vec<f32>>]) -> f64 {
    let flat = |x: &[Vec<Vec<f32>>]| -> Vec<f64> {
        x.iter().flatten().flatten().map(|&x| f64::from(x)).collect()
    };
    let (got, want) = (flat(got), flat(want));
    assert_eq!(got.len(), want.len());
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = squares(&mut got.iter().zip(&want).map(|(g, w)| g - w));

    (error / squares(&mut want.iter().copied())).sqrt()
}

fn check_family(folder: &str, model: &str) {
    let dir = golden_dir().join(folder);
    let golden = Golden::load(&dir.join("golden.safetensors"));
    let pair = |name: &str| [0, 1].map(|i| golden.ids(&format!("{name}.{i}"))).to_vec();
    let (prompts, positions, greedy) = (pair("input_ids"), pair("positions"), pair("greedy"));
    let want: Vec<Vec<Vec<f32>>> =
        (0..2).map(|i| golden.0[&format!("logits.{i}")].to_vec2().unwrap()).collect();

    let mut runner = Runner::new(&dir.join(model), WeightPolicy::F32, "f16");
    // 16-bit keys and values are the only rounding, and it adds up over layers.
    for chunk in [200, 64, 33, 1] {
        let error = error(&runner.logits(&prompts, &positions, chunk), &want);
        assert!(error < 2e-3, "{folder} in chunks of {chunk}: {error}");
    }
    for (prompt, greedy) in prompts.iter().zip(&greedy) {
        assert_eq!(&runner.greedy(prompt, greedy.len()), greedy, "{folder}");
    }
    // A lossy cache must stay in the neighbourhood, whatever the chunking.
    let mut folded = Runner::new(&dir.join(model), WeightPolicy::F32, "kivi4");
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
fn default_model() {
    let Some(path) = default_model_path() else {
        eprintln!("skipped: no default model; run `kvfold fetch` or set KVFOLD_TEST_MODEL");
        return;
    };
    let golden = Golden::load(&golden_dir().join("default-model.safetensors"));
    let (prompt, positions) = (vec![golden.ids("input_ids.0")], vec![golden.ids("positions.0")]);
    let want = vec![golden.0["logits.0"].to_vec2().unwrap()];
    let greedy = golden.ids("greedy.0");

    let mut exact = Runner::new(&path, WeightPolicy::F32, "f16");
    let worst = error(&exact.logits(&prompt, &positions, 128), &want);
    assert!(worst < 2e-3, "f32 weights: {worst}");
    assert_eq!(exact.greedy(&prompt[0], greedy.len()), greedy);
    drop(exact);
    // The weights as `run` uses them: Q8_0, with 8-bit activations.
    let mut fast = Runner::new(&path, WeightPolicy::Auto, "f16");
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
