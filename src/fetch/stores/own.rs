//! kvfold's cache, and the user's folder of models.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::manifest::catalog;
use super::super::options::FetchOptions;
use super::super::plan;
use super::super::repository::Repository;
use super::folder;
use super::found::{Found, Store};

/// `OWNER/NAME`, or `NAME`, in the user's folder of models.
pub(super) fn find(
    repository: &Repository,
    options: &FetchOptions,
) -> Option<Result<PathBuf, String>> {
    let folder = options.model_dir.as_ref()?;
    if repository.revision.is_some() {
        // Nothing there says which revision it is.
        return None;
    }
    let candidates = [folder.join(repository.id()), folder.join(&repository.name)];
    candidates.iter().find_map(|path| folder::find(path, repository.selection.as_deref()))
}

/// The catalogue's models that are here, models of other manifests, those of the hub, and
/// the user's.
pub(super) fn list(options: &FetchOptions) -> Vec<Found> {
    let mut found: Vec<Found> = catalog()
        .iter()
        .filter_map(|manifest| {
            let path = options.model_path(manifest);
            let bytes = fs::metadata(&path).ok().filter(|m| m.is_file())?.len();
            let short = format!("has {bytes} of {} bytes", manifest.size);
            Some(Found {
                name: manifest.name.clone(),
                store: Store::Kvfold,
                path,
                bytes,
                incomplete: (bytes != manifest.size).then_some(short),
            })
        })
        .collect();
    let known: Vec<PathBuf> = found.iter().map(|found| found.path.clone()).collect();
    let others = of_folder(&options.cache_dir.join("models"), Store::Kvfold);
    found.extend(others.into_iter().filter(|other| !known.contains(&other.path)));
    for (repository, plan) in plan::all(options) {
        let complete = plan.is_complete(&repository, options);
        found.push(Found {
            name: repository.to_string(),
            store: Store::Kvfold,
            path: plan.path(&repository, options),
            bytes: plan.weights(),
            incomplete: (!complete)
                .then(|| format!("not all of it is here; `kvfold fetch {repository}` goes on")),
        });
    }
    if let Some(folder) = &options.model_dir {
        found.extend(of_folder(folder, Store::ModelDir));
    }
    found
}

/// The models of a folder and of the two levels of folders in it, by their paths.
fn of_folder(root: &Path, store: Store) -> Vec<Found> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    for depth in 0..3 {
        let mut below = Vec::new();
        for folder in &folders {
            for model in folder::list_flat(folder) {
                found.push(Found {
                    name: model.path.to_string_lossy().into_owned(),
                    store,
                    path: model.path,
                    bytes: model.bytes,
                    incomplete: model.incomplete,
                });
            }
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            below.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        below.sort();
        folders = if depth < 2 { below } else { Vec::new() };
    }
    found
}
