//! The CUDA backend: whole models on one device and one stream.
//!
//! Weights, activations and new KV rows are `T` (f16 or bf16); the residual stream,
//! norms' weights, biases and logits are f32. What comes from the host goes up when a
//! step begins; everything else of a step is enqueued, and a step of single tokens is
//! captured once for each number of sequences and repeated from then on.

mod arena;
mod attention;
mod backend;
mod begun;
mod buffer;
mod dense;
mod kv;
mod memory;
mod repeat;
mod room;
mod score_buffers;
mod score_passes;
mod slots;
mod tokens;

pub use arena::Arena;
pub use backend::CudaBackend;
pub use buffer::Buffer;
