//! The GGUF container: key-value metadata and tensors, memory-mapped.
//!
//! Layout (little-endian), as specified in ggml's `docs/gguf.md`:
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | metadata count u64
//! metadata:  key string | type u32 | value
//! tensors:   name string | dims u32 | dim u64 × dims | type u32 | offset u64
//! padding to `general.alignment`, then the data that offsets count from
//! ```
//!
//! A string is a u64 length and that many bytes. Nothing here trusts a number
//! of the file: every length is compared with what is left of the file before
//! it is used, so a damaged header can neither overflow nor allocate much.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::complaint;
use super::tensor::Stored;
use crate::codec::{SUPPORTED_TYPES, WeightType};
use crate::{Error, Result};

const DEFAULT_ALIGNMENT: u64 = 32;
/// Arrays of arrays deeper than this occur in no known file.
const MAX_DEPTH: usize = 4;
const MAX_DIMS: u32 = 4;
/// Bytes of a metadata key or a tensor's name.
const MAX_NAME: usize = 1024;

/// A metadata value. Strings and arrays stay in the file.
#[derive(Debug, Clone)]
enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Str(Range<usize>),
    Array { kind: Kind, count: usize, bytes: Range<usize> },
}

/// Types of metadata values, by their numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Bytes of a value; `None` for strings and arrays.
    const fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Str | Self::Array => return None,
        })
    }
}

/// A tensor's entry in the header.
#[derive(Debug, Clone)]
struct TensorInfo {
    /// Row-major: the file's order reversed.
    shape: Vec<usize>,
    type_number: u32,
    /// From the start of the data section.
    offset: u64,
}

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data_start: u64,
}

impl Gguf {
    /// Maps the file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let mut at = Cursor { data: &map, at: 0, path };
        if at.take(4, "the magic number")? != b"GGUF" {
            return Err(at.bad("not a GGUF file (it does not begin with \"GGUF\")"));
        }
        let version = at.u32("the version")?;
        match version {
            2 | 3 => {}
            v if matches!(v.swap_bytes(), 1..=3) => {
                return Err(at.bad("big-endian GGUF files are not supported"));
            }
            v => return Err(at.bad(format!("GGUF version {v} is not supported (2 and 3 are)"))),
        }
        let tensor_count = at.u64("the tensor count")?;
        let metadata_count = at.u64("the metadata count")?;
        let metadata = read_metadata(&mut at, metadata_count)?;
        let tensors = read_tensors(&mut at, tensor_count)?;

        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Int(n @ 1..=0x10_0000)) if (*n as u64).is_power_of_two() => *n as u64,
            Some(_) => return Err(at.bad("general.alignment is not a small power of two")),
        };
        let data_start = (at.at as u64).next_multiple_of(alignment);
        Ok(Self { path: path.to_owned(), map, metadata, tensors, data_start })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's type, row-major shape and bytes; `None` if it is not there.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Stored<'_>>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let dtype =
            WeightType::from_gguf(info.type_number).ok_or_else(|| Error::UnsupportedWeights {
                path: self.path.clone(),
                tensor: name.to_owned(),
                dtype: type_name(info.type_number),
                supported: SUPPORTED_TYPES,
            })?;
        let bytes = dtype.tensor_bytes(&info.shape).ok_or_else(|| {
            self.bad(format!(
                "tensor \"{name}\" has shape {:?}, not whole {dtype} blocks",
                info.shape
            ))
        })?;
        let range = self
            .data_start
            .checked_add(info.offset)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(bytes)?));
        match range.and_then(|r| self.map.get(r)) {
            Some(data) => Ok(Some((dtype, &info.shape, data))),
            None => Err(self.bad(format!(
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
            Some(Value::Str(range)) => match std::str::from_utf8(&self.map[range.clone()]) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(self.bad(format!("{key} is not valid UTF-8"))),
            },
            Some(_) => Err(self.bad(format!("{key} is not a string"))),
        }
    }

    /// An array of strings that may be absent.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(Value::Array { kind: Kind::Str, count, bytes }) = self.metadata.get(key) else {
            return self.absent(key, "strings");
        };
        let mut at = Cursor { data: &self.map[..bytes.end], at: bytes.start, path: &self.path };
        let mut strings = Vec::with_capacity(*count);
        for _ in 0..*count {
            let range = at.string(key)?;
            let text = std::str::from_utf8(&self.map[range])
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
        let words = self.map[bytes.clone()].as_chunks::<4>().0;
        Ok(Some(words.iter().map(|&w| f32::from_le_bytes(w)).collect()))
    }

    /// An array of 32-bit integers that may be absent.
    pub(crate) fn ints(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let Some(Value::Array { kind: Kind::I32 | Kind::U32, bytes, .. }) = self.metadata.get(key)
        else {
            return self.absent(key, "32-bit integers");
        };
        let words = self.map[bytes.clone()].as_chunks::<4>().0;
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
        complaint::bad_file(&self.path, what)
    }
}

