//! One model with one KV cache: batches in, tokens and logits out. What the service and the
//! evaluations drive.

use super::config::EngineConfig;
use super::loaded::LoadedModel;
use super::memory::{Identity, KvPlan};
use crate::backend::draw::Choice;
use crate::backend::{Capabilities, RowToken, StepInput};
use crate::cache::{KvCache, NewTokens, RowKind, SeqId, Step};
use crate::codec::KvFormat;
use crate::error::{Error, Result};
use crate::model::{KvOptions, Observer, Pass, Tail, cache_config};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A loaded model, its cache and its buffers.
pub struct Runner {
    model: LoadedModel,
    capabilities: Capabilities,
    config: EngineConfig,
    cache: KvCache,
    options: KvOptions,
    token_bytes_16_bit: u64,
    /// Steps whose tokens were not received yet.
    in_flight: usize,
    /// Bytes that the sequences of the last step referred to while it was under way.
    bytes: Vec<(SeqId, u64)>,
}

/// One sequence's share of a batch.
#[derive(Clone, Debug)]
pub struct Share {
    /// The sequence.
    pub seq: SeqId,
    /// Its new tokens.
    pub tokens: Vec<RowToken>,
    /// What they are.
    pub kind: RowKind,
    /// What is wanted of them.
    pub want: Want,
}

/// What is wanted of a share. Of a batch either tokens or hidden states can be.
#[derive(Clone, Debug)]
pub enum Want {
    /// Nothing but its keys and values.
    Nothing,
    /// The hidden states of rows, counted within the share, for [`Runner::logits`].
    Rows(Range<usize>),
    /// The token after the last.
    Token(Choice),
}

impl Share {
    /// Tokens of a prompt.
    pub fn prompt(seq: SeqId, ids: &[u32], want: Want) -> Self {
        let tokens = ids.iter().map(|id| RowToken::Given(*id)).collect();
        Self { seq, tokens, kind: RowKind::Prompt, want }
    }

    /// Generated tokens.
    pub fn generated(seq: SeqId, tokens: Vec<RowToken>, want: Want) -> Self {
        Self { seq, tokens, kind: RowKind::Generated, want }
    }
}

impl Runner {
    /// Prepares the arenas.
    ///
    /// # Errors
    /// [`Error::Config`], or [`Error::Unsupported`] for a head dimension that
    /// the kernels lack.
    pub fn new(mut model: LoadedModel, config: EngineConfig) -> Result<Self> {
        let Prepared { cache, options, token_bytes_16_bit } = prepare(&mut model, &config)?;
        let capabilities = model.placed.capabilities();
        Ok(Self {
            model,
            capabilities,
            config,
            cache,
            options,
            token_bytes_16_bit,
            in_flight: 0,
            bytes: Vec::new(),
        })
    }

