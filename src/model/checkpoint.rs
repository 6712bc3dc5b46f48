//! Opening a model file or folder (contract; bodies follow).
use std::path::Path;

use super::{ChatTemplate, ModelConfig, RawTensor, Tokenizer, WeightType};
use crate::{Error, Result};

/// How much of a checkpoint is stored in one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DtypeCount {
    /// The storage type.
    pub dtype: WeightType,
    /// Tensors of it.
    pub tensors: usize,
    /// Their bytes together.
    pub bytes: u64,
}

/// An opened and checked model: configuration, weights, tokenizer. `Send + Sync`.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    name: String,
}

impl Checkpoint {
    /// Opens a `.gguf` file, a Hugging Face folder, or a folder with one `.gguf`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::bad_file(path, "contract only", "wait"))
    }
    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// Whether the file holds the tensor of this (Hugging Face) name.
    pub fn has(&self, _name: &str) -> bool {
        false
    }
    /// A tensor by its Hugging Face name, in the Hugging Face row order.
    pub fn tensor(&self, name: &str) -> Result<RawTensor<'_>> {
        Err(Error::NotFound { what: name.into() })
    }
    /// The tokenizer that comes with the model.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Err(Error::Tokenizer("contract only".into()))
    }
    /// The chat template that comes with the model, if any.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        Ok(None)
    }
    /// The model's own name, or its file's.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        Path::new("")
    }
    /// Bytes of all files of weights.
    pub fn file_bytes(&self) -> u64 {
        0
    }
    /// Storage types of all tensors, largest share first.
    pub fn dtypes(&self) -> Vec<DtypeCount> {
        Vec::new()
    }
}
