//! Model files: containers of tensors, tokenizers, chat templates.
//!
//! | file | what it knows |
//! |---|---|
//! | `checkpoint.rs` | opening, checking, tensors by name |
//! | `gguf.rs`, `gguf_header.rs`, `gguf_split.rs` | GGUF: the container, its header, its parts |
//! | `gguf_config.rs`, `gguf_model.rs` | GGUF: a model's numbers, its tensors |
//! | `hf.rs`, `hf_weights.rs` | Hugging Face folders, their safetensors |
//! | `hf_config.rs`, `json.rs` | `config.json`, then any JSON |
//! | `mapped.rs`, `tensor.rs` | files of weights; one tensor as it lies in its file |
//! | `sniff.rs` | what a file is that is not what its name promises |
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
pub(crate) mod gguf_header;
mod gguf_model;
mod gguf_split;
mod hf;
pub(super) mod hf_config;
mod hf_weights;
pub(super) mod json;
pub(crate) mod mapped;
mod sniff;
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
