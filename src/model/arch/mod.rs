//! The architectures that kvfold knows: one file each, which says how its files name and
//! store tensors, what its configuration means, and which layers follow from it.

mod decoder;
mod gemma3;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

pub(super) use decoder::Names;

use super::config::ModelConfig;
use super::gguf::Gguf;
use super::hf_config::Fields;
use super::spec::LayerSpec;
use super::{Part, complaint};
use crate::error::Result;
use std::fmt;
use std::path::Path;

/// All of them.
static ALL: [&Arch; 5] =
    [&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &gemma3::GEMMA3];

/// An architecture.
pub struct Arch {
    /// `model_type` in `config.json`, and kvfold's name.
    pub name: &'static str,
    /// `general.architecture` in GGUF, if such files have one of its own.
    gguf: Option<&'static str>,
    /// Reads `config.json`.
    from_json: fn(&Fields<'_>) -> Result<ModelConfig>,
    /// Reads the metadata of a GGUF file.
    from_gguf: fn(&Gguf) -> Result<ModelConfig>,
    /// The layers of a model.
    layers: fn(&ModelConfig) -> Vec<LayerSpec>,
    /// What tensors are called.
    pub(super) names: &'static Names,
    /// What llama.cpp has changed of a tensor.
    pub(super) gguf_change: fn(&ModelConfig, Part) -> Change,
    /// What transformers does to a tensor before it computes with it.
    pub(super) json_change: fn(Part) -> Change,
}

/// How a tensor in a file differs from the one that a model computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Not at all.
    None,
    /// Within each of so many heads, row 2i + j of the file is row j · dim/2 + i of the
    /// model: neighbouring channels are rotated together there.
    Interleaved { heads: usize },
    /// 1 is added to each number.
    PlusOne,
}

impl Arch {
    /// The same with other layers.
    #[cfg(test)]
    pub(super) fn with_layers(&self, layers: fn(&ModelConfig) -> Vec<LayerSpec>) -> Self {
        Self { layers, ..*self }
    }

    /// The layers of a model.
    pub fn layers(&self, config: &ModelConfig) -> Vec<LayerSpec> {
        (self.layers)(config)
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// `Error::UnknownArchitecture`, and what the architecture refuses.
    pub(super) fn read_json(fields: &Fields<'_>) -> Result<ModelConfig> {
        let name = fields.str("model_type")?.ok_or_else(|| fields.bad("model_type is missing"))?;
        match ALL.iter().find(|arch| arch.name == name) {
            Some(arch) => (arch.from_json)(fields),
            None => Err(unknown(fields.path, name, |arch| Some(arch.name))),
        }
    }

    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`read_json`](Self::read_json).
    pub(super) fn read_gguf(gguf: &Gguf) -> Result<ModelConfig> {
        let name = gguf.str("general.architecture")?;
        let name = name.ok_or_else(|| gguf.bad("general.architecture is missing"))?;
        match ALL.iter().find(|arch| arch.gguf == Some(name)) {
            Some(arch) => (arch.from_gguf)(gguf),
            None => Err(unknown(gguf.path(), name, |arch| arch.gguf)),
        }
    }
}

fn unknown(path: &Path, name: &str, known: impl Fn(&Arch) -> Option<&'static str>) -> crate::Error {
    let known: Vec<_> = ALL.iter().filter_map(|arch| known(arch)).collect();
    complaint::unknown_architecture(path, name, &known.join(", "))
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
