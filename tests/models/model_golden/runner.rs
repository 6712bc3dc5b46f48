//! A model on any backend, and what PyTorch + transformers computed of it.

use candle_core::{Device, Tensor};
use kvfold::backend::draw::Choice;
use kvfold::backend::{Backend, RowToken, StepInput, WeightPolicy};
use kvfold::cache::{KvCache, NewTokens, SeqId};
use kvfold::model::{Checkpoint, KvOptions, Model, Pass, Placed, Tail, cache_config, kv_groups};
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
    pub placed: Placed<B>,
    cache: KvCache,
}

impl<B: Backend + Send> Runner<B> {
    pub fn new(backend: B, path: &Path, policy: WeightPolicy, kv: &str) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        let mut placed = Placed::load(&checkpoint, backend, policy).unwrap();
        let groups = kv_groups(placed.config(), &KvOptions::new(kv.parse().unwrap()));
        // Enough for the prompts that are computed together.
        let unlimited = KvCache::new(cache_config(&groups, u64::MAX)).unwrap();
        let budget = 4 * unlimited.bytes_for(384, 384);
        let cache = KvCache::new(cache_config(&groups, budget)).unwrap();
        placed.set_arena(&groups, cache.classes(), cache.budget()).unwrap();
        Self { placed, cache }
    }

    /// One step, of which all tokens stay.
    pub fn step(
        &mut self,
        new: &[NewTokens],
        tokens: &[RowToken],
        rows: &[usize],
        choices: &[Choice],
        pass: &mut Pass<'_>,
    ) {
        let step = self.cache.prepare(new).unwrap();
        self.placed.begin(&StepInput { step: &step, tokens, rows, choices }).unwrap();
        self.placed.forward(pass).unwrap();
        let accepted: Vec<_> = new.iter().map(|new| new.n).collect();
        self.cache.commit(step, &accepted).unwrap();
    }

    pub fn layers(&self) -> usize {
        self.placed.config().layers
    }

    pub fn create(&mut self) -> SeqId {
        self.cache.create()
    }

    /// Ends sequences; the device must hold nothing then.
    pub fn free(&mut self, seqs: Vec<SeqId>) {
        for seq in seqs {
            self.cache.free(seq).unwrap();
        }
        let step = self.cache.release();
        let nothing = StepInput { step: &step, tokens: &[], rows: &[], choices: &[] };
        self.placed.begin(&nothing).unwrap();
        self.cache.commit(step, &[]).unwrap();
        assert_eq!((self.cache.held_bytes(), self.placed.kv_bytes()), (0, 0));
    }

    /// Bytes that one sequence of `n` tokens holds, computed in chunks.
    pub fn held_after(&mut self, n: usize, chunk: usize) -> u64 {
        let seq = self.create();
        let layers = self.layers();
        for _ in 0..n / chunk {
            let tokens = vec![RowToken::Given(7); chunk];
            let new = [NewTokens::prompt(seq, chunk)];
            self.step(&new, &tokens, &[], &[], &mut Pass::kv_only(layers));
        }
        let held = self.cache.held_bytes();
        self.free(vec![seq]);
        held
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
        let layers = self.layers();
        for start in (0..longest).step_by(chunk) {
            let (mut new, mut tokens, mut rows, mut owners) = (vec![], vec![], vec![], vec![]);
            for (i, prompt) in prompts.iter().enumerate().filter(|(_, p)| p.len() > start) {
                let part = &prompt[start..prompt.len().min(start + chunk)];
                for position in &wanted[i] {
                    if let Some(offset) =
                        (*position as usize).checked_sub(start).filter(|o| *o < part.len())
                    {
                        rows.push(tokens.len() + offset);
                        owners.push(i);
                    }
                }
                new.push(NewTokens::prompt(seqs[i], part.len()));
                tokens.extend(part.iter().map(|id| RowToken::Given(*id)));
            }
            // What nobody wants to see is left out.
            let mut pass = match rows.is_empty() {
                true => Pass::kv_only(layers),
                false => Pass::all(layers, Tail::Hidden),
            };
            self.step(&new, &tokens, &rows, &[], &mut pass);
            let mut push = |row: usize, logits: &[f32]| {
                out[owners[row]].push(logits.to_vec());
                Ok(())
            };
            self.placed.logits(0..rows.len(), &mut push).unwrap();
        }
        self.free(seqs);
        out
    }

    /// Greedy tokens, chosen on the host.
    pub fn greedy(&mut self, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        let seq = self.cache.create();
        let mut new = NewTokens::prompt(seq, prompt.len());
        let layers = self.layers();
        for _ in 0..n {
            let part: Vec<_> =
                ids[ids.len() - new.n..].iter().map(|id| RowToken::Given(*id)).collect();
            let mut pass = Pass::all(layers, Tail::Hidden);
            self.step(&[new], &part, &[new.n - 1], &[], &mut pass);
            let mut next = 0;
            let mut best = |_, logits: &[f32]| {
                next = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                Ok(())
            };
            self.placed.logits(0..1, &mut best).unwrap();
            ids.push(next as u32);
            new = NewTokens::generated(seq, 1);
        }
        self.free(vec![seq]);
        ids.split_off(prompt.len())
    }

    /// Greedy tokens of several sequences as one batch, chosen where the weights are: each
    /// step takes in what the one before has drawn, and is enqueued before that is received.
    pub fn greedy_on_device(&mut self, prompts: &[Vec<u32>], n: usize) -> Vec<Vec<u32>> {
        let seqs: Vec<_> = prompts.iter().map(|_| self.cache.create()).collect();
        let mut out: Vec<Vec<u32>> = prompts.iter().map(|_| Vec::new()).collect();
        // Slots need not be in the order of the sequences.
        let slots: Vec<u32> = (0..seqs.len() as u32).rev().collect();
        let choices: Vec<_> = slots.iter().map(|slot| Choice::greedy(*slot)).collect();
        let layers = self.layers();
        for i in 0..n {
            let (new, tokens): (Vec<_>, Vec<_>) = match i {
                0 => (
                    seqs.iter().zip(prompts).map(|(s, p)| NewTokens::prompt(*s, p.len())).collect(),
                    prompts.concat().into_iter().map(RowToken::Given).collect(),
                ),
                _ => (
                    seqs.iter().map(|seq| NewTokens::generated(*seq, 1)).collect(),
                    slots.iter().map(|slot| RowToken::Drawn(*slot)).collect(),
                ),
            };
            let ends = new.iter().scan(0, |end, new| {
                *end += new.n;
                Some(*end - 1)
            });
            let rows: Vec<usize> = ends.collect();
            self.step(&new, &tokens, &rows, &choices, &mut Pass::all(layers, Tail::Draw));
            if i > 0 {
                self.receive(&mut out);
            }
        }
        self.receive(&mut out);
        self.free(seqs);
        out
    }

    fn receive(&mut self, out: &mut [Vec<u32>]) {
        let drawn = self.placed.receive().unwrap();
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
