//! Llama 2 and 3 (Touvron et al. 2023), SmolLM2, and Mistral files whose GGUF says "llama".

use super::decoder::{NAMES, layers, plain};
use super::mistral::MISTRAL;
use super::{Arch, Change};
use crate::error::Result;
use crate::model::Part;
use crate::model::config::ModelConfig;
use crate::model::gguf::Gguf;
use crate::model::gguf_config;
use crate::model::hf_config::{Fields, JsonDefaults, decoder};

pub(super) static LLAMA: Arch = Arch {
    name: "llama",
    gguf: Some("llama"),
    from_json,
    from_gguf,
    layers,
    names: &NAMES,
    gguf_change: interleaved,
    json_change: plain,
};

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    decoder(fields, &LLAMA, &JsonDefaults { context: 2048, ..JsonDefaults::default() })
}

fn from_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    let mut config = gguf_config::decoder(gguf, &LLAMA, "llama")?;
    if config.sliding_window.is_some() {
        config.arch = &MISTRAL;
    }
    Ok(config)
}

/// llama.cpp rotates neighbouring channels (2i, 2i + 1) for the architecture "llama" and
/// therefore stores the rows of its Q and K projections permuted per head.
pub(super) fn interleaved(config: &ModelConfig, part: Part) -> Change {
    match part {
        Part::Query | Part::QueryBias => Change::Interleaved { heads: config.heads },
        Part::Key | Part::KeyBias => Change::Interleaved { heads: config.kv_heads },
        _ => Change::None,
    }
}
