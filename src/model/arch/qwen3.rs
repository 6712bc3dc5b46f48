//! Qwen3 (Yang et al. 2025): an RMS norm on each query and key head.

use super::decoder::{NAMES, layers, plain, unchanged};
use crate::error::Result;
use crate::model::config::{Arch, ModelConfig};
use crate::model::files::gguf::Gguf;
use crate::model::files::gguf_config;
use crate::model::files::hf_config::{JsonDefaults, Sliding, decoder};
use crate::model::files::json::Fields;

pub(super) static QWEN3: Arch = Arch {
    name: "qwen3",
    gguf: Some("qwen3"),
    from_json,
    from_gguf,
    layers,
    names: &NAMES,
    gguf_change: unchanged,
    json_change: plain,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = JsonDefaults {
        head_dim: Some(128),
        kv_heads: Some(32),
        context: 32_768,
        sliding: Sliding::FromLayer(28),
        ..JsonDefaults::default()
    };
    Ok(ModelConfig { qk_norm: true, ..decoder(fields, &QWEN3, &defaults)? })
}

fn from_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    Ok(ModelConfig { qk_norm: true, ..gguf_config::decoder(gguf, &QWEN3, "qwen3")? })
}
