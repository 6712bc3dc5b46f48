//! Qwen2 and 2.5 (Yang et al. 2024): biases on q, k and v.

use super::decoder::{NAMES, layers, plain, unchanged};
use crate::error::Result;
use crate::model::config::{Arch, ModelConfig};
use crate::model::files::gguf::Gguf;
use crate::model::files::gguf_config;
use crate::model::files::hf_config::{JsonDefaults, Sliding, decoder};
use crate::model::files::json::Fields;

pub(super) static QWEN2: Arch = Arch {
    name: "qwen2",
    gguf: Some("qwen2"),
    from_json,
    from_gguf,
    layers,
    names: &NAMES,
    gguf_change: unchanged,
    json_change: plain,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    let defaults = JsonDefaults {
        kv_heads: Some(32),
        context: 32_768,
        sliding: Sliding::FromLayer(28),
        ..JsonDefaults::default()
    };
    Ok(ModelConfig { qkv_bias: true, ..decoder(fields, &QWEN2, &defaults)? })
}

fn from_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    Ok(ModelConfig { qkv_bias: true, ..gguf_config::decoder(gguf, &QWEN2, "qwen2")? })
}
