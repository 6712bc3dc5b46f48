//! Files that are already on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::check::{Check, check};
use super::fail::Fail;
use super::manifest::Manifest;
use super::options::FetchOptions;
use super::place::Place;
use super::progress::Progress;
use super::transfer::{Ended, into_part};
use super::wanted::{Wanted, with_suffix};
use crate::error::{Error, Result};

/// A `path` source: the file is checked and used where it lies. It is never
/// changed or removed, and its stamp is kept in the cache folder.
pub(super) fn in_place(
    path: &Path,
    manifest: &Manifest,
    wanted: &Wanted,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Fail> {
    let folders = [options.model_dir.as_deref(), manifest.folder.as_deref()];
    // Joining an absolute path gives that path, whatever the folder.
    let mut candidates: Vec<_> =
        folders.into_iter().flatten().map(|folder| folder.join(path)).collect();
    if candidates.is_empty() && path.is_absolute() {
        candidates.push(path.to_owned());
    }
    candidates.dedup();
    if candidates.is_empty() {
        return Err(Fail::Skipped("KVFOLD_MODEL_DIR is not set".to_owned()));
    }
    let stamp = with_suffix(&wanted.path, ".inplace.stamp");
    let mut reasons = Vec::new();
    for candidate in candidates {
        match check(&candidate, Some(&stamp), wanted, options, progress) {
            Ok(Check::Good) => return Ok(candidate),
            Ok(Check::Absent) => reasons.push(format!("{} does not exist", candidate.display())),
            Err(Error::Cancelled) => return Err(Fail::Fatal(Error::Cancelled)),
            Ok(Check::Bad(error)) | Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(Fail::Source(reasons.join(", ")))
}

/// Checks a file that the user names (or that lies in a folder that the user
/// names) and copies it into the cache.
pub(super) fn copy(
    from: &Path,
    wanted: &Wanted,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let name = wanted.path.file_name().unwrap_or_default();
    let from = if from.is_dir() { from.join(name) } else { from.to_owned() };
    progress.source(&from.to_string_lossy());
    let reader = File::open(&from).map_err(|error| Error::io(&from, error))?;
    if let Check::Bad(error) = check(&from, None, wanted, options, progress)? {
        return Err(error);
    }
    let place = Place::open(wanted, options, progress)?;
    if place.is_filled() {
        return Ok(place.file().to_owned());
    }
    let outcome = place
        .set_origin(None)
        .map_err(Fail::Fatal)
        .and_then(|()| into_part(reader, 0..place.size(), &place, options, progress))
        .and_then(|ended| match ended {
            Ended::Complete => place.commit(options, progress),
            Ended::Short(reason) => Err(Fail::Source(reason)),
            Ended::TooLong => Err(Fail::Source("it grew while it was copied".to_owned())),
        });
    outcome.map_err(|fail| {
        place.discard();
        match fail {
            Fail::Fatal(error) => error,
            Fail::Source(reason) | Fail::Skipped(reason) => {
                Error::bad_file(&from, reason, "run the command again")
            }
        }
    })
}
