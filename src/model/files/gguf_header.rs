//! The header of a GGUF file: key-value metadata, and where tensors are.
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

use super::complaint;
use super::mapped::MappedFile;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

const DEFAULT_ALIGNMENT: u64 = 32;
/// Arrays of arrays deeper than this occur in no known file.
const MAX_DEPTH: usize = 4;
const MAX_DIMS: u32 = 4;
/// Bytes of a metadata key or a tensor's name.
const MAX_NAME: usize = 1024;

/// A metadata value. Strings and arrays stay in the file.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Str(Range<usize>),
    Array { kind: Kind, count: usize, bytes: Range<usize> },
}

/// Types of metadata values, by their numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) struct TensorInfo {
    /// Row-major: the file's order reversed.
    pub shape: Vec<usize>,
    pub type_number: u32,
    /// From the start of the data section.
    pub offset: u64,
}

/// What a header says.
pub(super) struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
    /// Where in the file the data begins.
    pub data_start: u64,
}

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`Error::BadFile`], which says where.
    pub(super) fn read(file: &MappedFile) -> Result<Self> {
        let mut at = Cursor { data: file.bytes(), at: 0, path: file.path() };
        if !at.data.starts_with(b"GGUF") {
            let what = "not a GGUF file (it does not begin with \"GGUF\")".to_owned();
            return Err(complaint::not_a(at.path, "a GGUF file", at.data, what));
        }
        at.take(4, "the magic number")?;
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
        Ok(Self { metadata, tensors, data_start })
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

/// The places of the strings of an array.
///
/// # Errors
/// [`Error::BadFile`] if the array is damaged, which reading it has excluded.
pub(super) fn strings_of(
    file: &MappedFile,
    key: &str,
    count: usize,
    bytes: &Range<usize>,
) -> Result<Vec<Range<usize>>> {
    let data = &file.bytes()[..bytes.end];
    let mut at = Cursor { data, at: bytes.start, path: file.path() };
    (0..count).map(|_| at.string(key)).collect()
}
