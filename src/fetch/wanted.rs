//! One file that is wanted: where it belongs in the cache, and what it must be.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One file that is wanted.
pub(super) struct Wanted {
    /// Where the checked file belongs.
    pub(super) path: PathBuf,
    /// Its size in bytes.
    pub(super) size: u64,
    /// The sum of its content.
    pub(super) sum: Sum,
    /// Who says so, for messages: "the manifest", "the hub".
    pub(super) says: &'static str,
}

/// What a content is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Sum {
    /// SHA-256 of the content: 64 lower-case hexadecimal digits.
    Sha256(String),
    /// Git's name of the content, the SHA-1 of `blob SIZE\0` and the content: 40 digits.
    /// The hub knows small files by nothing else.
    GitBlob(String),
}

impl Wanted {
    /// Bytes that are not here yet, as far as sizes tell.
    pub(super) fn missing(&self) -> u64 {
        let part = with_suffix(&self.path, ".part");
        let here = fs::metadata(part).map_or(0, |metadata| metadata.len().min(self.size));
        self.size - here
    }
}

impl Sum {
    /// Its digits.
    pub(super) fn digits(&self) -> &str {
        let (Self::Sha256(digits) | Self::GitBlob(digits)) = self;
        digits
    }

    /// What kind of sum it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "Git blob sum",
        }
    }

    /// Whether it has the digits that its kind has.
    pub(super) fn is_valid(&self) -> bool {
        let length = match self {
            Self::Sha256(_) => 64,
            Self::GitBlob(_) => 40,
        };
        is_hex(self.digits(), length)
    }
}

impl fmt::Display for Sum {
    /// What a stamp notes: a SHA-256 has no mark, as in the stamps of older versions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digits) => f.write_str(digits),
            Self::GitBlob(digits) => write!(f, "git:{digits}"),
        }
    }
}

/// `path` with `suffix` appended to its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether `text` is `length` lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
