//! A whole model of random weights on a device, with sequences of any length.

use crate::random::Random;
use crate::shape::{ModelShape, RandomWeights, elements};
use kvfold::Result;
use kvfold::backend::cuda::element::Element;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::draw::Choice;
use kvfold::backend::driver::Device;
use kvfold::backend::{RowToken, StepInput};
use kvfold::cache::{CopyBlock, KvCache, NewTokens, SeqId, Step};
use kvfold::codec::KvFormat;
use kvfold::model::{Graph, KvOptions, Model, Pass, Placed, Tail, cache_config, kv_groups};
use std::time::Instant;

/// Tokens of a prompt that are computed at once.
pub const CHUNK: usize = 2048;
/// Steps before those that are timed: the first runs, the second is captured.
pub const WARM_UP: usize = 4;

/// A model on a device, and its cache.
pub struct Subject<T: Element> {
    placed: Placed<CudaBackend<T>>,
    cache: KvCache,
}

/// What decoding gave.
pub struct Decoded {
    /// Seconds a step, by the host's clock.
    pub seconds: f64,
    /// Tokens of each step, one a sequence.
    pub tokens: Vec<Vec<Option<u32>>>,
}

/// Bytes that weights take on the device.
pub fn weight_bytes<T>(shape: &ModelShape) -> Result<u64> {
    Ok(elements(&shape.config()?) * size_of::<T>() as u64)
}

impl<T: Element> Subject<T> {
    pub fn new(shape: &ModelShape, device: &Device) -> Result<Self> {
        let backend = CudaBackend::<T>::new(device)?;
        let config = shape.config()?;
        let mut weights = RandomWeights::new(&config);
        let graph = Graph::with_weights(config, &backend, &mut weights)?;
        let mut placed = Placed::new(backend, graph)?;
        let cache = configure(&mut placed, KvFormat::uniform(T::CODEC), 0)?;
        Ok(Self { placed, cache })
    }

    /// The backend.
    pub fn backend(&self) -> &CudaBackend<T> {
        self.placed.backend()
    }

    /// Bytes of the device that KV memory could have.
    pub fn free_memory(&self) -> Result<Option<u64>> {
        self.placed.free_memory()
    }

    /// The backend, to set it up.
    pub fn backend_mut(&mut self) -> &mut CudaBackend<T> {
        self.placed.backend_mut()
    }

    /// Bytes of KV memory for `batch` sequences that grow to `tokens`, and for what is in
    /// two forms meanwhile: chunks of a prompt, and the hot pages of forks.
    pub fn kv_bytes(&self, format: KvFormat, batch: usize, tokens: usize) -> Result<u64> {
        let groups = kv_groups(self.placed.config(), &KvOptions::new(format));
        let books = KvCache::new(cache_config(&groups, u64::MAX))?;
        let hot_block: usize = (groups.iter())
            .map(|g| g.layers * g.kv_heads * g.geometry.page_bytes(KvFormat::uniform(format.hot())))
            .sum();
        let hot_blocks = 6 * batch + 2 * (CHUNK.min(tokens) / 64 + 2);
        Ok(batch as u64 * books.bytes_for(tokens, 64) + (hot_blocks * hot_block) as u64)
    }

    /// Starts anew, with memory of `budget` bytes for sequences in `format`.
    pub fn configure(&mut self, format: KvFormat, budget: u64) -> Result<()> {
        // Of a cell that was given up.
        while self.placed.receive().is_ok() {}
        self.cache = configure(&mut self.placed, format, budget)?;
        Ok(())
    }

