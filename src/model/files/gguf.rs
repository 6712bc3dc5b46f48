//! A GGUF model file, or all parts of a split one: metadata by key, tensors by name.

use super::complaint;
use super::gguf_header::{Header, Kind, TensorInfo, Value, strings_of};
use super::gguf_split;
use super::mapped::{MappedFile, Stretch};
use super::tensor::Stored;
use crate::codec::{SUPPORTED_TYPES, WeightType};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The metadata of the first part, which other parts need not have.
    metadata: HashMap<String, Value>,
    /// By name, with the part that it is in.
    tensors: HashMap<String, (usize, TensorInfo)>,
    parts: Vec<Part>,
    /// Why tensors may be missing.
    alone: Option<String>,
}

#[derive(Debug)]
struct Part {
    file: MappedFile,
    /// Where in the file the data begins.
    data_start: u64,
}

impl Gguf {
    /// Maps a file and reads its header; of a split one, all parts, the first of which is
    /// to be given.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`], also for a part that is missing, or is none of
    /// this model.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let Header { metadata, tensors, data_start } = Header::read(&file)?;
        let mut gguf = Self {
            metadata,
            tensors: HashMap::new(),
            parts: vec![Part { file, data_start }],
            alone: None,
        };
        gguf.add(0, tensors)?;
        gguf.add_parts()?;
        Ok(gguf)
    }

    fn add_parts(&mut self) -> Result<()> {
        let (count, number) = (self.uint("split.count")?, self.uint("split.no")?);
        let Some(count) = count.filter(|count| *count > 1) else { return Ok(()) };
        let named = gguf_split::others(self.path(), number.unwrap_or(0), count)?;
        let promised = self.uint("split.tensors.count")?;
        let Some(paths) = named else {
            // A joined file may still say that it was split once.
            let why = gguf_split::no_name(count);
            if promised.is_some_and(|promised| promised > self.tensors.len() as u64) {
                return Err(self.bad(why));
            }
            self.alone = Some(why);
            return Ok(());
        };
        for (path, number) in paths.iter().zip(1u64..) {
            let file = MappedFile::open(path)?;
            let Header { metadata, tensors, data_start } = Header::read(&file)?;
            let says = |key: &str, what: u64| matches!(metadata.get(key), Some(Value::Int(n)) if *n == i128::from(what));
            if !says("split.no", number) || !says("split.count", count) {
                let what = format!("it does not say that it is part {} of {count}", number + 1);
                return Err(complaint::bad_file(path, what));
            }
            self.parts.push(Part { file, data_start });
            self.add(self.parts.len() - 1, tensors)?;
        }
        match promised.filter(|promised| *promised != self.tensors.len() as u64) {
            None => Ok(()),
            Some(promised) => Err(self.bad(format!(
                "the {count} parts hold {} tensors, split.tensors.count is {promised}",
                self.tensors.len()
            ))),
        }
    }

    /// Adds the tensors of a part.
    fn add(&mut self, part: usize, tensors: HashMap<String, TensorInfo>) -> Result<()> {
        for (name, info) in tensors {
            if self.tensors.contains_key(&name) {
                let what = format!("tensor \"{name}\" is in an earlier part, too");
                return Err(complaint::bad_file(self.parts[part].file.path(), what));
            }
            self.tensors.insert(name, (part, info));
        }
        Ok(())
    }

    fn first(&self) -> &MappedFile {
        &self.parts[0].file
    }

    /// The file, or the first part.
    pub(crate) fn path(&self) -> &Path {
        self.first().path()
    }

    /// Bytes of all parts.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.file.bytes().len() as u64).sum()
    }

    /// Why tensors may be missing, if that can be guessed.
    pub(crate) fn alone(&self) -> Option<&str> {
        self.alone.as_deref()
    }

    /// Where bytes that [`tensor`](Self::tensor) gave lie.
    pub(crate) fn stretch(&self, name: &str, bytes: &[u8]) -> Option<Stretch> {
        let (part, _) = self.tensors.get(name)?;
        Some(self.parts[*part].file.stretch(bytes))
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's type, row-major shape and bytes; `None` if it is not there.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let Some((part, info)) = self.tensors.get(name) else { return Ok(None) };
        let Part { file, data_start } = &self.parts[*part];
        let bad = |what: String| complaint::bad_file(file.path(), what);
        let dtype =
            WeightType::from_gguf(info.type_number).ok_or_else(|| Error::UnsupportedWeights {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                dtype: type_name(info.type_number),
                supported: SUPPORTED_TYPES,
            })?;
        let bytes = dtype.tensor_bytes(&info.shape).ok_or_else(|| {
            bad(format!("tensor \"{name}\" has shape {:?}, not whole {dtype} blocks", info.shape))
        })?;
        let range = data_start
            .checked_add(info.offset)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(bytes)?));
        match range.and_then(|r| file.bytes().get(r)) {
            Some(data) => Ok(Some((dtype, &info.shape, data))),
            None => Err(bad(format!(
                "tensor \"{name}\" ends beyond the end of the file: the file is truncated or damaged"
            ))),
        }
    }

    /// An unsigned integer that may be absent.
    pub(crate) fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => match u64::try_from(*n) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(self.bad(format!("{key} is negative"))),
            },
            // Written by scripts that compute in floats.
            Some(Value::Float(x)) if x.fract() == 0.0 && (0.0..9e15).contains(x) => {
                Ok(Some(*x as u64))
            }
            Some(_) => Err(self.bad(format!("{key} is not an integer"))),
        }
    }

    /// A finite number that may be absent.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(Value::Int(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.bad(format!("{key} is not a finite number"))),
        }
    }

    /// A truth value that may be absent.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.bad(format!("{key} is not a truth value"))),
        }
    }

    /// A string that may be absent.
    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Str(range)) => {
                match std::str::from_utf8(&self.first().bytes()[range.clone()]) {
                    Ok(text) => Ok(Some(text)),
                    Err(_) => Err(self.bad(format!("{key} is not valid UTF-8"))),
                }
            }
            Some(_) => Err(self.bad(format!("{key} is not a string"))),
        }
    }

    /// An array of strings that may be absent.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(Value::Array { kind: Kind::Str, count, bytes }) = self.metadata.get(key) else {
            return self.absent(key, "strings");
        };
        let mut strings = Vec::with_capacity(*count);
        for range in strings_of(self.first(), key, *count, bytes)? {
            let text = std::str::from_utf8(&self.first().bytes()[range])
                .map_err(|_| self.bad(format!("{key}[{}] is not valid UTF-8", strings.len())))?;
            strings.push(text);
        }
        Ok(Some(strings))
    }

    /// An array of 32-bit floats that may be absent.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(Value::Array { kind: Kind::F32, bytes, .. }) = self.metadata.get(key) else {
            return self.absent(key, "32-bit floats");
        };
        let words = self.first().bytes()[bytes.clone()].as_chunks::<4>().0;
        Ok(Some(words.iter().map(|&w| f32::from_le_bytes(w)).collect()))
    }

    /// An array of 32-bit integers that may be absent.
    pub(crate) fn ints(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let Some(Value::Array { kind: Kind::I32 | Kind::U32, bytes, .. }) = self.metadata.get(key)
        else {
            return self.absent(key, "32-bit integers");
        };
        let words = self.first().bytes()[bytes.clone()].as_chunks::<4>().0;
        Ok(Some(words.iter().map(|&w| i32::from_le_bytes(w)).collect()))
    }

    fn absent<T>(&self, key: &str, what: &str) -> Result<Option<T>> {
        match self.metadata.contains_key(key) {
            true => Err(self.bad(format!("{key} is not an array of {what}"))),
            false => Ok(None),
        }
    }

    /// An error about this file.
    pub(crate) fn bad(&self, what: impl AsRef<str>) -> Error {
        complaint::bad_file(self.path(), what)
    }
}

/// The names of types that exist but that kvfold cannot read.
fn type_name(number: u32) -> String {
    match number {
        9 => "Q8_1".into(),
        15 => "Q8_K".into(),
        16..=23 | 29 => format!("IQ (ggml type {number})"),
        24..=28 => format!("integer or F64 (ggml type {number})"),
        34 | 35 => "TQ".into(),
        39 => "MXFP4".into(),
        n => format!("number {n}"),
    }
}
