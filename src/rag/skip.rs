//! Why a file cannot be read as text, and what its user can do.

use super::formats::FileKind;
use crate::error::Error;
use std::path::{Path, PathBuf};

/// Why a file inside a folder was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SkipReason {
    /// It is neither text nor a kind of file that is known.
    Binary,
    /// It is a known kind of file that is no text.
    Kind(FileKind),
    /// It is text, but for zero bytes.
    Zeros {
        /// The line of the first, from 1.
        line: usize,
    },
    /// It is not UTF-8 but looks like this encoding.
    Encoding(&'static str),
    /// It is in this encoding, but for some places.
    Broken {
        /// UTF-8, UTF-16 or UTF-32.
        encoding: &'static str,
        /// The line of the first of them, from 1.
        line: usize,
    },
    /// It holds nothing but white space.
    Empty,
    /// It is larger than 256 MiB.
    TooLarge,
    /// It could not be opened or read, or is neither file nor folder.
    Unreadable,
}

impl SkipReason {
    fn what(self) -> String {
        match self {
            Self::Binary => "binary".into(),
            Self::Kind(kind) => kind.name().into(),
            Self::Zeros { .. } => "with zero bytes".into(),
            Self::Encoding(name) => format!("in {name}"),
            Self::Broken { encoding, .. } => format!("invalid {encoding}"),
            Self::Empty => "empty".into(),
            Self::TooLarge => "larger than 256 MiB".into(),
            Self::Unreadable => "unreadable".into(),
        }
    }

    /// The same, for a file that the user named.
    pub(super) fn error(self, path: &Path) -> Error {
        let file = in_a_command(path);
        let convert = |options: String| {
            format!("convert it first: iconv {options} -t UTF-8 {file} > text.txt")
        };
        let (what, remedy) = match self {
            Self::Binary => {
                ("is a binary file".into(), "convert it to plain text first".to_owned())
            }
            Self::Kind(kind) => {
                (format!("is no text ({})", kind.name()), kind.remedy().replace("FILE", &file))
            }
            Self::Zeros { line } => (
                format!("holds zero bytes, the first in line {line}"),
                format!("take them out first: tr -d '\\0' < {file} > text.txt"),
            ),
            Self::Encoding(name) => {
                (format!("is not UTF-8 but looks like {name}"), convert(format!("-f {name}")))
            }
            Self::Broken { encoding, line } => (
                format!("is {encoding}, but not in line {line}"),
                format!(
                    "mend the line, or leave out what is invalid: iconv -c -f {encoding} -t UTF-8 {file} > text.txt"
                ),
            ),
            Self::Empty => ("holds no text".into(), "name a file with text in it".into()),
            Self::TooLarge => ("is larger than 256 MiB".into(), "split it first".into()),
            Self::Unreadable => {
                ("is neither a file nor a folder".into(), "name a text file".into())
            }
        };
        Error::Document { path: path.to_owned(), what, remedy }
    }
}

/// The path as a shell takes it.
fn in_a_command(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    match path.as_str() {
        "-" => "FILE".into(),
        _ if path.chars().all(plain) && !path.starts_with('-') => path,
        _ => format!("'{}'", path.replace('\'', r"'\''").replace(char::is_control, "?")),
    }
}

/// A file inside a folder that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file, or the folder that could not be listed.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// How many reasons a notice counts apart.
const MOST_NAMED: usize = 6;

/// One line for the user on what was skipped, with counts, or `None`.
pub(super) fn notice(skipped: &[Skipped]) -> Option<String> {
    let first = skipped.first()?;
    let mut counts: Vec<(String, usize)> = Vec::new();
    for what in skipped.iter().map(|s| s.reason.what()) {
        match counts.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => counts.push((what, 1)),
        }
    }
    let (named, others) = counts.split_at(counts.len().min(MOST_NAMED));
    let mut counts: Vec<String> = named.iter().map(|(what, n)| format!("{n} {what}")).collect();
    if !others.is_empty() {
        counts.push(format!("{} of other kinds", others.iter().map(|(_, n)| n).sum::<usize>()));
    }
    let (n, path) = (skipped.len(), first.path.display());
    let files = if n == 1 { "file" } else { "files" };
    Some(format!("skipped {n} {files} ({}), first {path}", counts.join(", ")))
}