    /// Ends all sequences and starts anew with another configuration; the weights
    /// stay. Sequence ids from before are void. On an error of the configuration nothing
    /// changes; after one of the device's memory there is no cache until this succeeds.
    ///
    /// # Errors
    /// As [`new`](Self::new); what went wrong in a step that was still under way.
    pub fn reconfigure(&mut self, config: EngineConfig) -> Result<()> {
        while self.in_flight > 0 {
            self.receive()?;
        }
        let Prepared { cache, options, token_bytes_16_bit } = prepare(&mut self.model, &config)?;
        (self.config, self.cache, self.options) = (config, cache, options);
        self.token_bytes_16_bit = token_bytes_16_bit;
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// What its device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
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

    /// Bytes of blocks that the device has in use.
    pub fn kv_bytes(&self) -> u64 {
        self.model.placed.kv_bytes()
    }

    /// Bytes that `tokens` take in 16 bits.
    pub fn bytes_16_bit(&self, tokens: usize) -> u64 {
        tokens as u64 * self.token_bytes_16_bit
    }

    /// The most bytes that a sequence referred to during the last step, which it was in.
    pub fn peak_of(&self, seq: SeqId) -> u64 {
        self.bytes.iter().find(|(of, _)| *of == seq).map_or(0, |(_, bytes)| *bytes)
    }

    /// Checks that a prompt and its answer fit the model and the budget, beside what is
    /// held.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`] or [`Error::KvBudget`].
    pub fn admit(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let tokens = self.model.check_context(prompt, max_tokens)?;
        let held = self.cache.held_bytes();
        let needed = held + self.cache.bytes_for(tokens, self.config.prefill_chunk);
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

    /// Ends a sequence. Its memory is free for the next step, and comes back to the device
    /// with that or with [`release`](Self::release).
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn free(&mut self, seq: SeqId) -> Result<()> {
        self.cache.free(seq)
    }

    /// Gives memory back that is free, where no step is to follow soon.
    ///
    /// # Errors
    /// Of the device.
    pub fn release(&mut self) -> Result<()> {
        let step = self.cache.release();
        self.execute(step, &[], None)
    }

    /// Computes new tokens of sequences in one step. On a device the step is enqueued and
    /// need not be done on return. On an error all sequences are as before.
    ///
    /// # Errors
    /// [`Error::KvBudget`]; [`Error::Misuse`] for an unknown token, a choice out of range,
    /// and a batch of which both tokens and hidden states are wanted.
    pub fn submit(&mut self, batch: &[Share]) -> Result<()> {
        let new: Vec<_> = (batch.iter())
            .map(|share| NewTokens { seq: share.seq, n: share.tokens.len(), kind: share.kind })
            .collect();
        let step = self.cache.prepare(&new)?;
        self.execute(step, batch, None)
    }

    /// Computes a stretch of a prompt in one step, watched.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); the observer's.
    pub fn watch(&mut self, seq: SeqId, ids: &[u32], observer: &mut dyn Observer) -> Result<()> {
        let step = self.cache.prepare(&[NewTokens::prompt(seq, ids.len())])?;
        self.execute(step, &[Share::prompt(seq, ids, Want::Nothing)], Some(observer))
    }

    /// Does a step's work within the books.
    fn execute(
        &mut self,
        step: Step,
        batch: &[Share],
        observer: Option<&mut dyn Observer>,
    ) -> Result<()> {
        let bytes = |seq: SeqId| self.cache.bytes_of(seq).unwrap_or(0);
        self.bytes = step.seqs.iter().map(|share| (share.seq, bytes(share.seq))).collect();
        let done = self.run(&step, batch, observer);
        match &done {
            Ok(()) => {
                let accepted: Vec<_> = step.seqs.iter().map(|seq| seq.new_tokens).collect();
                self.cache.commit(step, &accepted)?;
            }
            Err(_) => self.cache.abort(step),
        }
        done
    }

    fn run(
        &mut self,
        step: &Step,
        batch: &[Share],
        observer: Option<&mut dyn Observer>,
    ) -> Result<()> {
        let (mut tokens, mut rows, mut choices) = (Vec::new(), Vec::new(), Vec::new());
        for share in batch {
            let first = tokens.len();
            tokens.extend_from_slice(&share.tokens);
            match &share.want {
                Want::Nothing => {}
                Want::Rows(wanted) => rows.extend(wanted.clone().map(|row| first + row)),
                Want::Token(choice) => {
                    rows.push(tokens.len() - 1);
                    choices.push(choice.clone());
                }
            }
        }
        if !choices.is_empty() && choices.len() != rows.len() {
            let what = "either tokens or hidden states can be wanted of a batch";
            return Err(Error::misuse("batch", what));
        }
        let placed = &mut self.model.placed;
        let layers = placed.config().layers;
        placed.begin(&StepInput { step, tokens: &tokens, rows: &rows, choices: &choices })?;
        if batch.is_empty() {
            return Ok(());
        }
        let mut pass = match (rows.is_empty(), choices.is_empty()) {
            _ if observer.is_some() => Pass::all(layers, Tail::Hidden),
            (true, _) => Pass::kv_only(layers),
            (false, true) => Pass::all(layers, Tail::Hidden),
            (false, false) => Pass::all(layers, Tail::Draw),
        };
        pass.observer = observer.map(|observer| observer as &mut dyn Observer);
        placed.forward(&mut pass)?;
        self.in_flight += usize::from(!choices.is_empty());
        Ok(())
    }

    /// Steps whose tokens were not received yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The tokens of the earliest step of which tokens were wanted and that was not asked
    /// for yet, in the order of its shares; none where the logits were no numbers to choose
    /// from. Waits for that step alone.
    ///
    /// # Errors
    /// What went wrong in the step.
    pub fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.model.placed.receive()
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
        self.model.placed.logits(range, &mut f)
    }

    /// Computes a prompt chunk by chunk and leaves the hidden state of its last
    /// token for [`logits`](Self::logits).
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` is set between chunks; anything that
    /// [`submit`](Self::submit) reports.
    pub fn prefill(&mut self, seq: SeqId, ids: &[u32], cancel: &AtomicBool) -> Result<()> {
        let mut left = ids.len();
        for chunk in ids.chunks(self.config.prefill_chunk) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            left -= chunk.len();
            let last = chunk.len() - 1;
            let want = if left == 0 { Want::Rows(last..last + 1) } else { Want::Nothing };
            self.submit(&[Share::prompt(seq, chunk, want)])?;
        }
        Ok(())
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
    let placed = &mut model.placed;
    let (free, can) = (placed.free_memory()?, placed.capabilities());
    let (name, fingerprint) = (&model.name, &model.fingerprint);
    let of = Identity { config: placed.config(), name, fingerprint };
    let KvPlan { options, groups, budget, .. } =
        KvPlan::new(of, config, can.element, can.mixed_formats, free)?;
    let cache = KvCache::new(cache_config(&groups, budget))?;
    placed.set_arena(&groups, cache.classes(), budget)?;
    let token_bytes_16_bit =
        groups.iter().map(|g| (g.layers * g.kv_heads * g.geometry.row_bytes()) as u64).sum();
    Ok(Prepared { cache, options, token_bytes_16_bit })
}
