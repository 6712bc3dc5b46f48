//! Model files and what they mean (floor 4).
//!
//! [`Checkpoint::open`] reads a GGUF file or a Hugging Face folder and checks
//! all of it: after that, every tensor the model needs exists, has the shape
//! that [`ModelConfig`] promises and lies wholly inside its file. Above this
//! module there is one set of names (Hugging Face's) and one rotary
//! convention (half-split, "NeoX"), whatever the file used.
//!
//! | file | what it knows |
//! |---|---|
//! | `config.rs` | the numbers of a Llama-family model, rotary frequencies |
//! | `weights.rs` | one tensor as it lies in its file |
//! | `checkpoint.rs` | opening, checking, tensors by name |
//! | `gguf.rs`, `gguf_model.rs` | GGUF: the container, then its meaning |
//! | `hf.rs`, `hf_config.rs` | safetensors folders, then `config.json` |
//! | `tokenizer.rs` | text to ids and back |
//! | `tokenizer_json.rs`, `tokenizer_gguf.rs` | checking a tokenizer's file; reading GGUF's |
//! | `chat.rs` | chat templates |
//! | `kv.rs` | the KV groups of a model |
//! | `llama.rs` | the forward pass, on any backend |
//! | `source.rs` | where its weights come from |
//! | `complaint.rs` | errors that quote a file |

mod calibration;
mod chat;
mod checkpoint;
mod complaint;
mod config;
mod gguf;
mod gguf_model;
mod hf;
mod hf_config;
mod kv;
mod llama;
mod source;
mod tokenizer;
mod tokenizer_gguf;
mod tokenizer_json;
mod weights;

pub use crate::codec::WeightType;
pub use calibration::Calibration;
pub use chat::{ChatTemplate, Message};
pub use checkpoint::{Checkpoint, DtypeCount};
pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, Yarn};
pub use kv::{KvOptions, cache_config, kv_groups};
pub use llama::{Llama, Observed, Observer, Workspace};
pub use source::Weights;
pub use tokenizer::Tokenizer;
pub use weights::RawTensor;
