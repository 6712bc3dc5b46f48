//! Filling the context from documents (floor 7).
//!
//! ```text
//! files, folders ─▶ documents ─▶ chunk ─▶ Retriever::index
//!                                              │ search(question)
//!                         context ◀─ pack ◀────┘ hits
//! ```
//!
//! [`load`] reads the files, [`chunk()`] cuts them into [`Passage`]s along their
//! headings and paragraphs, a [`Retriever`] finds the passages that have to do
//! with a question, and [`pack()`] puts as many as fit, in document order, into
//! a budget of tokens. [`fill`] does all but the first in one call.

mod blocks;
mod bm25;
mod chunk;
mod documents;
mod encoding;
mod fill;
mod formats;
mod letters;
mod pack;
mod retriever;
mod skip;
mod terms;

pub use bm25::Bm25;
pub use chunk::{ChunkOptions, chunk};
pub use documents::{Document, Loaded, load, read_document};
pub use fill::fill;
pub use formats::FileKind;
pub use pack::{Packed, PackedPiece, pack};
pub use retriever::{Hit, Passage, PassageId, Retriever};
pub use skip::{SkipReason, Skipped};
