//! A Hugging Face folder: `config.json`, safetensors in one file or in shards,
//! `tokenizer.json`, and the chat template.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::chat::{ChatTemplate, TokenTexts, default_template};
use super::complaint;
use super::gguf::map_file;
use super::json::{Fields, read_json};
use super::tensor::{Change, RawTensor, Stored};
use super::tokenizer::Tokenizer;
use crate::backend::dequantize::dequantize;
use crate::codec::WeightType;
use crate::model::arch;
use crate::model::config::ModelConfig;
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "tokenizer_config.json";

/// Special tokens that have names in tokenizer_config.json and in templates.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// An open folder of a known architecture.
#[derive(Debug)]
pub(crate) struct HfModel {
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: HashMap<String, TensorInfo>,
    pub(crate) config: ModelConfig,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

#[derive(Debug)]
struct TensorInfo {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl HfModel {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let config_file = folder.join("config.json");
        let json = read_json(&config_file)?;
        let generation = folder.join("generation_config.json");
        let generation = if generation.exists() { Some(read_json(&generation)?) } else { None };
        let config = read_config(&config_file, &json, generation.as_ref())?;

        let mut model =
            Self { folder: folder.to_owned(), shards: Vec::new(), tensors: HashMap::new(), config };
        for path in shard_paths(folder)? {
            model.add_shard(path)?;
        }
        // Old configurations say nothing of tying: then the weights decide.
        if json.get("tie_word_embeddings").is_none() {
            model.config.tied = !model.tensors.contains_key("lm_head.weight");
        }
        Ok(model)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let map = map_file(&path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            complaint::bad_file(&path, format!("not a whole safetensors file: {e}"))
        })?;
        let data = 8 + header;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = TensorInfo {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data.saturating_add(start),
                end: data.saturating_add(end),
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(complaint::bad_file(
                    &path,
                    format!("tensor \"{name}\" is in several shards"),
                ));
            }
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.map.len() as u64).sum()
    }

    /// Type, shape and bytes by name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let shard = &self.shards[info.shard];
        let dtype = match info.dtype {
            Dtype::F32 => WeightType::F32,
            Dtype::F16 => WeightType::F16,
            Dtype::BF16 => WeightType::BF16,
            other => {
                return Err(Error::UnsupportedWeights {
                    path: shard.path.clone(),
                    tensor: name.to_owned(),
                    dtype: format!("{other:?}"),
                    supported: "F32, F16, BF16",
                });
            }
        };
        let bytes = shard.map.get(info.start..info.end);
        match bytes.filter(|b| dtype.tensor_bytes(&info.shape) == Some(b.len())) {
            Some(bytes) => Ok(Some((dtype, &info.shape, bytes))),
            None => Err(complaint::bad_file(
                &shard.path,
                format!("the bytes of tensor \"{name}\" do not fit its shape {:?}", info.shape),
            )),
        }
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
        if !path.exists() {
            return Err(Error::bad_file(
                &self.folder,
                "tokenizer.json is missing",
                "download the whole model, or write it with transformers' \
                 AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            ));
        }
        Tokenizer::read(&path, &self.config)
    }

    /// From `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`.
    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let jinja = self.folder.join("chat_template.jinja");
        let named = |template: ChatTemplate| Some(template.with_token_texts(self.token_texts()));
        if jinja.exists() {
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

/// A special token is a string, or an object with a `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The files of weights: one, or those that the index names.
fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        return Err(Error::bad_file(
            folder,
            format!("neither {SINGLE} nor {INDEX} is there"),
            "download the whole model; weights in other formats must be saved as safetensors",
        ));
    }
    let json = read_json(&index)?;
    let map = json["weight_map"]
        .as_object()
        .ok_or_else(|| complaint::bad_file(&index, "weight_map is missing"))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        let name = name
            .as_str()
            .filter(|name| is_plain_file_name(name))
            .ok_or_else(|| complaint::bad_file(&index, format!("{name} is no file name")))?;
        names.insert(name);
    }
    let paths: Vec<PathBuf> = names.into_iter().map(|name| folder.join(name)).collect();
    match paths.iter().find(|path| !path.exists()) {
        None => Ok(paths),
        Some(missing) => Err(Error::bad_file(
            missing,
            format!("the shard is missing, but {INDEX} names it"),
            "download the whole model",
        )),
    }
}

/// A name that cannot lead out of the folder.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\'])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_in_the_folder() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "./x", "x/"] {
            assert!(!is_plain_file_name(bad), "{bad}");
        }
    }
}
