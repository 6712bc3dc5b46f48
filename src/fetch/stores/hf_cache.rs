//! A cache in the layout of huggingface_hub:
//!
//! ```text
//! models--OWNER--NAME/refs/REVISION              the commit of a branch or tag
//! models--OWNER--NAME/snapshots/COMMIT/PATH      a link to the blob
//! models--OWNER--NAME/blobs/SUM                  the bytes; SUM.incomplete while they come
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::super::repository::Repository;
use super::super::wanted::is_hex;
use super::folder;
use super::found::{Found, Store};

/// The model of a repository; None if the cache has nothing of it.
pub(super) fn find(cache: &Path, repository: &Repository) -> Option<Result<PathBuf, String>> {
    let home = cache.join(format!("models--{}--{}", repository.owner, repository.name));
    let commit = match commit(&home, repository.revision()) {
        Some(commit) => commit,
        None if is_hex(repository.revision(), 40) => repository.revision().to_owned(),
        None => return None,
    };
    let snapshot = home.join("snapshots").join(commit);
    match folder::find(&snapshot, repository.selection.as_deref()) {
        None if snapshot.is_dir() => Some(Err("its files are missing".to_owned())),
        found => found,
    }
}

/// All models of the cache.
pub(super) fn list(cache: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for home in sorted(cache) {
        let name = home.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(id) = name.strip_prefix("models--") else { continue };
        let main = commit(&home, "main");
        for snapshot in sorted(&home.join("snapshots")) {
            let at = snapshot.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            for model in folder::list(&snapshot) {
                // A model without an owner has no name that -m takes.
                let name = id.split_once("--").map(|(owner, name)| {
                    let revision = (main.as_deref() != Some(at)).then(|| format!("@{at}"));
                    let selection = model.selection.as_ref().map(|text| format!(":{text}"));
                    let (revision, selection) =
                        (revision.unwrap_or_default(), selection.unwrap_or_default());
                    format!("{owner}/{name}{revision}{selection}")
                });
                let named = name.filter(|name| Repository::parse(name).is_some());
                found.push(Found {
                    name: named.unwrap_or_else(|| model.path.to_string_lossy().into_owned()),
                    store: Store::HuggingFace,
                    path: model.path,
                    bytes: model.bytes,
                    incomplete: model.incomplete,
                });
            }
        }
    }
    found
}

/// The commit that a branch or tag stands at.
fn commit(home: &Path, revision: &str) -> Option<String> {
    // The revision's form has been checked: it cannot climb.
    let text = fs::read_to_string(home.join("refs").join(revision)).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_hex(commit, 40))
}

/// What is in a folder, in order.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
