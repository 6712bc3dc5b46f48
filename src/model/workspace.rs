//! Activations of a model's passes.

use crate::backend::Backend;
use crate::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buffers, allocated once and reused, and where the step in hand has come to.
pub struct Workspace<B: Backend> {
    /// The residual stream.
    pub(super) x: B::Buffer,
    /// What a block reads.
    pub(super) normed: B::Buffer,
    pub(super) qkv: B::Buffer,
    pub(super) attended: B::Buffer,
    pub(super) lse: B::Buffer,
    /// What a block adds to the residual stream.
    pub(super) delta: B::Buffer,
    /// The same before the norm behind the block.
    pub(super) wide: B::Buffer,
    pub(super) gate_up: B::Buffer,
    pub(super) activated: B::Buffer,
    pub(super) hidden: B::Buffer,
    pub(super) wanted: B::Buffer,
    pub(super) logits: B::Buffer,
    pub(super) scratch: [B::Buffer; 2],
    /// Rows of `hidden` that the last pass has left.
    pub(super) hidden_rows: usize,
    pub(super) progress: PassProgress,
    /// Tells workspaces apart.
    pub(super) id: u64,
}

/// Where the step in hand has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassProgress {
    /// Rows whose hidden states are wanted.
    pub wanted: usize,
    /// Whether every sequence has one new token.
    pub single: bool,
    /// The layer with which the next pass may begin.
    pub next: usize,
    /// Whether `delta` is still to be added to the residual stream.
    pub pending: bool,
}

impl<B: Backend> Workspace<B> {
    /// Empty buffers; they grow with the first pass.
    ///
    /// # Errors
    /// Of the device.
    pub fn new(backend: &B) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let empty = || backend.buffer(0, 0);
        Ok(Self {
            x: empty()?,
            normed: empty()?,
            qkv: empty()?,
            attended: empty()?,
            lse: empty()?,
            wide: empty()?,
            delta: empty()?,
            gate_up: empty()?,
            activated: empty()?,
            hidden: empty()?,
            wanted: empty()?,
            logits: empty()?,
            scratch: [empty()?, empty()?],
            hidden_rows: 0,
            progress: PassProgress::default(),
            id: COUNT.fetch_add(1, Ordering::Relaxed),
        })
    }
}
