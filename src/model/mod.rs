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
//! | `config.rs` | the numbers of a model, rotary frequencies |
//! | `part.rs`, `spec.rs` | what a tensor is for; what a layer is made of |
//! | `arch/` | one file an architecture |
//! | `blocks/` | attention, MLP: what layers are built of, on any backend |
//! | `graph.rs` | a model's layers on a backend: one forward pass |
//! | `pass.rs`, `observe.rs` | which layers, what follows, who looks |
//! | `workspace.rs`, `placed.rs` | activations; a model on a device, without its type |
//! | `weights.rs` | one tensor as it lies in its file |
//! | `checkpoint.rs` | opening, checking, tensors by name |
//! | `gguf.rs`, `gguf_config.rs`, `gguf_model.rs` | GGUF: the container, its numbers, its tensors |
//! | `hf.rs`, `hf_config.rs` | safetensors folders, then `config.json` |
//! | `tokenizer.rs` | text to ids and back |
//! | `tokenizer_json.rs`, `tokenizer_gguf.rs` | checking a tokenizer's file; reading GGUF's |
//! | `chat.rs` | chat templates |
//! | `kv.rs` | the KV groups of a model |
//! | `source.rs` | where weights come from |
//! | `complaint.rs` | errors that quote a file |

mod arch;
mod blocks;
mod calibration;
mod chat;
mod checkpoint;
mod complaint;
mod config;
mod gguf;
mod gguf_config;
mod gguf_model;
mod graph;
mod hf;
mod hf_config;
mod kv;
mod observe;
mod part;
mod pass;
mod placed;
mod source;
mod spec;
mod tokenizer;
mod tokenizer_gguf;
mod tokenizer_json;
mod weights;
mod workspace;

pub use crate::codec::WeightType;
pub use arch::Arch;
pub use calibration::Calibration;
pub use chat::{ChatTemplate, Message};
pub use checkpoint::{Checkpoint, DtypeCount};
pub use config::{ModelConfig, RopeConfig, RopeScaling, Yarn};
pub use graph::Graph;
pub use kv::{KvOptions, cache_config, kv_groups};
pub use observe::{Attended, Observer};
pub use part::{Part, TensorSpec};
pub use pass::{Pass, Tail};
pub use placed::{Model, Placed};
pub use source::Weights;
pub use spec::{AttentionSpec, GatedSpec, LayerSpec, Mixer, Mlp};
pub use tokenizer::Tokenizer;
pub use weights::RawTensor;
pub use workspace::Workspace;
