//! kvfold folds a long context into a small KV cache.
//!
//! A runtime for paged attention over compressed KV pages. The floors, from
//! the ground up; a module never imports from a higher one (`ARCHITECTURE.md`):
//!
//! | floor | module | what lives there |
//! |---|---|---|
//! | 0 | [`error`], [`printable`] | the one error type; text that a terminal only shows |
//! | 1 | [`codec`] | numbers to bytes and back, one file per codec |
//! | 2 | [`cache`] | bookkeeping of blocks, streams and runs; owns no bytes |
//! | 3 | [`backend`] | owns the bytes and does the arithmetic |
//! | 4 | [`model`], [`fetch`] | configurations, weights, tokenizers; getting them |
//! | 5 | [`sample`] | from logits to a token |
//! | 6 | [`engine`] | requests, events, metrics |
//! | 7 | [`rag`], [`eval`] | filling the context; measuring quality |
#![deny(missing_docs)]
#![warn(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod cache;
pub mod codec;
pub mod engine;
pub mod error;
pub mod eval;
pub mod fetch;
pub mod model;
pub mod printable;
pub mod rag;
pub mod sample;
mod ticks;

pub use error::{Error, Result};
