//! The cache of llama.cpp before it took over Hugging Face's:
//!
//! ```text
//! OWNER_NAME_FILE                    a file; slashes in its path are underlines too
//! OWNER_NAME_FILE.json               where it came from (2024)
//! OWNER_NAME_FILE.etag               the same (2025)
//! manifest=OWNER=NAME=TAG.json       what `-hf OWNER/NAME:TAG` chose (2025)
//! ```
//!
//! The names alone do not say where the repository ends and the file begins.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::choose::{Choice, choose, groups};
use super::super::repository::{Repository, is_safe_path};
use super::found::{Found, Store};

/// The model of a repository; None if the cache has nothing of it.
pub(super) fn find(cache: &Path, repository: &Repository) -> Option<Result<PathBuf, String>> {
    if repository.revision.as_ref().is_some_and(|revision| revision != "main") {
        return None;
    }
    let (owner, name) = (&repository.owner, &repository.name);
    let prefix = format!("{owner}_{name}_");
    let manifest = format!("manifest={owner}={name}=");
    let names = names(cache);
    let sure = names.iter().any(|name| name.starts_with(&manifest));
    let url = format!("/{owner}/{name}/resolve/");
    // Whole in one of three ways: named, noted by `-hf`, or by its own note.
    let is_ours = |file: &str| {
        let asked = repository.selection.as_deref().map(|path| path.replace('/', "_"));
        sure || asked.as_deref() == Some(file)
            || note(cache, &format!("{prefix}{file}.json"))
                .and_then(|note| Some(note["url"].as_str()?.contains(&url)))
                .unwrap_or(false)
    };
    let files: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix(&prefix))
        .filter(|file| is_ours(file))
        .collect();
    if groups(&files).is_empty() {
        return None;
    }
    let selection = repository.selection.as_deref().map(|path| path.replace('/', "_"));
    Some(match choose(&files, selection.as_deref()) {
        Ok(Choice::Gguf(parts)) => parts
            .first()
            .map(|first| cache.join(format!("{prefix}{first}")))
            .ok_or_else(|| "it is empty".to_owned()),
        Ok(Choice::Folder { .. }) => Err("it has no GGUF files".to_owned()),
        Err(reason) => Err(reason),
    })
}

/// All models of the cache, by their paths: see above.
pub(super) fn list(cache: &Path) -> Vec<Found> {
    let names = names(cache);
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for group in groups(&refs) {
        let Some(first) = group.parts.first() else { continue };
        let path = cache.join(first);
        let size = |part: &String| fs::metadata(cache.join(part)).map_or(0, |m| m.len());
        found.push(Found {
            name: known(cache, &names, first).unwrap_or_else(|| path.to_string_lossy().into()),
            store: Store::LlamaCpp,
            path,
            bytes: group.parts.iter().map(size).sum(),
            incomplete: group.missing.map(|part| format!("{part} is missing")),
        });
    }
    found
}

/// `owner/name:FILE` of a file, if a manifest names its repository.
fn known(cache: &Path, names: &[String], file: &str) -> Option<String> {
    names.iter().find_map(|manifest| {
        let mut parts = manifest.strip_prefix("manifest=")?.split('=');
        let (owner, name) = (parts.next()?, parts.next()?);
        let repository = format!("{owner}/{name}");
        let rest = file.strip_prefix(&format!("{owner}_{name}_"))?;
        let asked = format!("{repository}:{rest}");
        let parsed = Repository::parse(&asked)?;
        matches!(find(cache, &parsed), Some(Ok(path)) if path == cache.join(file)).then_some(asked)
    })
}

fn note(cache: &Path, name: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(cache.join(name)).ok()?).ok()
}

/// The files of the cache that are not empty, in order.
fn names(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| fs::metadata(entry.path()).is_ok_and(|m| m.is_file() && m.len() > 0))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_safe_path(name))
        .collect();
    names.sort();
    names
}
