//! The architectures that kvfold knows: one file each, which says how its files name and
//! store tensors, what its configuration means, and which layers follow from it.

mod decoder;
mod gemma3;
mod llama;
mod mistral;
pub(super) mod names;
mod qwen2;
mod qwen3;

use super::config::{Arch, ModelConfig};
use super::files::complaint;
use super::files::gguf::Gguf;
use super::files::gguf_header::architecture_of_head;
use super::files::json::Fields;
use crate::error::Result;
use std::path::Path;

/// All of them.
static ALL: [&Arch; 5] =
    [&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &gemma3::GEMMA3];

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
/// As [`read_json`].
pub(super) fn read_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    let name = gguf.str("general.architecture")?;
    let name = name.ok_or_else(|| gguf.bad("general.architecture is missing"))?;
    match ALL.iter().find(|arch| arch.gguf == Some(name)) {
        Some(arch) => (arch.from_gguf)(gguf),
        None => Err(unknown(gguf.path(), name, |arch| arch.gguf)),
    }
}

/// Refuses a GGUF file of which only the first bytes, `head`, are here, if they say that it
/// is of another architecture or no GGUF file.
///
/// # Errors
/// `Error::UnknownArchitecture`, `Error::BadFile`.
pub(crate) fn check_gguf_head(head: &[u8], path: &Path) -> Result<()> {
    match architecture_of_head(head, path)? {
        Some(name) => check_gguf_architecture(&name, path),
        None => Ok(()),
    }
}

/// Refuses an architecture, named as in GGUF files, that is none of [`ALL`].
///
/// # Errors
/// `Error::UnknownArchitecture`.
pub(crate) fn check_gguf_architecture(name: &str, path: &Path) -> Result<()> {
    match ALL.iter().any(|arch| arch.gguf == Some(name)) {
        true => Ok(()),
        false => Err(unknown(path, name, |arch| arch.gguf)),
    }
}

fn unknown(path: &Path, name: &str, known: impl Fn(&Arch) -> Option<&'static str>) -> crate::Error {
    let known: Vec<_> = ALL.iter().filter_map(|arch| known(arch)).collect();
    complaint::unknown_architecture(path, name, &known.join(", "))
}
