//! Reading documents: files, folders and standard input.
//!
//! A file that the user named must be readable text, else it is an error that says
//! what it is instead. Of a folder, whatever is text is taken and the rest is skipped and counted.

use super::encoding::{decode, refused};
use super::formats::kind_of;
use super::skip::{SkipReason, Skipped, notice};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// How much of a file is looked at for what it is before the rest is read.
const SNIFF_BYTES: u64 = 8 << 10;

/// One text with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    source: String,
    text: String,
}

impl Document {
    /// A document called `source` (a path, or any name), shown in references.
    ///
    /// A byte order mark is removed, and CRLF line ends become LF; CR too, if no line
    /// ends otherwise. Control characters in the name become `?`, so that a reference is
    /// always one line.
    pub fn new(source: impl Into<String>, text: impl Into<String>) -> Self {
        let mut source = source.into();
        if source.contains(char::is_control) {
            source = source.replace(char::is_control, "?");
        }
        let mut text = text.into();
        if text.starts_with('\u{feff}') {
            text.remove(0);
        }
        if text.contains("\r\n") {
            text = text.replace("\r\n", "\n");
        } else if text.contains('\r') && !text.contains('\n') {
            text = text.replace('\r', "\n");
        }
        Self { source, text }
    }

    /// Its name in references.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its text; [`super::Passage::bytes`] counts in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether `#` begins a heading in it: in Markdown and in plain text, judged
    /// by the name, but not in a shell script.
    pub(super) fn has_headings(&self) -> bool {
        let extension = Path::new(&self.source).extension().unwrap_or_default();
        ["", "md", "markdown", "mdx", "qmd", "rmd", "txt", "text"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    }
}

/// What [`load`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The documents in input order; inside a folder sorted by name.
    pub documents: Vec<Document>,
    /// What was left out, in the same order.
    pub skipped: Vec<Skipped>,
}

impl Loaded {
    /// One line for the user on what was skipped, with counts, or `None`.
    pub fn notice(&self) -> Option<String> {
        notice(&self.skipped)
    }
}

/// Reads files and, recursively, folders, in the order given.
///
/// Inside folders, names are sorted, those that begin with a dot (`.git` too)
/// are left out, links are followed, and what is not text is skipped and
/// counted. A file that is reached twice is read once. `-` is standard input.
///
/// # Errors
/// [`Error::Document`] naming the path and the remedy, if a path does not exist,
/// a *named* file is no text, in an encoding that is not certain, empty, too large or
/// unreadable, or a named folder holds no text.
pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Loaded> {
    let mut loader = Loader::default();
    for path in paths.iter().map(AsRef::as_ref) {
        if path.is_dir() {
            loader.named_folder(path)?;
        } else if loader.is_new(path) {
            loader.loaded.documents.push(read_document(path)?);
        }
    }
    Ok(loader.loaded)
}

/// Reads one named file; `-` is standard input, called `stdin` in references.
///
/// # Errors
/// [`Error::Document`] as for a named file in [`load`].
pub fn read_document(path: &Path) -> Result<Document> {
    let text = if path == Path::new("-") {
        read_text(std::io::stdin().lock())
    } else {
        File::open(path).and_then(read_text)
    };
    match text {
        Ok(Ok(text)) => Ok(Document::new(shown(path), text)),
        Ok(Err(reason)) => Err(reason.error(path)),
        Err(source) => {
            let remedy = match source.kind() {
                std::io::ErrorKind::NotFound => "check the path",
                std::io::ErrorKind::PermissionDenied => "check the permissions of the file",
                _ => "name a readable text file",
            };
            Err(document_error(path, format!("cannot be read ({source})"), remedy))
        }
    }
}

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    /// Canonical paths of all files and folders met: no file twice, no link loop.
    seen: HashSet<PathBuf>,
    /// Text files met, also those that an earlier path had brought.
    texts: usize,
}

impl Loader {
    /// Notes `path`; false if it was met before, under whatever name.
    fn is_new(&mut self, path: &Path) -> bool {
        // What cannot be resolved is new: opening it will say what is wrong.
        path.canonicalize().map_or(true, |canonical| self.seen.insert(canonical))
    }

    fn named_folder(&mut self, folder: &Path) -> Result<()> {
        let texts = self.texts;
        let skipped = self.loaded.skipped.len();
        if !self.is_new(folder) {
            return Ok(());
        }
        self.folder(folder).map_err(|source| {
            document_error(
                folder,
                format!("cannot be listed ({source})"),
                "check the permissions of the folder",
            )
        })?;
        if self.texts > texts {
            return Ok(());
        }
        let what = match self.loaded.skipped.len() - skipped {
            0 => "the folder is empty (names that begin with a dot are not read)".to_owned(),
            n => format!("the folder holds no text ({n} other files)"),
        };
        Err(document_error(folder, what, "name a folder with text files in it"))
    }

    fn folder(&mut self, folder: &Path) -> std::io::Result<()> {
        let mut names = std::fs::read_dir(folder)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            self.entry(folder.join(name));
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf) {
        // A pipe or device is not opened: that could block for ever.
        let kind = std::fs::metadata(&path);
        if kind.as_ref().is_ok_and(|m| m.is_dir()) {
            if self.is_new(&path) && self.folder(&path).is_err() {
                self.skip(path, SkipReason::Unreadable);
            }
        } else if !kind.is_ok_and(|m| m.is_file()) {
            self.skip(path, SkipReason::Unreadable);
        } else if !self.is_new(&path) {
            self.texts += 1;
        } else {
            match File::open(&path).and_then(read_text) {
                Ok(Ok(text)) => {
                    self.texts += 1;
                    self.loaded.documents.push(Document::new(shown(&path), text));
                }
                Ok(Err(reason)) => self.skip(path, reason),
                Err(_) => self.skip(path, SkipReason::Unreadable),
            }
        }
    }

    fn skip(&mut self, path: PathBuf, reason: SkipReason) {
        self.loaded.skipped.push(Skipped { path, reason });
    }
}

/// Reads all of `reader` if it is text, else says what it is instead.
fn read_text(mut reader: impl Read) -> std::io::Result<Result<String, SkipReason>> {
    let mut bytes = Vec::new();
    reader.by_ref().take(SNIFF_BYTES).read_to_end(&mut bytes)?;
    if let Some(reason) = kind_of(&bytes).map(SkipReason::Kind).or_else(|| refused(&bytes)) {
        return Ok(Err(reason));
    }
    reader.take(MAX_BYTES + 1 - bytes.len() as u64).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Ok(Err(SkipReason::TooLarge));
    }
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    Ok(match decode(bytes) {
        Ok(text) if text.trim_matches(blank).is_empty() => Err(SkipReason::Empty),
        text => text,
    })
}

/// The name of `path` in references.
fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        // Small models take "stdin" for a matter of programs.
        return "input".to_owned();
    }
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

fn document_error(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Document { path: path.to_owned(), what: what.into(), remedy: remedy.into() }
}
