//! Mistral (Jiang et al. 2023): Llama with a sliding window on every layer.

use super::Arch;
use super::decoder::{NAMES, layers, plain};
use super::llama::interleaved;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::gguf::Gguf;
use crate::model::gguf_config;
use crate::model::hf_config::{Fields, JsonDefaults, Sliding, decoder};

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
