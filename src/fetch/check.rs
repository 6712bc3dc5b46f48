//! Checksums, and the stamp that makes the second start quick.
//!
//! Hashing takes a second per gigabyte or so: too long before each answer. So
//! a stamp beside the file records that its content had the sum while it
//! had this size and modification time, and is trusted while both agree.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::options::FetchOptions;
use super::progress::Progress;
use super::wanted::{Sum, Wanted, with_suffix};
use crate::error::{Error, Result};

/// What a file turned out to be.
pub(super) enum Check {
    /// The file that is wanted.
    Good,
    /// There is nothing at that path.
    Absent,
    /// Another file, or a damaged one.
    Bad(Error),
}

/// The content of a stamp file (JSON).
#[derive(PartialEq, Serialize, Deserialize)]
struct Stamp {
    path: String,
    size: u64,
    modified_seconds: u64,
    modified_nanoseconds: u32,
    /// Its sum, as [`Sum`] prints it.
    #[serde(rename = "sha256")]
    sum: String,
}

/// The stamp's path for a file in the cache.
pub(super) fn stamp_of(file: &Path) -> PathBuf {
    with_suffix(file, ".stamp")
}

/// Compares `file` with what is wanted: by its stamp if there is one and
/// `options.verify` is off, else by hashing it, after which the stamp is written.
pub(super) fn check(
    file: &Path,
    stamp: Option<&Path>,
    wanted: &Wanted,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Check> {
    // Read before hashing: a change meanwhile makes the stamp void.
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Check::Absent);
        }
        Err(error) => return Err(Error::io(file, error)),
    };
    if !metadata.is_file() {
        return Err(Error::bad_file(file, "is not a regular file", "move it away"));
    }
    if metadata.len() != wanted.size {
        let Wanted { size, says, .. } = wanted;
        let what = format!("has {} bytes, {says} says {size}", metadata.len());
        return Ok(Check::Bad(Error::bad_file(file, what, "it is another or a damaged file")));
    }
    let expected = Stamp::new(file, &metadata, &wanted.sum);
    if !options.verify && expected.is_some() && stamp.and_then(read_stamp) == expected {
        return Ok(Check::Good);
    }
    let found = digits(file, &wanted.sum, wanted.size, options, progress)?;
    if found != wanted.sum.digits() {
        let (path, expected) = (file.to_owned(), wanted.sum.digits().to_owned());
        return Ok(Check::Bad(match &wanted.sum {
            Sum::Sha256(_) => Error::Checksum { path, expected, found },
            sum => {
                let what = format!("its {} is {found}, it should be {expected}", sum.kind());
                Error::bad_file(path, what, "delete the file and run `kvfold fetch` again")
            }
        }));
    }
    if let (Some(path), Some(content)) = (stamp, expected) {
        write_stamp(path, &content);
    }
    Ok(Check::Good)
}

/// Stamps a file that has just been verified.
pub(super) fn stamp(file: &Path, wanted: &Wanted) {
    let metadata = fs::metadata(file).ok();
    if let Some(content) = metadata.and_then(|m| Stamp::new(file, &m, &wanted.sum)) {
        write_stamp(&stamp_of(file), &content);
    }
}

/// The SHA-256 of a file of `size` bytes, in lower-case hexadecimal digits.
pub(super) fn sha256(
    file: &Path,
    size: u64,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<String> {
    hash(file, Sha256::new(), size, options, progress)
}

/// The digits that `sum` should have, of a file of `size` bytes.
pub(super) fn digits(
    file: &Path,
    sum: &Sum,
    size: u64,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<String> {
    match sum {
        Sum::Sha256(_) => sha256(file, size, options, progress),
        Sum::GitBlob(_) => {
            let start = Sha1::new().chain_update(format!("blob {size}\0"));
            hash(file, start, size, options, progress)
        }
    }
}

fn hash(
    file: &Path,
    mut hasher: impl Digest,
    size: u64,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<String> {
    progress.verifying(file);
    let mut reader = File::open(file).map_err(|error| Error::io(file, error))?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        options.check_cancel()?;
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(file, error)),
        };
        hasher.update(&buffer[..n]);
        done += n as u64;
        progress.bytes(done, size);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Stamp {
    /// None where the file system keeps no usable modification time.
    fn new(file: &Path, metadata: &Metadata, sum: &Sum) -> Option<Self> {
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self {
            path: file.to_string_lossy().into_owned(),
            size: metadata.len(),
            modified_seconds: modified.as_secs(),
            modified_nanoseconds: modified.subsec_nanos(),
            sum: sum.to_string(),
        })
    }
}

fn read_stamp(path: &Path) -> Option<Stamp> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Best effort: without a stamp the next start hashes again.
fn write_stamp(path: &Path, content: &Stamp) {
    let Ok(json) = serde_json::to_vec(content) else { return };
    if let Some(folder) = path.parent() {
        let _ = fs::create_dir_all(folder);
    }
    // A torn stamp does not parse or agree, so it needs no atomic write.
    if let Err(error) = fs::write(path, json) {
        tracing::debug!(path = %path.display(), %error, "no stamp was written");
    }
}
