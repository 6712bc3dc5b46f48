//! Mistral (Jiang et al. 2023): Llama with a sliding window on every layer.

use super::decoder::{NAMES, interleaved, layers, plain};
use crate::error::Result;
use crate::model::config::{Arch, ModelConfig};
use crate::model::files::gguf::Gguf;
use crate::model::files::gguf_config;
use crate::model::files::hf_config::{JsonDefaults, Sliding, decoder};
use crate::model::files::json::Fields;

pub(super) static MISTRAL: Arch = Arch {
    name: "mistral",
    gguf: None,
    from_json,
    from_gguf,
    layers,
    names: &NAMES,
    gguf_change: interleaved,
    json_change: plain,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = JsonDefaults {
        kv_heads: Some(8),
        context: 4096 * 32,
        sliding: Sliding::Always,
        ..JsonDefaults::default()
    };
    decoder(fields, &MISTRAL, &defaults)
}

/// Its files say "llama".
fn from_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    gguf_config::decoder(gguf, &MISTRAL, "llama")
}
