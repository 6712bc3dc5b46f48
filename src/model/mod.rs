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
//! | `files/` | GGUF, safetensors, tokenizers, chat templates |
//! | `config.rs`, `rope.rs` | the numbers of a model; rotary frequencies |
//! | `context.rs` | another context than a file says |
//! | `part.rs`, `spec.rs` | what a tensor is for; what a layer is made of |
//! | `arch/` | one file an architecture |
//! | `blocks/` | attention, MLP: what layers are built of, on any backend |
//! | `graph.rs` | a model's layers on a backend: one forward pass |
//! | `pass.rs`, `observe.rs` | which layers, what follows, who looks |
//! | `workspace.rs`, `placed.rs` | activations; a model on a device, without its type |
//! | `kv.rs`, `calibration.rs` | the KV groups of a model; formats chosen for its heads |
//! | `outliers.rs` | key biases that some formats cannot hold |
//! | `fingerprint.rs` | what tells models apart |

mod arch;
mod blocks;
mod calibration;
mod config;
mod context;
mod files;
mod fingerprint;
mod graph;
mod kv;
mod observe;
mod outliers;
mod part;
mod pass;
mod placed;
mod rope;
mod spec;
mod workspace;

pub(crate) use arch::{check_gguf_architecture, check_gguf_head};

pub use crate::codec::WeightType;
pub use calibration::Calibration;
pub use config::{Arch, ModelConfig};
pub use context::{ContextOptions, RopeStretch};
pub(crate) use files::mapped::{MappedFile, digest};
pub use files::{
    ChatOptions, ChatTemplate, Checkpoint, DtypeCount, Message, RawTensor, TokenTexts, Tokenizer,
    Weights,
};
pub use fingerprint::Fingerprint;
pub use graph::Graph;
pub use kv::{KvOptions, cache_config, kv_groups};
pub use observe::{Attended, Observer};
pub use outliers::KeyOutlier;
pub use part::{Part, TensorSpec};
pub use pass::{Pass, Tail};
pub use placed::{Model, Placed};
pub use rope::{RopeConfig, RopeScaling, Yarn};
pub use spec::{AttentionSpec, GatedSpec, LayerSpec, Mixer, Mlp};
pub use workspace::Workspace;
