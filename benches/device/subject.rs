//! A whole model of random weights on a device, with sequences of any length.

use crate::geometry::{Geometry, RandomWeights, elements};
use crate::random::Random;
use kvfold::Result;
use kvfold::backend::cuda::append::Element;
use kvfold::backend::cuda::backend::CudaBackend;
use kvfold::backend::draw::Choice;
use kvfold::backend::driver::Device;
use kvfold::backend::{Backend, Ids};
use kvfold::cache::{CopyBlock, KvCache, SeqId, Step};
use kvfold::codec::KvFormat;
use kvfold::model::{KvOptions, Llama, Workspace, cache_config, kv_groups};
use std::time::Instant;

/// Tokens of a prompt that are computed at once.
pub const CHUNK: usize = 2048;
/// Steps before those that are timed: the first runs, the second is captured.
pub const WARM_UP: usize = 4;

/// A model, its backend and its cache.
pub struct Subject<T: Element> {
    pub backend: CudaBackend<T>,
    model: Llama<CudaBackend<T>>,
    ws: Workspace<CudaBackend<T>>,
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
pub fn weight_bytes<T>(geometry: &Geometry) -> Result<u64> {
    Ok(elements(&geometry.config()?) * size_of::<T>() as u64)
}

impl<T: Element> Subject<T> {
    pub fn new(geometry: &Geometry, device: &Device) -> Result<Self> {
        let mut backend = CudaBackend::<T>::new(device)?;
        let config = geometry.config()?;
        let mut weights = RandomWeights::new(&config);
        let model = Llama::with_weights(config, &backend, &mut weights)?;
        let ws = Workspace::new(&backend)?;
        let cache = configure(&model, &mut backend, KvFormat::uniform(T::CODEC), 0)?;
        Ok(Self { backend, model, ws, cache })
    }

    /// Bytes of KV memory for `batch` sequences that grow to `tokens`, and for what is in
    /// two forms meanwhile: chunks of a prompt, and the hot pages of forks.
    pub fn kv_bytes(&self, format: KvFormat, batch: usize, tokens: usize) -> Result<u64> {
        let groups = kv_groups(self.model.config(), &KvOptions::new(format));
        let books = KvCache::new(cache_config(&groups, u64::MAX))?;
        let hot_block: usize = (groups.iter())
            .map(|g| g.layers * g.kv_heads * KvFormat::uniform(format.hot()).page_bytes(g.head_dim))
            .sum();
        let hot_blocks = 6 * batch + 2 * (CHUNK.min(tokens) / 64 + 2);
        Ok(batch as u64 * books.bytes_for(tokens, 64) + (hot_blocks * hot_block) as u64)
    }

    /// Starts anew, with memory of `budget` bytes for sequences in `format`.
    pub fn configure(&mut self, format: KvFormat, budget: u64) -> Result<()> {
        // Of a cell that was given up.
        while self.backend.receive_tokens().is_ok() {}
        self.cache = configure(&self.model, &mut self.backend, format, budget)?;
        Ok(())
    }

    /// Computes a prompt of `tokens` random tokens, and gives `batch` sequences of it,
    /// each with memory of its own: the first one's blocks are copied to the others as
    /// they are written.
    pub fn prompt(&mut self, tokens: usize, batch: usize) -> Result<Vec<SeqId>> {
        let seqs: Vec<_> = (0..batch).map(|_| self.cache.create()).collect();
        let mut random = Random::new(11);
        let vocab = self.model.config().vocab;
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(vocab) as u32).collect();
        for chunk in ids.chunks(CHUNK) {
            let n = chunk.len();
            let step = self.cache.prepare(&[(seqs[0], n)])?;
            let choice = [Choice::GREEDY];
            let Self { backend, model, ws, .. } = self;
            model.forward_and_sample(backend, ws, &step, Ids::Given(chunk), &[n - 1], &choice)?;
            for &twin in &seqs[1..] {
                let books = self.cache.prepare(&[(twin, n)])?;
                self.backend.copy_blocks(&written(&step, &books))?;
                self.commit(books, &[n])?;
            }
            self.commit(step, &[n])?;
            self.backend.receive_tokens()?;
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
        let requests: Vec<_> = seqs.iter().map(|&seq| (seq, 1)).collect();
        // Sequences differ from here on.
        let first: Vec<u32> = (1..=seqs.len() as u32).collect();
        let rows: Vec<usize> = (0..seqs.len()).collect();
        let choices = vec![Choice::GREEDY; seqs.len()];
        let accepted = vec![1; seqs.len()];
        let mut tokens = Vec::new();
        let mut start = Instant::now();
        for i in 0..WARM_UP + steps {
            if i == WARM_UP {
                tokens.push(self.backend.receive_tokens()?);
                start = Instant::now();
            }
            let step = self.cache.prepare(&requests)?;
            let ids = if i == 0 { Ids::Given(&first) } else { Ids::Drawn(seqs.len()) };
            let Self { backend, model, ws, .. } = self;
            model.forward_and_sample(backend, ws, &step, ids, &rows, &choices)?;
            self.commit(step, &accepted)?;
            if i != 0 && i != WARM_UP {
                tokens.push(self.backend.receive_tokens()?);
            }
        }
        tokens.push(self.backend.receive_tokens()?);
        let seconds = start.elapsed().as_secs_f64() / steps as f64;
        self.free(&seqs)?;
        Ok(Decoded { seconds, tokens })
    }

    /// Lets sequences go.
    pub fn free(&mut self, seqs: &[SeqId]) -> Result<()> {
        for &seq in seqs {
            let free = self.cache.free(seq)?;
            self.backend.free_blocks(&free);
        }
        Ok(())
    }

    /// Bytes of KV blocks that sequences hold.
    pub fn held(&self) -> u64 {
        self.cache.held_bytes()
    }

    fn commit(&mut self, step: Step, accepted: &[usize]) -> Result<()> {
        let free = self.cache.commit(step, accepted)?;
        self.backend.free_blocks(&free);
        Ok(())
    }
}

fn configure<T: Element>(
    model: &Llama<CudaBackend<T>>,
    backend: &mut CudaBackend<T>,
    format: KvFormat,
    budget: u64,
) -> Result<KvCache> {
    let groups = kv_groups(model.config(), &KvOptions::new(format));
    let cache = KvCache::new(cache_config(&groups, budget))?;
    backend.configure_kv(&groups, cache.classes(), budget)?;
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
