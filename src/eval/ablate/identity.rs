//! What a file's content is, so that a cell's key follows content and not names.

use super::row::hex;
use crate::error::{Error, Result};
use crate::model::{MappedFile, digest};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file that are hashed in one go; of a larger one, parts on all threads.
const WHOLE: u64 = 256 << 20;
/// Bytes that are read at once.
const PART: u64 = 1 << 20;

/// SHA-256 over the content of a file, or over names and contents of the files in a
/// folder. Of files above 256 MiB the size and the hashes of their parts are hashed.
///
/// # Errors
/// [`Error::Io`].
pub fn identity(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let io = |error| Error::io(path, error);
    let mut hasher = Sha256::new();
    if std::fs::metadata(path).map_err(io)?.is_dir() {
        let mut files: Vec<PathBuf> = (std::fs::read_dir(path).map_err(io)?)
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()
            .map_err(io)?;
        files.retain(|file| file.is_file());
        files.sort();
        for file in files {
            hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            hasher.update([0]);
            add(&mut hasher, &file)?;
        }
    } else {
        add(&mut hasher, path)?;
    }
    Ok(hex(&hasher.finalize()))
}

fn add(hasher: &mut Sha256, path: &Path) -> Result<()> {
    let io = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    hasher.update(size.to_le_bytes());
    if size > WHOLE {
        hasher.update(digest(&[MappedFile::open(path)?.whole()])?);
        return Ok(());
    }
    let mut part = Vec::new();
    while (&mut file).take(PART).read_to_end(&mut part).map_err(io)? > 0 {
        hasher.update(&part);
        part.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn content_counts_and_the_path_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let (a, b) = (write("a/text", "one"), write("b/text", "one"));
        assert_eq!(identity(&a).unwrap(), identity(&b).unwrap());
        assert_eq!(identity(a.parent().unwrap()).unwrap(), identity(b.parent().unwrap()).unwrap());
        let before = identity(a.parent().unwrap()).unwrap();
        write("a/text", "two");
        assert_ne!(identity(&a).unwrap(), identity(&b).unwrap());
        assert_ne!(identity(a.parent().unwrap()).unwrap(), before);
        let error = identity(folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }

    #[test]
    fn of_large_files_every_byte_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let mut hashes = std::collections::HashSet::new();
        // None of the later ones is near a whole MiB, an end or the middle.
        for (size, at) in
            [(WHOLE + 7, 0), (WHOLE + 8, 0), (WHOLE + 7, 1234), (WHOLE + 7, WHOLE / 3)]
        {
            // Sparse: no space is taken.
            let mut file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&[1]).unwrap();
            hashes.insert(identity(&path).unwrap());
        }
        assert_eq!(hashes.len(), 4);
    }
}
