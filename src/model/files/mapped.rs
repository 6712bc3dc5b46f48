//! Files of weights, memory-mapped, and stretches of them that can be read again later.

use super::complaint::one_line;
use crate::backend::cpu::pool::parallel_for;
use crate::{Error, Result};
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    file: Arc<File>,
    map: Mmap,
}

/// A stretch of a file that is open but need not be mapped.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    path: PathBuf,
    file: Arc<File>,
    bytes: Range<usize>,
}

/// Bytes that a thread hashes at a time.
const CHUNK: usize = 1 << 20;

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// As [`open_regular`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let map = map(&file, path)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where a part of [`bytes`](Self::bytes) lies; an empty stretch if it is none.
    pub(crate) fn stretch(&self, part: &[u8]) -> Stretch {
        let start = part.as_ptr().addr().wrapping_sub(self.map.as_ptr().addr());
        let end = start.checked_add(part.len()).filter(|end| *end <= self.map.len());
        let bytes = end.map_or(0..0, |end| start..end);
        Stretch { path: self.path.clone(), file: self.file.clone(), bytes }
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Stretch {
        self.stretch(&self.map)
    }
}

/// Opens a file for reading, if it is one: a pipe would be waited for without end.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadFile`] for a folder, a pipe or a device, and for a link to a
/// file that is not there.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    refuse_broken_link(path)?;
    let io = |e| Error::io(path, e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        let what = "it is a folder, a pipe or a device";
        return Err(Error::bad_file(path, what, "give a file of a model"));
    }
    File::open(path).map_err(io)
}

/// Refuses a link to a file that is not there, as the hub's cache has them after a download
/// that broke off.
///
/// # Errors
/// [`Error::BadFile`].
pub(crate) fn refuse_broken_link(path: &Path) -> Result<()> {
    match std::fs::read_link(path) {
        Ok(to) if !path.exists() => {
            let what = format!("it is a link to {}, which is not there", to.display());
            Err(Error::bad_file(path, one_line(&what), "download the model again"))
        }
        _ => Ok(()),
    }
}

fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: the map is only read. As with every program that maps its
    // weights, another process that truncates the file while it is in use
    // ends this one (SIGBUS); bytes that change under us are only numbers.
    // Strings are validated anew whenever they are read.
    unsafe { Mmap::map(file) }.map_err(|e| Error::io(path, e))
}

/// SHA-256 over stretches of files, on all threads: of the SHA-256 of each MiB of each, in
/// order. Where one stretch ends and the next begins counts only to a MiB; whoever minds
/// hashes their lengths, too.
///
/// # Errors
/// [`Error::Io`], also for a file that has become shorter.
pub(crate) fn digest(stretches: &[Stretch]) -> Result<[u8; 32]> {
    let mut maps: Vec<(&Arc<File>, Mmap)> = Vec::new();
    let mut chunks = Vec::new();
    for Stretch { path, file, bytes } in stretches {
        let known = maps.iter().position(|(known, _)| Arc::ptr_eq(known, file));
        if known.is_none() {
            maps.push((file, map(file, path)?));
        }
        let at = known.unwrap_or(maps.len() - 1);
        if bytes.end > maps[at].1.len() {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Error::io(path, short));
        }
        let starts = bytes.clone().step_by(CHUNK);
        chunks.extend(starts.map(|start| (at, start..bytes.end.min(start + CHUNK))));
    }
    let hashes: Vec<OnceLock<[u8; 32]>> = chunks.iter().map(|_| OnceLock::new()).collect();
    parallel_for(chunks.len(), |i| {
        let (at, bytes) = &chunks[i];
        hashes[i].get_or_init(|| Sha256::digest(&maps[*at].1[bytes.clone()]).into());
    });
    let mut all = Sha256::new();
    hashes.iter().filter_map(OnceLock::get).for_each(|hash| all.update(hash));
    Ok(all.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_follows_every_byte_of_its_stretches_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut bytes: Vec<u8> = (0..2 * CHUNK + 100).map(|i| (i / 7) as u8).collect();
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let file = MappedFile::open(&path).unwrap();
            let all = file.bytes();
            digest(&[file.stretch(&all[10..CHUNK + 20]), file.stretch(&all[CHUNK + 30..])]).unwrap()
        };
        let first = of(&bytes);
        assert_eq!(of(&bytes), first);
        for (at, counts) in [(9, false), (10, true), (CHUNK + 10, true), (CHUNK + 25, false)] {
            bytes[at] ^= 1;
            assert_eq!(of(&bytes) != first, counts, "{at}");
            bytes[at] ^= 1;
        }
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_ne!(of(&bytes), first);
    }

    #[test]
    fn a_file_that_was_cut_off_meanwhile_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 64]).unwrap();
        let whole = MappedFile::open(&path).unwrap().whole();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8).unwrap();
        let error = digest(&[whole]).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}
