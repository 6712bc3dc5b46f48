//! One model with one KV cache, stepped by hand: what the engine's thread and
//! the evaluations drive.

use super::config::EngineConfig;
use super::loaded::LoadedModel;
use super::memory::{Identity, KvPlan};
use crate::backend::Ids;
use crate::backend::draw::Choice;
use crate::cache::{KvCache, SeqId, Step};
use crate::codec::KvFormat;
use crate::error::{Error, Result};
use crate::model::{KvOptions, cache_config};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A loaded model, its cache and its buffers.
pub struct Session {
    model: LoadedModel,
    config: EngineConfig,
    cache: KvCache,
    options: KvOptions,
    token_bytes_16_bit: u64,
}

impl Session {
    /// Prepares the arenas.
    ///
    /// # Errors
    /// [`Error::Config`], or [`Error::Unsupported`] for a head dimension that
    /// the kernels lack.
    pub fn new(mut model: LoadedModel, config: EngineConfig) -> Result<Self> {
        let Prepared { cache, options, token_bytes_16_bit } = prepare(&mut model, &config)?;
        Ok(Self { model, config, cache, options, token_bytes_16_bit })
    }

    /// Ends all sequences and starts anew with another configuration; the weights
    /// stay. Sequence ids from before are void. On an error of the configuration nothing
    /// changes; after one of the device's memory there is no cache until this succeeds.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn reconfigure(&mut self, config: EngineConfig) -> Result<()> {
        let Prepared { cache, options, token_bytes_16_bit } = prepare(&mut self.model, &config)?;
        (self.config, self.cache, self.options) = (config, cache, options);
        self.token_bytes_16_bit = token_bytes_16_bit;
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

    /// How pages are stored, the device's 16-bit type included.
    pub fn format(&self) -> KvFormat {
        self.options.format
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

    /// Whether tokens are better chosen by the backend
    /// ([`step_and_choose`](Self::step_and_choose)): where logits are far from here.
    pub fn chooses_tokens(&self) -> bool {
        self.model.executor.chooses_tokens()
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
        self.model.executor.free_blocks(&blocks);
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
        self.run(seq, ids.len(), |model, step| model.executor.forward(step, ids, rows))
    }

    /// As [`step`](Self::step), then lets the backend choose the token after the last:
    /// [`receive`](Self::receive) gives it. On a device the step is enqueued and need not
    /// be done on return; the next one can take in the token before it is received.
    ///
    /// # Errors
    /// As [`step`](Self::step); [`Error::Config`] for a choice that is out of range, and
    /// for [`Ids::Drawn`] if the step before chose no token.
    pub fn step_and_choose(&mut self, seq: SeqId, ids: Ids<'_>, choice: Choice) -> Result<()> {
        let rows = [ids.len().saturating_sub(1)];
        self.run(seq, ids.len(), |model, step| {
            model.executor.forward_and_sample(step, ids, &rows, &[choice])
        })
    }

    /// The token of the earliest step that chose one and was not asked for yet; waits for
    /// that step alone.
    ///
    /// # Errors
    /// [`Error::Sampling`] if there was no logit above −∞; what went wrong in the step.
    pub fn receive(&mut self) -> Result<u32> {
        let tokens = self.model.executor.receive_tokens()?;
        tokens.first().copied().flatten().ok_or_else(|| {
            Error::Sampling(
                "no logit is above -inf; if they overflowed, choose another 16-bit type (--dtype bf16)"
                    .into(),
            )
        })
    }

    /// Does a step's work within the books.
    fn run<T>(
        &mut self,
        seq: SeqId,
        tokens: usize,
        work: impl FnOnce(&mut LoadedModel, &Step) -> Result<T>,
    ) -> Result<T> {
        let step = self.cache.prepare(&[(seq, tokens)])?;
        let done = work(&mut self.model, &step);
        let free = match done {
            Ok(_) => self.cache.commit(step, &[tokens])?,
            Err(_) => self.cache.abort(step),
        };
        self.model.executor.free_blocks(&free);
        done
    }

    /// Calls `f(row, logits)` for rows `range` of the hidden states that the last
    /// step left.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn logits(
        &mut self,
        range: Range<usize>,
        mut f: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.model.executor.logits(range, &mut f)
    }
}

/// What [`prepare`] has made.
struct Prepared {
    cache: KvCache,
    options: KvOptions,
    token_bytes_16_bit: u64,
}

/// An empty cache for `config` and the arenas for it.
fn prepare(model: &mut LoadedModel, config: &EngineConfig) -> Result<Prepared> {
    let executor = &mut model.executor;
    let free = executor.free_memory()?;
    let (name, fingerprint) = (&model.name, &model.fingerprint);
    let of = Identity { config: executor.config(), name, fingerprint };
    let KvPlan { options, groups, budget, .. } = KvPlan::new(of, config, executor.element(), free)?;
    let cache = KvCache::new(cache_config(&groups, budget))?;
    executor.configure_kv(&groups, cache.classes(), budget)?;
    let token_bytes_16_bit =
        groups.iter().map(|g| (g.layers * g.kv_heads * g.head_dim * 4) as u64).sum();
    Ok(Prepared { cache, options, token_bytes_16_bit })
}
