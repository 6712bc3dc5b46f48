//! A model on a device, whichever it is.

use super::graph::Graph;
use super::pass::Pass;
use super::workspace::Workspace;
use super::{Checkpoint, ModelConfig};
use crate::backend::{Backend, Capabilities, KvGroup, StepInput, WeightPolicy};
use crate::cache::{ClassDesc, Compaction};
use crate::error::{Error, Result};
use std::ops::Range;

/// A model, its KV arena and its device, without their types.
pub trait Model: Send {
    /// The model's numbers.
    fn config(&self) -> &ModelConfig;
    /// What the device can do.
    fn capabilities(&self) -> Capabilities;
    /// Bytes that the weights keep resident.
    fn weight_bytes(&self) -> u64;
    /// Bytes of the device that a KV arena could have, where that is a limit of its own.
    ///
    /// # Errors
    /// Of the device.
    fn free_memory(&self) -> Result<Option<u64>>;

    /// Lets the KV arena go and makes a new, empty one.
    ///
    /// # Errors
    /// As [`Kv::arena`](crate::backend::Kv::arena); then there is none.
    fn set_arena(&mut self, groups: &[KvGroup], classes: &[ClassDesc], budget: u64) -> Result<()>;
    /// Bytes of KV blocks in use.
    fn kv_bytes(&self) -> u64;
    /// As [`Kv::compact`](crate::backend::Kv::compact).
    ///
    /// # Errors
    /// As there.
    fn compact(&mut self, compaction: &Compaction) -> Result<()>;

    /// Begins a step, whose rows passes compute.
    ///
    /// # Errors
    /// As [`Graph::begin`].
    fn begin(&mut self, input: &StepInput<'_>) -> Result<()>;
    /// Runs the step in hand through layers.
    ///
    /// # Errors
    /// As [`Graph::forward`].
    fn forward(&mut self, pass: &mut Pass<'_>) -> Result<()>;
    /// As [`Graph::logits`].
    ///
    /// # Errors
    /// As there.
    fn logits(
        &mut self,
        range: Range<usize>,
        f: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()>;
    /// As [`Tokens::receive`](crate::backend::Tokens::receive).
    ///
    /// # Errors
    /// As there.
    fn receive(&mut self) -> Result<Vec<Option<u32>>>;
}

/// A model on one kind of device.
pub struct Placed<B: Backend> {
    /// Waits for its work before it goes, like the backend.
    arena: Option<B::Arena>,
    graph: Graph<B>,
    ws: Workspace<B>,
    backend: B,
}

impl<B: Backend> Placed<B> {
    /// Loads a checkpoint to a backend.
    ///
    /// # Errors
    /// As [`Graph::load`].
    pub fn load(checkpoint: &Checkpoint, backend: B, policy: WeightPolicy) -> Result<Self> {
        let graph = Graph::load(checkpoint, &backend, policy)?;
        Self::new(backend, graph)
    }

    /// A model whose weights are on `backend`.
    ///
    /// # Errors
    /// Of the device.
    pub fn new(backend: B, graph: Graph<B>) -> Result<Self> {
        let ws = Workspace::new(&backend)?;
        Ok(Self { arena: None, graph, ws, backend })
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, to set it up.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}

impl<B: Backend + Send> Model for Placed<B> {
    fn config(&self) -> &ModelConfig {
        self.graph.config()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn weight_bytes(&self) -> u64 {
        self.graph.weight_bytes(&self.backend)
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let held = self.arena.as_ref().map_or(0, |arena| self.backend.arena_memory(arena));
        Ok(self.backend.free_memory()?.map(|free| free + held))
    }

    fn set_arena(&mut self, groups: &[KvGroup], classes: &[ClassDesc], budget: u64) -> Result<()> {
        // Two arenas need not fit.
        self.arena = None;
        self.arena = Some(self.backend.arena(groups, classes, budget)?);
        Ok(())
    }

    fn kv_bytes(&self) -> u64 {
        self.arena.as_ref().map_or(0, |arena| self.backend.kv_bytes(arena))
    }

    fn compact(&mut self, compaction: &Compaction) -> Result<()> {
        let arena = self.arena.as_mut().ok_or_else(no_arena)?;
        self.backend.compact(arena, compaction)
    }

    fn begin(&mut self, input: &StepInput<'_>) -> Result<()> {
        let arena = self.arena.as_mut().ok_or_else(no_arena)?;
        self.graph.begin(&mut self.backend, arena, &mut self.ws, input)
    }

    fn forward(&mut self, pass: &mut Pass<'_>) -> Result<()> {
        let arena = self.arena.as_mut().ok_or_else(no_arena)?;
        self.graph.forward(&mut self.backend, arena, &mut self.ws, pass)
    }

    fn logits(
        &mut self,
        range: Range<usize>,
        f: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.graph.logits(&self.backend, &mut self.ws, range, f)
    }

    fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        self.backend.receive()
    }
}

fn no_arena() -> Error {
    Error::NotFound { what: "the KV arena; set one first".into() }
}
