//! A GGUF file of a known architecture: its tensors under Hugging Face's names and in the
//! row order of the model, its tokenizer and chat template.

use std::borrow::Cow;
use std::path::Path;

use super::chat::{ChatTemplate, TokenTexts};
use super::gguf::Gguf;
use super::mapped::Stretch;
use super::tensor::{Change, RawTensor, Stored};
use super::tokenizer::Tokenizer;
use super::tokenizer_gguf;
use crate::Result;
use crate::model::arch;
use crate::model::config::ModelConfig;

/// A GGUF file of a known architecture.
#[derive(Debug)]
pub(crate) struct GgufModel {
    gguf: Gguf,
    pub(crate) config: ModelConfig,
}

impl GgufModel {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = arch::read_gguf(&gguf)?;
        Ok(Self { gguf, config })
    }

    pub(crate) fn path(&self) -> &Path {
        self.gguf.path()
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.gguf.file_bytes()
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.gguf.str("general.name").ok().flatten().map(str::to_owned)
    }

    /// Type, shape and bytes, in the file's row order, by Hugging Face name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        match self.config.arch.names.to_gguf(name) {
            Some((_, file_name)) => self.gguf.tensor(&file_name),
            None => Ok(None),
        }
    }

    /// Where bytes that [`find`](Self::find) gave lie.
    pub(crate) fn stretch(&self, name: &str, bytes: &[u8]) -> Option<Stretch> {
        let (_, file_name) = self.config.arch.names.to_gguf(name)?;
        self.gguf.stretch(&file_name, bytes)
    }

    /// Why tensors may be missing, if that can be guessed.
    pub(crate) fn alone(&self) -> Option<&str> {
        self.gguf.alone()
    }

    /// A tensor in the model's row order. Its shape has been checked.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some((dtype, shape, bytes)) = self.find(name)? else { return Ok(None) };
        let arch = self.config.arch;
        let change = match arch.names.to_gguf(name) {
            Some((part, _)) => (arch.gguf_change)(&self.config, part),
            None => Change::None,
        };
        let bytes = match change {
            Change::Interleaved { heads } => {
                Cow::Owned(unpermute(bytes, heads, self.config.head_dim))
            }
            Change::None | Change::PlusOne => Cow::Borrowed(bytes),
        };
        Ok(Some(RawTensor { dtype, shape: shape.to_vec(), bytes }))
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer_gguf::read(&self.gguf, &self.config)
    }

    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let template = self.gguf.str("tokenizer.chat_template")?;
        let Some(template) = template.filter(|text| !text.trim().is_empty()) else {
            return Ok(None);
        };
        let compiled = ChatTemplate::new(template, None, None)?;
        Ok(Some(compiled.with_token_texts(self.token_texts())))
    }

    /// What templates may call the special tokens.
    pub(crate) fn token_texts(&self) -> TokenTexts {
        let tokens = self.gguf.strings("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
        let text = |(name, key): (&'static str, &str)| {
            let id = self.gguf.uint(&format!("tokenizer.ggml.{key}_token_id")).ok()??;
            Some((name, (*tokens.get(usize::try_from(id).ok()?)?).to_owned()))
        };
        let names = [
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        ];
        names.into_iter().filter_map(text).collect()
    }
}

/// Puts rows back in order: within a head, row 2i + j of the file is row
/// j · dim/2 + i of the model. Rows are moved whole, whatever their type.
fn unpermute(bytes: &[u8], heads: usize, head_dim: usize) -> Vec<u8> {
    let row = bytes.len() / (heads * head_dim);
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * head_dim) {
        for j in 0..2 {
            for i in 0..head_dim / 2 {
                let from = (2 * i + j) * row;
                ordered.extend_from_slice(&head[from..from + row]);
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_return_to_their_heads() {
        // transformers' permute, as llama.cpp's converter writes it.
        let (heads, dim, row) = (3, 8, 2);
        let original: Vec<u8> = (0..(heads * dim * row) as u8).collect();
        let mut permuted = vec![0; original.len()];
        for h in 0..heads {
            for j in 0..2 {
                for i in 0..dim / 2 {
                    let from = (h * dim + j * dim / 2 + i) * row;
                    let to = (h * dim + 2 * i + j) * row;
                    permuted[to..to + row].copy_from_slice(&original[from..from + row]);
                }
            }
        }
        assert_ne!(permuted, original);
        assert_eq!(unpermute(&permuted, heads, dim), original);
    }
}
