//! Owns the bytes and does the arithmetic (floor 3).
//!
//! Models and the engine are written against four traits; they know neither:
//!
//! | trait | what |
//! |---|---|
//! | [`Memory`] | buffers, weights, [`Capabilities`] |
//! | [`Dense`] | products, norms, activations |
//! | [`Kv`] | arenas for the blocks that [`crate::cache`] hands out; append, seal, attend, score |
//! | [`Tokens`] | embedding, and choosing the next token |
//!
//! [`Backend`] is all four. A step is said once, to [`Kv::begin`].

mod capabilities;
pub mod cpu;
pub mod cuda;
mod dense;
pub(crate) mod dequantize;
pub mod draw;
pub mod driver;
pub(crate) mod finite;
mod geometry;
mod kv;
mod kv_group;
mod layout;
mod memory;
pub mod score_pass;
mod tokens;

pub use capabilities::Capabilities;
pub use dense::{Activation, Dense};
pub use geometry::{Geometry, Kernels, MAX_HEAD_DIM};
pub use kv::{Attend, AttendSeq, GraphKey, Kv, RowToken, StepInput, attend_seqs};
pub use kv_group::{KvGroup, LayerIndex, Rope, StreamFormat};
pub use memory::{MatrixBytes, Memory, WeightPolicy};
pub use tokens::Tokens;

/// A device on which a model can run.
pub trait Backend: Tokens {}

impl<B: Tokens> Backend for B {}
