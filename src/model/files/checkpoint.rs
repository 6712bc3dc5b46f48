//! Opening a model, whatever its file format, and checking all of it.

use std::path::{Path, PathBuf};

use super::chat::{ChatTemplate, TokenTexts};
use super::complaint;
use super::gguf_model::GgufModel;
use super::gguf_split;
use super::hf::HfModel;
use super::mapped::Stretch;
use super::tensor::{RawTensor, Stored};
use super::tokenizer::Tokenizer;
use crate::codec::WeightType;
use crate::model::config::ModelConfig;
use crate::model::context::ContextOptions;
use crate::model::part::TensorSpec;
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

/// An opened and checked model: configuration, weights, tokenizer.
///
/// Tensors have Hugging Face's names (`model.layers.0.self_attn.q_proj.weight`)
/// and row order, from every format. Files are memory-mapped.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gguf(Box<GgufModel>),
    Hf(Box<HfModel>),
}

impl Checkpoint {
    /// Opens a `.gguf` file, a folder with `config.json` and safetensors
    /// (one file, or an index with shards), or a folder with one `.gguf`.
    ///
    /// Every tensor that the model needs is checked to be there, in a known
    /// type, in the shape that the configuration demands and inside its file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::UnknownArchitecture`],
    /// [`Error::UnsupportedWeights`], [`Error::Unsupported`]; each names the
    /// file and the field or tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let source = if !kind.is_dir() {
            Source::Gguf(Box::new(GgufModel::open(path)?))
        } else if path.join("config.json").symlink_metadata().is_ok() {
            Source::Hf(Box::new(HfModel::open(path)?))
        } else {
            Source::Gguf(Box::new(GgufModel::open(&only_gguf(path)?)?))
        };
        let own_name = match &source {
            Source::Gguf(model) => model.name(),
            Source::Hf(_) => None,
        };
        let name = own_name.filter(|n| !n.trim().is_empty()).unwrap_or_else(|| file_name(path));
        let checkpoint = Self { path: path.to_owned(), name, source };
        checkpoint.config().validate().map_err(|what| checkpoint.bad(what))?;
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        match &self.source {
            Source::Gguf(model) => &model.config,
            Source::Hf(model) => &model.config,
        }
    }

    /// Whether the checkpoint holds a tensor of this (Hugging Face) name.
    pub fn has(&self, name: &str) -> bool {
        matches!(self.find(name), Ok(Some(_)))
    }

    /// A tensor by its Hugging Face name, in Hugging Face's row order.
    ///
    /// # Errors
    /// [`Error::BadFile`] if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<RawTensor<'_>> {
        let tensor = match &self.source {
            Source::Gguf(model) => model.tensor(name)?,
            Source::Hf(model) => model.tensor(name)?,
        };
        tensor.ok_or_else(|| self.missing(name))
    }

    /// The tokenizer that comes with the model.
    ///
    /// # Errors
    /// [`Error::BadFile`] if it is missing or damaged, [`Error::Unsupported`]
    /// if it is of a kind that kvfold does not know.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.source {
            Source::Gguf(model) => model.tokenizer(),
            Source::Hf(model) => model.tokenizer(),
        }
    }

    /// The chat template that comes with the model; `None` for base models.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it does not compile, [`Error::BadFile`] or [`Error::Io`] if
    /// its file cannot be read.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.source {
            Source::Gguf(model) => model.chat_template(),
            Source::Hf(model) => model.chat_template(),
        }
    }

    /// Texts of the special tokens, as chat templates call them.
    pub fn token_texts(&self) -> TokenTexts {
        match &self.source {
            Source::Gguf(model) => model.token_texts(),
            Source::Hf(model) => model.token_texts(),
        }
    }

    /// The model's own name, or its file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all files of weights.
    pub fn file_bytes(&self) -> u64 {
        match &self.source {
            Source::Gguf(model) => model.file_bytes(),
            Source::Hf(model) => model.file_bytes(),
        }
    }

    /// Storage types of the tensors that the model uses, most bytes first.
    pub fn dtypes(&self) -> Vec<DtypeCount> {
        let mut counts: Vec<DtypeCount> = Vec::new();
        for spec in self.config().tensors() {
            let Ok(Some((dtype, _, bytes))) = self.find(&spec.name) else { continue };
            let bytes = bytes.len() as u64;
            match counts.iter_mut().find(|c| c.dtype == dtype) {
                Some(count) => {
                    count.tensors += 1;
                    count.bytes += bytes;
                }
                None => counts.push(DtypeCount { dtype, tensors: 1, bytes }),
            }
        }
        counts.sort_by_key(|c| std::cmp::Reverse(c.bytes));
        counts
    }

    /// What a user should know of the files, a line each.
    pub fn warnings(&self) -> &[String] {
        match &self.source {
            Source::Gguf(_) => &[],
            Source::Hf(model) => &model.warnings,
        }
    }

    /// The same weights with another context and rope.
    ///
    /// # Errors
    /// As [`ContextOptions::apply`].
    pub fn with_context(mut self, options: &ContextOptions) -> Result<Self> {
        let config = options.apply(self.config())?;
        match &mut self.source {
            Source::Gguf(model) => model.config = config,
            Source::Hf(model) => model.config = config,
        }
        Ok(self)
    }

    /// How a tensor is called in the file.
    pub(in crate::model) fn own_name(&self, name: &str) -> String {
        let gguf = match &self.source {
            Source::Gguf(model) => model.config.arch.names.to_gguf(name),
            Source::Hf(_) => None,
        };
        gguf.map_or_else(|| name.to_owned(), |(_, own)| own)
    }

    /// What the files' format is called. Bytes of equal names and types mean other numbers
    /// in another.
    pub(in crate::model) fn format(&self) -> &'static str {
        match &self.source {
            Source::Gguf(_) => "gguf",
            Source::Hf(_) => "safetensors",
        }
    }

    /// Type and shape of a tensor, and where its bytes lie.
    ///
    /// # Errors
    /// [`Error::BadFile`] if there is no such tensor.
    pub(in crate::model) fn place(&self, name: &str) -> Result<(WeightType, &[usize], Stretch)> {
        let (dtype, shape, bytes) = self.find(name)?.ok_or_else(|| self.missing(name))?;
        let stretch = match &self.source {
            Source::Gguf(model) => model.stretch(name, bytes),
            Source::Hf(model) => model.stretch(name, bytes),
        };
        Ok((dtype, shape, stretch.ok_or_else(|| self.missing(name))?))
    }

    /// Type, shape and bytes in the file's own row order.
    fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        match &self.source {
            Source::Gguf(model) => model.find(name),
            Source::Hf(model) => model.find(name),
        }
    }

    fn missing(&self, name: &str) -> Error {
        let why = match &self.source {
            Source::Gguf(model) => model.alone().map(|why| format!(": {why}")),
            Source::Hf(_) => None,
        };
        self.bad(format!("tensor \"{name}\" is missing{}", why.unwrap_or_default()))
    }

    /// An error about the file.
    pub(in crate::model) fn bad(&self, what: impl AsRef<str>) -> Error {
        let file = match &self.source {
            Source::Gguf(model) => model.path(),
            Source::Hf(_) => &self.path,
        };
        complaint::bad_file(file, what)
    }

    fn check_tensors(&self) -> Result<()> {
        for TensorSpec { name, shape, .. } in self.config().tensors() {
            let Some((dtype, found, _)) = self.find(&name)? else {
                return Err(self.missing(&name));
            };
            if found != shape {
                return Err(self.bad(format!(
                    "tensor \"{name}\" has shape {found:?}, the configuration says {shape:?}"
                )));
            }
            if shape.len() == 1 && dtype.block_size() != 1 {
                return Err(Error::UnsupportedWeights {
                    path: self.path.clone(),
                    tensor: name,
                    dtype: format!("{dtype} (a vector)"),
                    supported: "F32, F16, BF16",
                });
            }
        }
        Ok(())
    }
}

fn only_gguf(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
        .collect();
    if let Some(first) = gguf_split::first_of(&found) {
        return Ok(first);
    }
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        (Some(_), false) => Err(Error::bad_file(
            folder,
            "the folder holds several .gguf files",
            "give the path of one of them",
        )),
        (None, _) => Err(Error::bad_file(
            folder,
            "the folder holds neither config.json nor a .gguf file",
            "give a .gguf file or a Hugging Face model folder, or run `kvfold fetch`",
        )),
    }
}

fn file_name(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
