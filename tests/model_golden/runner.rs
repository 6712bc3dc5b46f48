//! A model on any backend, and what PyTorch + transformers computed of it.

use candle_core::{Device, Tensor};
use kvfold::backend::draw::Choice;
use kvfold::backend::{Backend, Ids, WeightPolicy};
use kvfold::cache::KvCache;
use kvfold::model::{Checkpoint, KvOptions, Llama, Workspace, cache_config, kv_groups};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The tensors of a golden file.
pub struct Golden(pub HashMap<String, Tensor>);

impl Golden {
    pub fn load(path: &Path) -> Self {
        Golden(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.0[name].to_dtype(candle_core::DType::I64).unwrap();
        ids.to_vec1::<i64>().unwrap().into_iter().map(|i| i as u32).collect()
    }
}

/// A model on a backend, with its cache.
pub struct Runner<B: Backend> {
    pub backend: B,
    model: Llama<B>,
    ws: Workspace<B>,
    cache: KvCache,
}

impl<B: Backend> Runner<B> {
    pub fn new(mut backend: B, path: &Path, policy: WeightPolicy, kv: &str) -> Self {
        let model = Llama::load(&Checkpoint::open(path).unwrap(), &backend, policy).unwrap();
        let groups = kv_groups(model.config(), &KvOptions::new(kv.parse().unwrap()));
        // Enough for the prompts that are computed together.
        let unlimited = KvCache::new(cache_config(&groups, u64::MAX)).unwrap();
        let budget = 4 * unlimited.bytes_for(384, 384);
        let cache = KvCache::new(cache_config(&groups, budget)).unwrap();
        backend.configure_kv(&groups, cache.classes(), cache.budget()).unwrap();
        let ws = Workspace::new(&backend).unwrap();
        Self { backend, model, ws, cache }
    }

    /// Feeds sequences as one batch, each in the same number of chunks; logits
    /// of the wanted positions.
    pub fn logits(
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

    /// Greedy tokens, chosen on the host.
    pub fn greedy(&mut self, prompt: &[u32], n: usize) -> Vec<u32> {
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

    /// Greedy tokens of several sequences as one batch, chosen where the weights are: each
    /// step takes in what the one before has drawn, and is enqueued before that is received.
    pub fn greedy_on_device(&mut self, prompts: &[Vec<u32>], n: usize) -> Vec<Vec<u32>> {
        let seqs: Vec<_> = prompts.iter().map(|_| self.cache.create()).collect();
        let mut out: Vec<Vec<u32>> = prompts.iter().map(|_| Vec::new()).collect();
        let all = prompts.concat();
        for i in 0..n {
            let new = |prompt: &Vec<u32>| if i == 0 { prompt.len() } else { 1 };
            let new: Vec<usize> = prompts.iter().map(new).collect();
            let asked: Vec<_> = seqs.iter().copied().zip(new.iter().copied()).collect();
            let step = self.cache.prepare(&asked).unwrap();
            let ends = new.iter().scan(0, |end, n| {
                *end += n;
                Some(*end - 1)
            });
            let rows: Vec<usize> = ends.collect();
            let ids = if i == 0 { Ids::Given(&all) } else { Ids::Drawn(seqs.len()) };
            let choices = vec![Choice::GREEDY; rows.len()];
            let Self { backend, model, ws, .. } = self;
            model.forward_and_sample(backend, ws, &step, ids, &rows, &choices).unwrap();
            let free = self.cache.commit(step, &new).unwrap();
            self.backend.free_blocks(&free);
            if i > 0 {
                self.receive(&mut out);
            }
        }
        self.receive(&mut out);
        for seq in seqs {
            let free = self.cache.free(seq).unwrap();
            self.backend.free_blocks(&free);
        }
        out
    }

    fn receive(&mut self, out: &mut [Vec<u32>]) {
        let drawn = self.backend.receive_tokens().unwrap();
        assert_eq!(drawn.len(), out.len());
        out.iter_mut().zip(drawn).for_each(|(out, id)| out.push(id.unwrap()));
    }
}

/// Where the golden files lie.
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Root mean square error of the logits, relative to their own.
pub fn error(got: &[Vec<Vec<f32>>], want: &[Vec<Vec<f32>>]) -> f64 {
    let flat = |x: &[Vec<Vec<f32>>]| -> Vec<f64> {
        x.iter().flatten().flatten().map(|&x| f64::from(x)).collect()
    };
    let (got, want) = (flat(got), flat(want));
    assert_eq!(got.len(), want.len());
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let error = squares(&mut got.iter().zip(&want).map(|(g, w)| g - w));

    (error / squares(&mut want.iter().copied())).sqrt()
}
