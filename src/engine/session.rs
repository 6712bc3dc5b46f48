//! One model with one KV cache, stepped by hand: what the engine's thread and
//! the evaluations drive.

use super::config::EngineConfig;
use super::loaded::LoadedModel;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::cache::{KvCache, SeqId};
use crate::error::{Error, Result};
use crate::model::{Workspace, cache_config};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A loaded model, its cache and its buffers.
pub struct Session {
    model: LoadedModel,
    config: EngineConfig,
    cache: KvCache,
    ws: Workspace<CpuBackend>,
    token_bytes_16_bit: u64,
}

impl Session {
    /// Prepares the arenas.
    ///
    /// # Errors
    /// [`Error::Config`], or [`Error::Unsupported`] for a head dimension that
    /// the kernels lack.
    pub fn new(mut model: LoadedModel, config: EngineConfig) -> Result<Self> {
        let (cache, token_bytes_16_bit) = prepare(&mut model, &config)?;
        let ws = Workspace::new(&model.backend)?;
        Ok(Self { model, config, cache, ws, token_bytes_16_bit })
    }

    /// Ends all sequences and starts anew with another configuration; the weights
    /// stay. Sequence ids from before are void. On an error nothing changes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reconfigure(&mut self, config: EngineConfig) -> Result<()> {
        (self.cache, self.token_bytes_16_bit) = prepare(&mut self.model, &config)?;
        self.config = config;
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// The configuration.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The books of the cache.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Bytes that `tokens` take in 16 bits.
    pub fn bytes_16_bit(&self, tokens: usize) -> u64 {
        tokens as u64 * self.token_bytes_16_bit
    }

    /// Checks that a prompt and its answer fit the model and the budget.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`] or [`Error::KvBudget`].
    pub fn admit(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let limit = self.model.context();
        if prompt + max_tokens > limit {
            let reserved = max_tokens;
            return Err(Error::ContextTooLong { tokens: prompt, limit, reserved });
        }
        let held = self.cache.held_bytes();
        let needed = held + self.cache.bytes_for(prompt + max_tokens, self.config.prefill_chunk);
        let budget = self.cache.budget();
        if needed > budget {
            return Err(Error::KvBudget { needed, held, budget });
        }
        Ok(())
    }

    /// A new, empty sequence.
    pub fn create(&mut self) -> SeqId {
        self.cache.create()
    }

    /// Releases a sequence and its memory.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn free(&mut self, seq: SeqId) -> Result<()> {
        let blocks = self.cache.free(seq)?;
        self.model.backend.free_blocks(&blocks);
        Ok(())
    }

    /// Computes a prompt chunk by chunk and leaves the hidden state of its last
    /// token for [`logits`](Self::logits).
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` is set between chunks; anything that
    /// [`step`](Self::step) reports.
    pub fn prefill(&mut self, seq: SeqId, ids: &[u32], cancel: &AtomicBool) -> Result<()> {
        for chunk in ids.chunks(self.config.prefill_chunk) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.step(seq, chunk, &[chunk.len() - 1])?;
        }
        Ok(())
    }

    /// Appends tokens to a sequence in one forward pass and leaves the hidden
    /// states of `rows` (indices into `ids`) for [`logits`](Self::logits). On an
    /// error the sequence is as before.
    ///
    /// # Errors
    /// [`Error::KvBudget`], [`Error::Config`] for an unknown token.
    pub fn step(&mut self, seq: SeqId, ids: &[u32], rows: &[usize]) -> Result<()> {
        let step = self.cache.prepare(&[(seq, ids.len())])?;
        let LoadedModel { model, backend, .. } = &mut self.model;
        match model.forward(backend, &mut self.ws, &step, ids, rows) {
            Ok(()) => {
                let free = self.cache.commit(step, &[ids.len()])?;
                backend.free_blocks(&free);
                Ok(())
            }
            Err(error) => {
                let free = self.cache.abort(step);
                backend.free_blocks(&free);
                Err(error)
            }
        }
    }

    /// Calls `f(row, logits)` for rows `range` of the hidden states that the last
    /// step left.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn logits(
        &mut self,
        range: Range<usize>,
        f: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let LoadedModel { model, backend, .. } = &self.model;
        model.logits(backend, &mut self.ws, range, f)
    }
}

/// An empty cache for `config`, the arenas for it, and the bytes that a token
/// takes in 16 bits.
fn prepare(model: &mut LoadedModel, config: &EngineConfig) -> Result<(KvCache, u64)> {
    config.validate()?;
    let groups = model.model.kv_groups(&config.kv_options()?);
    let unlimited = KvCache::new(cache_config(&groups, u64::MAX))?;
    let budget = match config.kv_budget {
        Some(bytes) => bytes,
        None => unlimited.bytes_for(model.context(), config.prefill_chunk),
    };
    let cache = KvCache::new(cache_config(&groups, budget))?;
    model.backend.configure_kv(&groups, cache.classes())?;
    let token_bytes_16_bit =
        groups.iter().map(|g| (g.layers * g.kv_heads * g.head_dim * 4) as u64).sum();
    Ok((cache, token_bytes_16_bit))
}
