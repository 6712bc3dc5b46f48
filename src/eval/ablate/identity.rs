//! What a file's content is, so that a cell's key follows content and not names.

use super::row::hex;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of a file that are hashed whole; of a larger one, samples.
const WHOLE: u64 = 256 << 20;
/// Samples of a larger file, the first at its start and the last at its end.
const SAMPLES: u64 = 64;
/// Bytes of a sample.
const SAMPLE: u64 = 1 << 20;

/// SHA-256 over the content of a file, or over names and contents of the files in a
/// folder. Of files above 256 MiB the size and 64 samples of 1 MiB are hashed: models
/// that differ there differ throughout.
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
            add(&mut hasher, &file).map_err(|error| Error::io(&file, error))?;
        }
    } else {
        add(&mut hasher, path).map_err(io)?;
    }
    Ok(hex(&hasher.finalize()))
}

fn add(hasher: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(size.to_le_bytes());
    let mut part = Vec::new();
    let mut take = |file: &mut File, bytes: u64| -> std::io::Result<usize> {
        part.clear();
        let read = file.take(bytes).read_to_end(&mut part)?;
        hasher.update(&part);
        Ok(read)
    };
    if size <= WHOLE {
        while take(&mut file, SAMPLE)? > 0 {}
        return Ok(());
    }
    for sample in 0..SAMPLES {
        file.seek(SeekFrom::Start((size - SAMPLE) / (SAMPLES - 1) * sample))?;
        take(&mut file, SAMPLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
    fn large_files_are_sampled_to_their_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let mut hashes = std::collections::HashSet::new();
        for (size, last) in [(WHOLE + 7, 0), (WHOLE + 7, 1), (WHOLE + 8, 0)] {
            // Sparse: no space is taken.
            let mut file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.seek(SeekFrom::Start(size - 70)).unwrap();
            file.write_all(&[last]).unwrap();
            hashes.insert(identity(&path).unwrap());
        }
        assert_eq!(hashes.len(), 3);
    }
}
