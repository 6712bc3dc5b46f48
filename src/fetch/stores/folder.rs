//! A folder that holds the files of a repository, all or some.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::choose::{CONFIG, Choice, INDEX, SINGLE, Weights, choose, groups, shards};
use super::super::repository::is_safe_path;

/// Folders deeper than this hold no models.
const MAX_DEPTH: usize = 4;
/// A folder with more files than this is no repository of a model.
const MAX_FILES: usize = 20_000;

/// A model in a folder.
pub(super) struct Model {
    /// The file or folder to open.
    pub(super) path: PathBuf,
    /// What tells it from others of the folder: a quantization or a file; none for a folder
    /// of transformers.
    pub(super) selection: Option<String>,
    /// Bytes of its weights that are there.
    pub(super) bytes: u64,
    /// What lacks.
    pub(super) incomplete: Option<String>,
}

/// The model that `selection` names, if all of it is there; None if nothing of it is.
pub(super) fn find(folder: &Path, selection: Option<&str>) -> Option<Result<PathBuf, String>> {
    let names = files(folder, MAX_DEPTH);
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    if !refs.iter().any(|name| is_of_a_model(name)) {
        return None;
    }
    let path = match choose(&refs, selection) {
        Err(reason) => Err(reason),
        Ok(Choice::Gguf(parts)) => match parts.first() {
            Some(first) => Ok(folder.join(first)),
            None => return None,
        },
        Ok(Choice::Folder { weights, .. }) => {
            missing_shard(folder, &refs, &weights).map_or(Ok(folder.to_owned()), Err)
        }
    };
    Some(path)
}

/// All models of the folder and of those in it.
pub(super) fn list(folder: &Path) -> Vec<Model> {
    models(folder, MAX_DEPTH)
}

/// All models of the folder itself.
pub(super) fn list_flat(folder: &Path) -> Vec<Model> {
    models(folder, 0)
}

fn models(folder: &Path, depth: usize) -> Vec<Model> {
    let names = files(folder, depth);
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut models = Vec::new();
    let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    if refs.contains(&CONFIG) && refs.iter().any(|n| n.ends_with(".safetensors") || *n == INDEX) {
        let incomplete = match choose(&refs, None) {
            Ok(Choice::Folder { weights, .. }) => missing_shard(folder, &refs, &weights),
            Ok(Choice::Gguf(_)) => Some("its weights are missing".to_owned()),
            Err(reason) => Some(reason),
        };
        let weights = refs.iter().filter(|n| n.ends_with(".safetensors") && !n.contains('/'));
        models.push(Model {
            path: folder.to_owned(),
            selection: None,
            bytes: weights.map(|name| size(name)).sum(),
            incomplete,
        });
    }
    let groups = groups(&refs);
    for group in &groups {
        let Some(first) = group.parts.first() else { continue };
        let alone = groups.iter().filter(|other| other.quant == group.quant).count() == 1;
        let selection = match (&group.quant, alone) {
            (Some(quant), true) => quant.clone(),
            _ => first.clone(),
        };
        models.push(Model {
            path: folder.join(first),
            selection: Some(selection),
            bytes: group.parts.iter().map(|part| size(part)).sum(),
            incomplete: group.missing.as_ref().map(|part| format!("{part} is missing")),
        });
    }
    models
}

fn is_of_a_model(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower == CONFIG || lower.ends_with(".safetensors") || lower.ends_with(".gguf")
}

/// What weights lack.
fn missing_shard(folder: &Path, names: &[&str], weights: &Weights) -> Option<String> {
    let shards = match weights {
        Weights::Single => Ok(vec![SINGLE.to_owned()]),
        Weights::Index => fs::read(folder.join(INDEX))
            .map_err(|error| format!("{INDEX}: {error}"))
            .and_then(|index| shards(&index)),
    };
    match shards {
        Ok(shards) => shards
            .into_iter()
            .find(|shard| !names.contains(&shard.as_str()))
            .map(|shard| format!("{shard} is missing")),
        Err(reason) => Some(reason),
    }
}

/// The files below a folder that are there (a link to nothing is what a fetch that broke off
/// leaves) and not empty, by their paths with slashes.
fn files(folder: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    walk(folder, "", depth, &mut found);
    found
}

fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        if !is_safe_path(&path) || found.len() >= MAX_FILES {
            continue;
        }
        // Follows links, as the snapshots of Hugging Face's cache are made of them.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_dir() && depth > 0 {
            walk(&entry.path(), &format!("{path}/"), depth - 1, found);
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push(path);
        }
    }
}
