//! Ollama's store:
//!
//! ```text
//! manifests/HOST/NAMESPACE/MODEL/TAG     JSON: layers, each with mediaType and digest
//! blobs/sha256-DIGITS                    the bytes of a layer
//! ```
//!
//! A model is the blob of its layer `application/vnd.ollama.image.model`, a GGUF file without
//! that ending. Its template and parameters are layers of their own, which kvfold leaves
//! alone: it goes by the file.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::repository::is_safe_path;
use super::super::wanted::is_hex;
use super::found::{Found, Store};
use crate::error::{Error, Result};

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const KIND: &str = "application/vnd.ollama.image.";
/// Newer stores keep manifests of a second form beside the first.
const MANIFESTS: [&str; 2] = ["manifests", "manifests-v2"];
const REMEDY: &str = "get it again with `ollama pull`";

/// The model's blob; None if the store does not know the name.
pub(super) fn find(store: &Path, name: &str) -> Result<Option<PathBuf>> {
    let Some(manifest) = manifest_of(store, name) else { return Ok(None) };
    let (blob, _) =
        blob_of(store, &manifest).map_err(|what| Error::bad_file(&manifest, what, REMEDY))?;
    Ok(Some(blob))
}

/// The manifest's file, if there is one.
fn manifest_of(store: &Path, name: &str) -> Option<PathBuf> {
    let (model, tag) = match name.rsplit_once(':') {
        Some((model, tag)) => (model, tag),
        None => (name, "latest"),
    };
    let parts: Vec<&str> = model.split('/').collect();
    let (host, namespace, model) = match parts.as_slice() {
        [model] => (HOST, NAMESPACE, *model),
        [namespace, model] => (HOST, *namespace, *model),
        [host, namespace, model] => (*host, *namespace, *model),
        _ => return None,
    };
    let path = [host, namespace, model, tag];
    if !path.iter().all(|part| is_safe_path(part) && !part.contains('/')) {
        return None;
    }
    MANIFESTS.into_iter().find_map(|folder| in_any_case(&store.join(folder), &path))
}

/// The file at `path` below `folder`, each part in the case that it has on the disk: Ollama's
/// names mean the same in capitals.
fn in_any_case(folder: &Path, path: &[&str]) -> Option<PathBuf> {
    let Some((part, rest)) = path.split_first() else {
        return folder.is_file().then(|| folder.to_owned());
    };
    let exact = in_any_case(&folder.join(part), rest);
    exact.or_else(|| {
        let mut entries = fs::read_dir(folder).ok()?.flatten();
        let entry = entries.find(|entry| entry.file_name().eq_ignore_ascii_case(part))?;
        in_any_case(&entry.path(), rest)
    })
}

/// The blob of a manifest's model, and its size.
fn blob_of(store: &Path, manifest: &Path) -> std::result::Result<(PathBuf, u64), String> {
    let bytes = fs::read(manifest).map_err(|error| error.to_string())?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| format!("not JSON: {e}"))?;
    let layers = json["layers"].as_array().ok_or("it has no layers")?;
    let kind = |layer: &&Value, kind: &str| {
        let media = layer["mediaType"].as_str().and_then(|media| media.strip_prefix(KIND));
        // Parameters may follow: `image.model; name=x`.
        media.is_some_and(|media| media.split(';').next().map(str::trim) == Some(kind))
    };
    if layers.iter().any(|layer| kind(&layer, "adapter")) {
        return Err("it has an adapter, which kvfold does not apply".to_owned());
    }
    let mut models = layers.iter().filter(|layer| kind(layer, "model"));
    let layer = match (models.next(), models.next()) {
        (Some(layer), None) => layer,
        (Some(_), Some(_)) => return Err("its model is in several layers".to_owned()),
        (None, _) => {
            return Err("it has no GGUF layer: a model in the cloud or in another form".to_owned());
        }
    };
    let digest = layer["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest = digest.filter(|digits| is_hex(digits, 64)).ok_or("its digest is none")?;
    let blob = store.join("blobs").join(format!("sha256-{digest}"));
    let found =
        fs::metadata(&blob).map_err(|_| format!("its blob {} is missing", blob.display()))?;
    match layer["size"].as_u64() {
        Some(size) if size != found.len() => {
            Err(format!("its blob {} has {} of {size} bytes", blob.display(), found.len()))
        }
        _ => Ok((blob, found.len())),
    }
}

/// All models of the store.
pub(super) fn list(store: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for manifests in MANIFESTS {
        let mut files = Vec::new();
        walk(&store.join(manifests), &mut Vec::new(), &mut files);
        files.sort();
        for (parts, manifest) in files {
            let [host, namespace, model, tag] = parts.as_slice() else { continue };
            let name = match (host.as_str(), namespace.as_str()) {
                (HOST, NAMESPACE) => format!("{model}:{tag}"),
                (HOST, namespace) => format!("{namespace}/{model}:{tag}"),
                (host, namespace) => format!("{host}/{namespace}/{model}:{tag}"),
            };
            let (path, bytes, incomplete) = match blob_of(store, &manifest) {
                Ok((blob, bytes)) => (blob, bytes, None),
                Err(reason) => (manifest, 0, Some(reason)),
            };
            let name = format!("ollama:{name}");
            found.push(Found { name, store: Store::Ollama, path, bytes, incomplete });
        }
    }
    found
}

/// Files four folders down: host, namespace, model, tag.
fn walk(folder: &Path, parts: &mut Vec<String>, files: &mut Vec<(Vec<String>, PathBuf)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !is_safe_path(&name) {
            continue;
        }
        let path = entry.path();
        parts.push(name);
        match parts.len() {
            4 if path.is_file() => files.push((parts.clone(), path)),
            1..4 if path.is_dir() => walk(&path, parts, files),
            _ => {}
        }
        parts.pop();
    }
}
