//! What was found, and who keeps it.

use std::fmt;
use std::path::PathBuf;

/// A model, or what is left of one, on this machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// What to give to `-m`: a name, or a path where it has none.
    pub name: String,
    /// Who keeps it.
    pub store: Store,
    /// The file or folder to open.
    pub path: PathBuf,
    /// Bytes of its files of weights, as far as they are here.
    pub bytes: u64,
    /// Why it cannot be opened: what lacks.
    pub incomplete: Option<String>,
}

/// Who keeps a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// kvfold's cache.
    Kvfold,
    /// `KVFOLD_MODEL_DIR`.
    ModelDir,
    /// A cache in Hugging Face's layout.
    HuggingFace,
    /// The flat cache of older versions of llama.cpp.
    LlamaCpp,
    /// Ollama's store.
    Ollama,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvfold => "kvfold's cache",
            Self::ModelDir => "KVFOLD_MODEL_DIR",
            Self::HuggingFace => "Hugging Face's cache",
            Self::LlamaCpp => "llama.cpp's cache",
            Self::Ollama => "Ollama's store",
        })
    }
}
