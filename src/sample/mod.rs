//! From logits to a token (floor 5).
//!
//! [`SamplingParams`] says how; a [`Sampler`] makes a choice of it for each token, which the
//! backend carries out, on every device with the same arithmetic
//! ([`draw`](crate::backend::draw)). The steps run in the order
//! of Hugging Face `transformers`, each on what the one before it left:
//!
//! ```text
//! logits ─▶ repetition penalty ─▶ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ draw
//! ```
//!
//! Equal logits are ordered by token id, lowest first, and the random numbers
//! come from a seeded generator, so the same logits, history and parameters
//! always give the same tokens.

mod params;
mod sampler;

pub use params::SamplingParams;
pub use sampler::Sampler;