/// `general.architecture` of a file of which only the first bytes, `head`, are here; `None`
/// if it does not stand there.
pub(crate) fn architecture_of_head(head: &[u8], path: &Path) -> Result<Option<String>> {
    let mut at = Cursor { data: head, at: 0, path };
    if at.take(4, "the magic number")? != b"GGUF" {
        return Err(at.bad("not a GGUF file (it does not begin with \"GGUF\")"));
    }
    at.take(12, "the version and the tensor count")?;
    for _ in 0..at.u64("the metadata count")? {
        // What goes wrong from here on is, as far as one can tell, the end of the head.
        let Ok(key) = at.name("a metadata key") else { break };
        let Ok(value) = at.kind(&key).and_then(|kind| at.value(&key, kind)) else { break };
        if let ("general.architecture", Value::Str(range)) = (key.as_str(), value) {
            return Ok(Some(String::from_utf8_lossy(&head[range]).into_owned()));
        }
    }
    Ok(None)
}

/// Maps a whole file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the map is only read. As with every program that maps its
    // weights, another process that truncates the file while it is in use
    // ends this one (SIGBUS); bytes that change under us are only numbers.
    // Strings are validated anew whenever they are read.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))
}

fn read_metadata(at: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Value>> {
    // No `with_capacity`: the count is the file's claim.
    let mut metadata = HashMap::new();
    for _ in 0..count {
        let key = at.name("a metadata key")?;
        let kind = at.kind(&key)?;
        let value = at.value(&key, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(at.bad(format!("metadata key \"{key}\" occurs twice")));
        }
    }
    Ok(metadata)
}

fn read_tensors(at: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, TensorInfo>> {
    let mut tensors = HashMap::new();
    for _ in 0..count {
        let name = at.name("a tensor name")?;
        let dims = at.u32(&name)?;
        if dims > MAX_DIMS {
            return Err(at.bad(format!("tensor \"{name}\" has {dims} dimensions (4 at most)")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = at.u64(&name)?;
            let dim = usize::try_from(dim)
                .map_err(|_| at.bad(format!("tensor \"{name}\" has a dimension of {dim}")))?;
            shape.push(dim);
        }
        shape.reverse();
        let info = TensorInfo { shape, type_number: at.u32(&name)?, offset: at.u64(&name)? };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(at.bad(format!("tensor \"{name}\" occurs twice")));
        }
    }
    Ok(tensors)
}

/// A reader that never leaves the file.
struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn bad(&self, what: impl AsRef<str>) -> Error {
        complaint::bad_file(self.path, what)
    }

    fn take(&mut self, bytes: u64, what: &str) -> Result<&'a [u8]> {
        let end = usize::try_from(bytes).ok().and_then(|n| self.at.checked_add(n));
        match end.and_then(|end| self.data.get(self.at..end)) {
            Some(slice) => {
                self.at += slice.len();
                Ok(slice)
            }
            None => Err(self.bad(format!(
                "the header is truncated or damaged: {what} at byte {} needs {bytes} bytes, {} are left",
                self.at,
                self.data.len() - self.at
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The bytes of a string, not yet checked to be UTF-8.
    fn string(&mut self, what: &str) -> Result<Range<usize>> {
        let length = self.u64(what)?;
        let start = self.at;
        self.take(length, what)?;
        Ok(start..self.at)
    }

    /// A key or a tensor's name.
    fn name(&mut self, what: &str) -> Result<String> {
        let range = self.string(what)?;
        let plain = |name: &&str| name.len() <= MAX_NAME && !name.contains(char::is_control);
        match std::str::from_utf8(&self.data[range]).ok().filter(plain) {
            Some(name) => Ok(name.to_owned()),
            None => Err(self.bad(format!("{what} that ends at byte {} is no name", self.at))),
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(key)?;
        let kind = usize::try_from(number).ok().and_then(|n| Kind::ALL.get(n)).copied();
        kind.ok_or_else(|| self.bad(format!("{key} has the unknown value type {number}")))
    }

    fn value(&mut self, key: &str, kind: Kind) -> Result<Value> {
        Ok(match kind {
            Kind::U8 => Value::Int(u8::from_le_bytes(self.array(key)?).into()),
            Kind::I8 => Value::Int(i8::from_le_bytes(self.array(key)?).into()),
            Kind::U16 => Value::Int(u16::from_le_bytes(self.array(key)?).into()),
            Kind::I16 => Value::Int(i16::from_le_bytes(self.array(key)?).into()),
            Kind::U32 => Value::Int(self.u32(key)?.into()),
            Kind::I32 => Value::Int(i32::from_le_bytes(self.array(key)?).into()),
            Kind::U64 => Value::Int(self.u64(key)?.into()),
            Kind::I64 => Value::Int(i64::from_le_bytes(self.array(key)?).into()),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            Kind::Bool => Value::Bool(self.array::<1>(key)?[0] != 0),
            Kind::Str => Value::Str(self.string(key)?),
            Kind::Array => {
                let kind = self.kind(key)?;
                let count = self.u64(key)?;
                let start = self.at;
                self.skip_array(key, kind, count, 1)?;
                // Every element took at least a byte, so the count fits.
                Value::Array { kind, count: count as usize, bytes: start..self.at }
            }
        })
    }

    fn skip_array(&mut self, key: &str, kind: Kind, count: u64, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(self.bad(format!("{key} is nested too deeply")));
        }
        if let Some(size) = kind.size() {
            self.take(count.saturating_mul(size as u64), key)?;
            return Ok(());
        }
        for _ in 0..count {
            if kind == Kind::Str {
                self.string(key)?;
            } else {
                let kind = self.kind(key)?;
                let count = self.u64(key)?;
                self.skip_array(key, kind, count, depth + 1)?;
            }
        }
        Ok(())
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
