//! A Hugging Face folder: `config.json`, safetensors in one file or in shards,
//! `tokenizer.json`, and the chat template.

use super::chat::{ChatTemplate, TokenTexts, default_template};
use super::complaint;
use super::hf_weights::HfWeights;
use super::json::{Fields, read_json};
use super::mapped::{Stretch, open_regular, refuse_broken_link};
use super::sniff::ENOUGH;
use super::tensor::{Change, RawTensor, Stored};
use super::tokenizer::Tokenizer;
use crate::backend::dequantize::dequantize;
use crate::codec::WeightType;
use crate::model::arch;
use crate::model::config::ModelConfig;
use crate::model::part::Part;
use crate::{Error, Result};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

const CONFIG: &str = "tokenizer_config.json";

/// Special tokens that have names in tokenizer_config.json and in templates.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// An open folder of a known architecture.
#[derive(Debug)]
pub(crate) struct HfModel {
    folder: PathBuf,
    weights: HfWeights,
    pub(crate) config: ModelConfig,
    /// What a user should know, a line each.
    pub(crate) warnings: Vec<String>,
}

impl HfModel {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let config_file = folder.join("config.json");
        let json = read_json(&config_file)?;
        let generation = folder.join("generation_config.json");
        let generation = if generation.exists() { Some(read_json(&generation)?) } else { None };
        let config = read_config(&config_file, &json, generation.as_ref())?;
        let weights = HfWeights::open(folder)?;
        let mut model = Self { folder: folder.to_owned(), weights, config, warnings: Vec::new() };
        model.settle_tie(json.get("tie_word_embeddings").is_some())?;
        Ok(model)
    }

    /// Decides whether the embedding serves as the output layer. Old configurations say
    /// nothing of it: then the weights decide. They do also where a configuration says so and
    /// the file holds an output layer that is another: training or merging has untied them,
    /// and who forgot to say so meant the weights.
    fn settle_tie(&mut self, said: bool) -> Result<()> {
        let name = |part| self.config.arch.names.hf(part, None).unwrap_or_default();
        let (head, embedding) = (name(Part::Head), name(Part::Embedding));
        if !said {
            self.config.tied = !self.weights.has(&head);
        }
        if !self.config.tied || !self.weights.has(&head) {
            return Ok(());
        }
        let (own, shared) = (self.weights.find(&head), self.weights.find(&embedding)?);
        let warning = match (own, shared) {
            (Ok(own), shared) if own == shared => return Ok(()),
            (Ok(Some((_, own, _))), Some((_, shared, _))) if own == shared => {
                self.config.tied = false;
                format!("the file holds another \"{head}\", which is used")
            }
            _ => format!("\"{head}\" in the file cannot be one, and is not used"),
        };
        self.warnings.push(format!(
            "{}: config.json says tie_word_embeddings: true, but {warning}",
            self.folder.display()
        ));
        Ok(())
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.weights.file_bytes()
    }

    /// Type, shape and bytes by name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        self.weights.find(name)
    }

    /// Where bytes that [`find`](Self::find) gave lie.
    pub(crate) fn stretch(&self, name: &str, bytes: &[u8]) -> Option<Stretch> {
        self.weights.stretch(name, bytes)
    }

    /// A tensor by name, as the model computes with it.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some((dtype, shape, bytes)) = self.find(name)? else { return Ok(None) };
        let arch = self.config.arch;
        let shape = shape.to_vec();
        match arch.names.part(name).map(arch.json_change) {
            Some(Change::PlusOne) => {
                let mut floats = dequantize(dtype, bytes, shape.iter().product())?;
                floats.iter_mut().for_each(|x| *x += 1.0);
                let bytes = bytemuck::cast_slice::<f32, u8>(&floats).to_vec().into();
                Ok(Some(RawTensor { dtype: WeightType::F32, shape, bytes }))
            }
            _ => Ok(Some(RawTensor { dtype, shape, bytes: bytes.into() })),
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.folder.join("tokenizer.json");
        refuse_broken_link(&path)?;
        if !path.exists() {
            return Err(Error::bad_file(
                &self.folder,
                "tokenizer.json is missing",
                "download the whole model, or write it with transformers' \
                 AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            ));
        }
        refuse_stand_in(&path, "a JSON text")?;
        Tokenizer::read(&path, &self.config)
    }

    /// From `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let jinja = self.folder.join("chat_template.jinja");
        let named = |template: ChatTemplate| Some(template.with_token_texts(self.token_texts()));
        if jinja.exists() {
            refuse_stand_in(&jinja, "a chat template")?;
            return ChatTemplate::read(&jinja).map(named);
        }
        for name in ["chat_template.json", CONFIG] {
            let json = self.optional_json(name)?.unwrap_or(Value::Null);
            if let Some(template) = default_template(&json["chat_template"])? {
                return ChatTemplate::new(&template, None, None).map(named);
            }
        }
        Ok(None)
    }

    /// What templates may call the special tokens; none of a file that cannot be read.
    pub(crate) fn token_texts(&self) -> TokenTexts {
        let config = self.optional_json(CONFIG).ok().flatten().unwrap_or(Value::Null);
        let text = |name: &&'static str| Some((*name, token_text(&config[*name])?.to_owned()));
        TOKENS.iter().filter_map(text).collect()
    }

    fn optional_json(&self, name: &str) -> Result<Option<Value>> {
        let path = self.folder.join(name);
        if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
    }
}

/// Refuses what was saved in place of a download.
fn refuse_stand_in(path: &Path, expected: &str) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut head = Vec::new();
    open_regular(path)?.take(ENOUGH as u64).read_to_end(&mut head).map_err(io)?;
    complaint::refuse_stand_in(path, expected, &head)
}

/// A special token is a string, or an object with a `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Reads the numbers of a model; `generation` is `generation_config.json`.
pub(super) fn read_config(
    path: &Path,
    json: &Value,
    generation: Option<&Value>,
) -> Result<ModelConfig> {
    let fields = Fields { path, json };
    let mut config = arch::read_json(&fields)?;
    config.eos = read_eos(&fields, generation)?;
    Ok(config)
}

/// Generation stops at the tokens of both files.
fn read_eos(fields: &Fields<'_>, generation: Option<&Value>) -> Result<Vec<u32>> {
    let mut eos = Vec::new();
    if let Some(json) = generation {
        let path = fields.path.with_file_name("generation_config.json");
        eos = Fields { path: &path, json }.ids("eos_token_id")?;
    }
    for id in fields.ids("eos_token_id")? {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    Ok(eos)
}

impl ModelConfig {
    /// The numbers in the text of a `config.json` of transformers, checked.
    ///
    /// # Errors
    /// As for such a file: `Error::BadFile`, `Error::UnknownArchitecture` or
    /// `Error::Unsupported`.
    pub fn from_json(text: &str) -> Result<Self> {
        let path = Path::new("config.json");
        let bad = |what: String| complaint::bad_file(path, what);
        let json = serde_json::from_str(text).map_err(|e| bad(format!("it is not JSON: {e}")))?;
        let config = read_config(path, &json, None)?;
        config.validate().map_err(bad)?;
        Ok(config)
    }
}
