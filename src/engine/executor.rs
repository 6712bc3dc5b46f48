//! A model on a backend, whichever they are: what a session drives.

use crate::backend::draw::Choice;
use crate::backend::{Backend, Ids, KvGroup};
use crate::cache::{BlockRef, ClassDesc, Step};
use crate::codec::Codec;
use crate::error::Result;
use crate::model::{Llama, ModelConfig, Workspace};
use std::ops::Range;

/// The same as [`Backend`] and [`Llama`], without their types.
pub(super) trait Executor: Send {
    /// The model's numbers.
    fn config(&self) -> &ModelConfig;
    /// The device in words.
    fn device(&self) -> String;
    /// As [`Backend::element`].
    fn element(&self) -> Option<Codec>;
    /// Whether tokens are better chosen by the backend.
    fn chooses_tokens(&self) -> bool {
        self.element().is_some()
    }
    /// As [`Backend::free_memory`].
    fn free_memory(&self) -> Result<Option<u64>>;
    /// Bytes that the weights keep resident.
    fn weight_bytes(&self) -> u64;

    /// As [`Backend::configure_kv`].
    fn configure_kv(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
    ) -> Result<()>;
    /// As [`Backend::free_blocks`].
    fn free_blocks(&mut self, blocks: &[BlockRef]);

    /// As [`Llama::forward`].
    fn forward(&mut self, step: &Step, ids: &[u32], rows: &[usize]) -> Result<()>;
    /// As [`Llama::forward_and_sample`].
    fn forward_and_sample(
        &mut self,
        step: &Step,
        ids: Ids<'_>,
        rows: &[usize],
        choices: &[Choice],
    ) -> Result<()>;
    /// As [`Backend::receive_tokens`].
    fn receive_tokens(&mut self) -> Result<Vec<Option<u32>>>;
    /// As [`Llama::logits`].
    fn logits(
        &mut self,
        range: Range<usize>,
        f: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;
}

/// A model whose weights are on `backend`.
pub(super) struct On<B: Backend> {
    backend: B,
    model: Llama<B>,
    ws: Workspace<B>,
}

impl<B: Backend> On<B> {
    pub(super) fn new(backend: B, model: Llama<B>) -> Result<Self> {
        let ws = Workspace::new(&backend)?;
        Ok(Self { backend, model, ws })
    }
}

impl<B: Backend + Send> Executor for On<B> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn device(&self) -> String {
        self.backend.name()
    }

    fn element(&self) -> Option<Codec> {
        self.backend.element()
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        self.backend.free_memory()
    }

    fn weight_bytes(&self) -> u64 {
        self.model.weight_bytes(&self.backend)
    }

    fn configure_kv(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
    ) -> Result<()> {
        self.backend.configure_kv(groups, classes, budget)
    }

    fn free_blocks(&mut self, blocks: &[BlockRef]) {
        self.backend.free_blocks(blocks);
    }

    fn forward(&mut self, step: &Step, ids: &[u32], rows: &[usize]) -> Result<()> {
        self.model.forward(&mut self.backend, &mut self.ws, step, ids, rows)
    }

    fn forward_and_sample(
        &mut self,
        step: &Step,
        ids: Ids<'_>,
        rows: &[usize],
        choices: &[Choice],
    ) -> Result<()> {
        let Self { backend, model, ws } = self;
        model.forward_and_sample(backend, ws, step, ids, rows, choices)
    }

    fn receive_tokens(&mut self) -> Result<Vec<Option<u32>>> {
        self.backend.receive_tokens()
    }

    fn logits(
        &mut self,
        range: Range<usize>,
        f: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.model.logits(&self.backend, &mut self.ws, range, f)
    }
}
