//! Models that are on this machine already: kvfold's own, and those of other programs,
//! which are used where they lie. Nothing here writes.
//!
//! | file | what it knows |
//! |---|---|
//! | `own` | kvfold's cache and `KVFOLD_MODEL_DIR` |
//! | `hf_cache` | Hugging Face's cache, which newer versions of llama.cpp use too |
//! | `llama_cache` | the flat cache of older versions of llama.cpp |
//! | `ollama` | Ollama's manifests and blobs |
//! | `folder` | the files of a repository in a folder |
//! | `found` | a model that is here, and whose it is |

mod folder;
mod found;
mod hf_cache;
mod llama_cache;
mod ollama;
mod own;

use std::collections::HashSet;
use std::path::PathBuf;

use super::options::FetchOptions;
use super::repository::Repository;
use crate::error::Result;
pub use found::{Found, Store};

/// Everything that is here, kvfold's own first; nothing twice where two of the folders are
/// one.
pub fn here(options: &FetchOptions) -> Vec<Found> {
    let mut all = own::list(options);
    all.extend(options.hf_caches.iter().flat_map(|cache| hf_cache::list(cache)));
    all.extend(options.llama_caches.iter().flat_map(|cache| llama_cache::list(cache)));
    all.extend(options.ollama_stores.iter().flat_map(|store| ollama::list(store)));
    let mut seen = HashSet::new();
    all.retain(|found| seen.insert((found.name.clone(), found.path.clone())));
    all
}

/// The path of a model in Ollama's store by its name there, `model[:tag]`,
/// `namespace/model[:tag]` or with a host before it. None if there is no such model.
///
/// # Errors
/// [`Error::BadFile`](crate::Error::BadFile) if the store has it and it is damaged or of a
/// kind that kvfold cannot open.
pub fn find_ollama(name: &str, options: &FetchOptions) -> Result<Option<PathBuf>> {
    for store in &options.ollama_stores {
        if let Some(path) = ollama::find(store, name)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Where other programs keep the model of a repository; and why those that have a part of
/// it do not do.
pub(super) fn find(
    repository: &Repository,
    options: &FetchOptions,
) -> (Option<PathBuf>, Vec<(String, String)>) {
    let mut why_not = Vec::new();
    let mut look = |store: Store, outcome: Option<Result<PathBuf, String>>| match outcome? {
        Ok(path) => Some(path),
        Err(reason) => {
            why_not.push((store.to_string(), reason));
            None
        }
    };
    let mut path = look(Store::ModelDir, own::find(repository, options));
    for cache in &options.hf_caches {
        path = path.or_else(|| look(Store::HuggingFace, hf_cache::find(cache, repository)));
    }
    for cache in &options.llama_caches {
        path = path.or_else(|| look(Store::LlamaCpp, llama_cache::find(cache, repository)));
    }
    // Ollama fetches from the hub too, under this name.
    let selection = repository.selection.as_deref().unwrap_or("latest");
    let name = format!("hf.co/{}:{selection}", repository.id());
    for store in &options.ollama_stores {
        let outcome = ollama::find(store, &name).map_err(|error| error.to_string()).transpose();
        path = path.or_else(|| look(Store::Ollama, outcome));
    }
    (path, why_not)
}