    /// Computes a prompt of `tokens` random tokens, and gives `batch` sequences of it,
    /// each with memory of its own: the first one's blocks are copied to the others as
    /// they are written.
    pub fn prompt(&mut self, tokens: usize, batch: usize) -> Result<Vec<SeqId>> {
        let seqs: Vec<_> = (0..batch).map(|_| self.cache.create()).collect();
        let mut random = Random::new(11);
        let vocab = self.placed.config().vocab;
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(vocab) as u32).collect();
        for chunk in ids.chunks(CHUNK) {
            let n = chunk.len();
            let step = self.cache.prepare(&[(seqs[0], n)])?;
            let tokens: Vec<_> = chunk.iter().map(|id| RowToken::Given(*id)).collect();
            self.run(&step, &tokens, &[n - 1], &[Choice::greedy(0)])?;
            for &twin in &seqs[1..] {
                // A step that computes nothing and copies what the first has written.
                let mut books = self.cache.prepare(&[(twin, n)])?;
                let mut copies = self.cache.release();
                copies.copies = written(&step, &books);
                copies.frees = std::mem::take(&mut books.frees);
                let nothing = StepInput { step: &copies, tokens: &[], rows: &[], choices: &[] };
                self.placed.begin(&nothing)?;
                self.cache.commit(copies, &[])?;
                self.cache.commit(books, &[n])?;
            }
            self.cache.commit(step, &[n])?;
            self.placed.receive()?;
        }
        Ok(seqs)
    }

    /// Seconds that a prompt takes, the first token drawn and received.
    pub fn time_prompt(&mut self, tokens: usize) -> Result<(f64, Vec<SeqId>)> {
        let start = Instant::now();
        let seqs = self.prompt(tokens, 1)?;
        Ok((start.elapsed().as_secs_f64(), seqs))
    }

    /// Decodes greedily on forks of `base`, as an engine does: each step takes in what
    /// the one before has drawn, and is enqueued before that is received. `base` stays
    /// as it is.
    pub fn decode(&mut self, base: &[SeqId], steps: usize) -> Result<Decoded> {
        let seqs = base.iter().map(|&s| self.cache.fork(s)).collect::<Result<Vec<_>>>()?;
        let requests: Vec<_> = seqs.iter().map(|&seq| NewTokens::generated(seq, 1)).collect();
        let slots = 0..seqs.len() as u32;
        // Sequences differ from here on.
        let first: Vec<_> = slots.clone().map(|slot| RowToken::Given(slot + 1)).collect();
        let drawn: Vec<_> = slots.clone().map(RowToken::Drawn).collect();
        let rows: Vec<usize> = (0..seqs.len()).collect();
        let choices: Vec<_> = slots.map(Choice::greedy).collect();
        let accepted = vec![1; seqs.len()];
        let mut tokens = Vec::new();
        let mut start = Instant::now();
        for i in 0..WARM_UP + steps {
            if i == WARM_UP {
                tokens.push(self.placed.receive()?);
                start = Instant::now();
            }
            let step = self.cache.prepare(&requests)?;
            self.run(&step, if i == 0 { &first } else { &drawn }, &rows, &choices)?;
            self.cache.commit(step, &accepted)?;
            if i != 0 && i != WARM_UP {
                tokens.push(self.placed.receive()?);
            }
        }
        tokens.push(self.placed.receive()?);
        let seconds = start.elapsed().as_secs_f64() / steps as f64;
        self.free(&seqs)?;
        Ok(Decoded { seconds, tokens })
    }

    /// Lets sequences go.
    pub fn free(&mut self, seqs: &[SeqId]) -> Result<()> {
        for &seq in seqs {
            self.cache.free(seq)?;
        }
        Ok(())
    }

    /// Bytes of KV blocks that sequences hold.
    pub fn held(&self) -> u64 {
        self.cache.held_bytes()
    }

    /// Computes a step and draws.
    fn run(
        &mut self,
        step: &Step,
        tokens: &[RowToken],
        rows: &[usize],
        choices: &[Choice],
    ) -> Result<()> {
        self.placed.begin(&StepInput { step, tokens, rows, choices })?;
        let layers = self.placed.config().layers;
        self.placed.forward(&mut Pass::all(layers, Tail::Draw))
    }
}

fn configure<T: Element>(
    placed: &mut Placed<CudaBackend<T>>,
    format: KvFormat,
    budget: u64,
) -> Result<KvCache> {
    let groups = kv_groups(placed.config(), &KvOptions::new(format));
    let cache = KvCache::new(cache_config(&groups, budget))?;
    placed.set_arena(&groups, cache.classes(), budget)?;
    Ok(cache)
}

/// What makes the second step's blocks like those that the first step writes.
fn written(from: &Step, to: &Step) -> Vec<CopyBlock> {
    let blocks = |step: &Step| {
        let seq = &step.seqs[0];
        let appended = seq.appends.iter().map(|append| append.block);
        let sealed = seq.seals.iter().map(|seal| seal.to);
        let mut all: Vec<_> = appended.chain(sealed).collect();
        all.dedup();
        all
    };
    let pairs = blocks(from).into_iter().zip(blocks(to));
    pairs.map(|(from, to)| CopyBlock { from, to }).collect()
}
