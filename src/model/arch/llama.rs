//! Llama 2 and 3 (Touvron et al. 2023), SmolLM2, and Mistral files whose GGUF says "llama".

use super::decoder::{NAMES, interleaved, layers, plain};
use super::mistral::MISTRAL;
use crate::error::Result;
use crate::model::config::{Arch, ModelConfig};
use crate::model::files::gguf::Gguf;
use crate::model::files::gguf_config;
use crate::model::files::hf_config::{JsonDefaults, decoder};
use crate::model::files::json::Fields;

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
