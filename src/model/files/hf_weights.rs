//! The safetensors files of a Hugging Face folder: one, or shards and the index that says
//! which tensor is in which.

use super::complaint;
use super::json::read_json;
use super::mapped::{MappedFile, Stretch, refuse_broken_link};
use super::tensor::Stored;
use crate::codec::WeightType;
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes of a header, at most.
const MAX_HEADER: u64 = 100_000_000;

/// What such a folder may have instead.
const OTHER: [(&str, &str); 6] = [
    ("pytorch_model.bin", "PyTorch's pickle format"),
    ("pytorch_model.bin.index.json", "PyTorch's pickle format"),
    ("consolidated.00.pth", "PyTorch's pickle format"),
    ("tf_model.h5", "TensorFlow's format"),
    ("flax_model.msgpack", "Flax's format"),
    ("adapter_model.safetensors", "a LoRA adapter, without the model that it changes"),
];

/// The open files.
#[derive(Debug)]
pub(super) struct HfWeights {
    shards: Vec<MappedFile>,
    tensors: HashMap<String, TensorInfo>,
    /// The shard of each tensor, as the index has it; of one file, nothing.
    index: HashMap<String, String>,
}

#[derive(Debug)]
struct TensorInfo {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl HfWeights {
    /// Maps the files and reads their headers. A tensor that lies in several shards is
    /// taken from the one that the index names.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for files that are missing or damaged.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        refuse_broken_link(&folder.join(SINGLE))?;
        let index = match folder.join(SINGLE).exists() {
            true => HashMap::new(),
            false => read_index(folder)?,
        };
        let mut names: BTreeSet<&str> = index.values().map(String::as_str).collect();
        if names.is_empty() {
            names.insert(SINGLE);
        }
        let paths: Vec<_> = names.iter().map(|name| folder.join(name)).collect();
        paths.iter().try_for_each(|path| refuse_broken_link(path))?;
        if let Some(missing) = paths.iter().find(|path| !path.exists()) {
            return Err(Error::bad_file(
                missing,
                format!("the shard is missing, but {INDEX} names it"),
                "download the whole model",
            ));
        }
        let mut weights =
            Self { shards: Vec::new(), tensors: HashMap::new(), index: HashMap::new() };
        for (path, name) in paths.iter().zip(names) {
            weights.add(path, |tensor| index.get(tensor).is_none_or(|shard| shard == name))?;
        }
        Ok(Self { index, ..weights })
    }

    /// Adds the tensors of a file that are taken from there.
    fn add(&mut self, path: &Path, taken: impl Fn(&str) -> bool) -> Result<()> {
        let file = MappedFile::open(path)?;
        let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| {
            let what = match lengths(file.bytes()) {
                Some((is, says)) => format!("it has {is} bytes, but its header says {says}"),
                None => format!("not a whole safetensors file: {e}"),
            };
            complaint::not_a(path, "a safetensors file", file.bytes(), what)
        })?;
        let data = 8 + header;
        for (name, info) in metadata.tensors() {
            if !taken(&name) {
                continue;
            }
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
                    path,
                    format!("tensor \"{name}\" is in several shards, and {INDEX} names none"),
                ));
            }
        }
        self.shards.push(file);
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes().len() as u64).sum()
    }

    /// Type, shape and bytes by name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let Some(info) = self.tensors.get(name) else {
            return match self.index.get(name) {
                Some(shard) => {
                    let what = format!("tensor \"{name}\" is not in it, but {INDEX} says so");
                    let path =
                        self.shards.iter().map(MappedFile::path).find(|p| p.ends_with(shard));
                    Err(complaint::bad_file(path.unwrap_or(Path::new(shard)), what))
                }
                None => Ok(None),
            };
        };
        let shard = &self.shards[info.shard];
        let dtype = match info.dtype {
            Dtype::F32 => WeightType::F32,
            Dtype::F16 => WeightType::F16,
            Dtype::BF16 => WeightType::BF16,
            other => {
                return Err(Error::UnsupportedWeights {
                    path: shard.path().to_owned(),
                    tensor: name.to_owned(),
                    dtype: format!("{other:?}"),
                    supported: "F32, F16, BF16",
                });
            }
        };
        let bytes = shard.bytes().get(info.start..info.end);
        match bytes.filter(|b| dtype.tensor_bytes(&info.shape) == Some(b.len())) {
            Some(bytes) => Ok(Some((dtype, &info.shape, bytes))),
            None => Err(complaint::bad_file(
                shard.path(),
                format!("the bytes of tensor \"{name}\" do not fit its shape {:?}", info.shape),
            )),
        }
    }

    /// Where bytes that [`find`](Self::find) gave lie.
    pub(super) fn stretch(&self, name: &str, bytes: &[u8]) -> Option<Stretch> {
        Some(self.shards[self.tensors.get(name)?.shard].stretch(bytes))
    }
}

/// The bytes of a file, and those that its header says it has, if it is not as many.
fn lengths(bytes: &[u8]) -> Option<(u64, u64)> {
    let is = bytes.len() as u64;
    let header = u64::from_le_bytes(*bytes.first_chunk()?);
    let start = header.checked_add(8).filter(|start| *start < MAX_HEADER)?;
    // A header begins as JSON; other files have no length.
    let after = bytes.get(8..)?;
    if !after.is_empty() && after[0] != b'{' {
        return None;
    }
    let Some(header) = bytes.get(8..usize::try_from(start).ok()?) else {
        return Some((is, start));
    };
    let header: Value = serde_json::from_slice(header).ok()?;
    let ends = header.as_object()?.values().filter_map(|t| t["data_offsets"][1].as_u64());
    let says = start.checked_add(ends.max()?)?;
    (says != is).then_some((is, says))
}

/// The shard of each tensor.
fn read_index(folder: &Path) -> Result<HashMap<String, String>> {
    let index = folder.join(INDEX);
    if !index.exists() {
        let other = OTHER.iter().find(|(name, _)| folder.join(name).exists());
        let (what, remedy) = match other {
            Some((name, format)) => (
                format!("neither {SINGLE} nor {INDEX} is there, only {name}, which is {format}"),
                "save the whole model as safetensors with transformers' save_pretrained",
            ),
            None => (
                format!("neither {SINGLE} nor {INDEX} is there"),
                "download the whole model; weights in other formats must be saved as safetensors",
            ),
        };
        return Err(Error::bad_file(folder, what, remedy));
    }
    let json = read_json(&index)?;
    let map = json["weight_map"].as_object();
    let map = map.filter(|map| !map.is_empty());
    let map = map.ok_or_else(|| complaint::bad_file(&index, "weight_map is missing"))?;
    let shard = |(tensor, name): (&String, &Value)| {
        let plain = name.as_str().filter(|name| is_plain_file_name(name));
        let plain =
            plain.ok_or_else(|| complaint::bad_file(&index, format!("{name} is no file name")));
        Ok((tensor.clone(), plain?.to_owned()))
    };
    map.iter().map(shard).collect()
}

/// A name that cannot lead out of the folder, nor break a line.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_in_the_folder_and_on_a_line() {
        assert!(is_plain_file_name("model-00001-of-00002.safetensors"));
        let bad =
            ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "./x", "x/", "a\nb", "\u{1b}[2J"];
        for bad in bad {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
    }
}
