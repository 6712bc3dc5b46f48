//! Model files: containers of tensors, tokenizers, chat templates.
//!
//! | file | what it knows |
//! |---|---|
//! | `checkpoint.rs` | opening, checking, tensors by name |
//! | `gguf.rs`, `gguf_config.rs`, `gguf_model.rs` | GGUF: the container, its numbers, its tensors |
//! | `hf.rs`, `hf_config.rs`, `json.rs` | safetensors folders, then `config.json`, then any JSON |
//! | `tensor.rs` | one tensor as it lies in its file |
//! | `source.rs` | where weights come from |
//! | `tokenizer.rs` | text to ids and back |
//! | `tokenizer_json.rs`, `tokenizer_gguf.rs` | checking a tokenizer's file; reading GGUF's |
//! | `chat/` | chat templates |
//! | `complaint.rs` | errors that quote a file |

mod chat;
mod checkpoint;
pub(super) mod complaint;
pub(super) mod gguf;
pub(super) mod gguf_config;
mod gguf_model;
mod hf;
pub(super) mod hf_config;
pub(super) mod json;
mod source;
pub(super) mod tensor;
mod tokenizer;
mod tokenizer_gguf;
mod tokenizer_json;

pub use chat::{ChatOptions, ChatTemplate, Message, TokenTexts};
pub use checkpoint::{Checkpoint, DtypeCount};
pub(super) use source::FromCheckpoint;
pub use source::Weights;
pub use tensor::RawTensor;
pub use tokenizer::Tokenizer;
