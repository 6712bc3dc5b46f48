//! A plan: the files of a repository that make a model, at one commit.
//!
//! ```text
//! hub/OWNER/NAME/plans/HASH.json     what was asked for, and the files that it came to
//! hub/OWNER/NAME/COMMIT/PATH         the files; the one that makes a model of them comes last
//! ```
//!
//! A plan is written before the first file, so that an interrupted fetch goes on without
//! asking the hub again, and a model that is here needs no network.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{Check, check, stamp_of};
use super::fail::Fail;
use super::hub;
use super::options::FetchOptions;
use super::place::Place;
use super::progress::{Progress, Silent};
use super::repository::{Repository, is_safe_path};
use super::space;
use super::wanted::{Sum, Wanted, is_hex};
use super::whole::Whole;
use crate::error::{Error, Result};

/// The files of a repository that make a model.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// What was asked for, as [`Repository`] prints it.
    pub(super) asked: String,
    /// The commit that it was.
    pub(super) commit: String,
    /// The file to open; none: the folder.
    pub(super) open: Option<String>,
    /// The files, in the order in which they are put into place.
    pub(super) files: Vec<PlannedFile>,
}

/// A file of a plan.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedFile {
    /// Its path in the repository.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its sum.
    pub(super) sum: Sum,
}

/// The folder of a repository in the cache.
fn home(repository: &Repository, options: &FetchOptions) -> PathBuf {
    options.cache_dir.join("hub").join(&repository.owner).join(&repository.name)
}

impl Plan {
    /// The plan that an earlier fetch made for the same request.
    pub(super) fn load(repository: &Repository, options: &FetchOptions) -> Option<Self> {
        let plan = Self::read(&file_of(repository, options))?;
        (plan.asked == repository.to_string()).then_some(plan)
    }

    /// A plan's file, unless it is damaged: then the hub is asked anew.
    pub(super) fn read(file: &Path) -> Option<Self> {
        let plan: Self = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let safe = |file: &PlannedFile| is_safe_path(&file.path) && file.sum.is_valid();
        let opens = |open: &String| plan.files.iter().any(|file| file.path == *open);
        let valid = is_hex(&plan.commit, 40)
            && !plan.files.is_empty()
            && plan.files.iter().all(safe)
            && plan.open.as_ref().is_none_or(opens);
        valid.then_some(plan)
    }

    /// Keeps it for the next time.
    pub(super) fn save(&self, repository: &Repository, options: &FetchOptions) -> Result<()> {
        let file = file_of(repository, options);
        let refused = |source| Error::CacheFolder { folder: file.clone(), source };
        let json = serde_json::to_vec_pretty(self).map_err(|e| refused(e.into()))?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(refused)?;
        }
        // A torn plan does not parse, so it needs no atomic write.
        fs::write(&file, json).map_err(refused)
    }

    /// What is opened when all files are there.
    pub(super) fn path(&self, repository: &Repository, options: &FetchOptions) -> PathBuf {
        let folder = home(repository, options).join(&self.commit);
        match &self.open {
            Some(open) => folder.join(open),
            None => folder,
        }
    }

    /// Bytes of the weights.
    pub(super) fn weights(&self) -> u64 {
        let is_weights = |file: &&PlannedFile| {
            [".gguf", ".safetensors"]
                .iter()
                .any(|end| file.path.to_ascii_lowercase().ends_with(end))
        };
        self.files.iter().filter(is_weights).fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// Whether all files are here, by size and stamp.
    pub(super) fn is_complete(&self, repository: &Repository, options: &FetchOptions) -> bool {
        let options = FetchOptions { verify: false, ..options.clone() };
        self.wanted(repository, &options).iter().all(|wanted| {
            let stamp = stamp_of(&wanted.path);
            // Never hashed here: without a stamp the size has to do.
            let size = fs::metadata(&wanted.path).is_ok_and(|m| m.len() == wanted.size);
            size && (!stamp.exists()
                || matches!(
                    check(&wanted.path, Some(&stamp), wanted, &options, &mut Silent),
                    Ok(Check::Good)
                ))
        })
    }

    fn wanted(&self, repository: &Repository, options: &FetchOptions) -> Vec<Wanted> {
        let folder = home(repository, options).join(&self.commit);
        let wanted = |file: &PlannedFile| Wanted {
            path: folder.join(&file.path),
            size: file.size,
            sum: file.sum.clone(),
            says: "the hub",
        };
        self.files.iter().map(wanted).collect()
    }

    /// Fetches what is not here and gives the path to open.
    pub(super) fn complete(
        &self,
        repository: &Repository,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, Fail> {
        let all = self.wanted(repository, options);
        let mut missing = Vec::new();
        for (file, wanted) in self.files.iter().zip(&all) {
            match check(&wanted.path, Some(&stamp_of(&wanted.path)), wanted, options, progress)? {
                Check::Good => {}
                Check::Absent => missing.push((file, wanted)),
                Check::Bad(error) => {
                    progress.failed("the cached copy", &error.to_string());
                    missing.push((file, wanted));
                }
            }
        }
        let path = self.path(repository, options);
        if missing.is_empty() {
            return Ok(path);
        }
        if options.offline {
            let what = format!("{} of {} files are missing", missing.len(), all.len());
            return Err(Fail::Source(format!("{what}, and HF_HUB_OFFLINE is set")));
        }
        let total = missing.iter().fold(0_u64, |sum, (file, _)| sum.saturating_add(file.size));
        let needed = missing.iter().fold(0_u64, |sum, (_, w)| sum.saturating_add(w.missing()));
        space::check(&home(repository, options), needed)?;
        progress.source(&format!(
            "{} at {}: {}, {} MB",
            options.hub_endpoint.trim_end_matches('/'),
            &self.commit[..12],
            count(missing.len()),
            total.div_ceil(1_000_000)
        ));
        let mut before = 0;
        for (file, wanted) in missing {
            let mut whole = Whole::new(&mut *progress, &wanted.path, before, total);
            let place = Place::open(wanted, options, &mut whole)?;
            // If not, another process fetched it while this one waited.
            if !place.is_filled() {
                let url =
                    hub::url(&options.hub_endpoint, &repository.id(), &self.commit, &file.path);
                hub::download(&url, &place, options, &mut whole)?;
            }
            before += file.size;
        }
        Ok(path)
    }
}

fn count(files: usize) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}

/// Where the plan for a request is kept: a request may hold what a file name cannot.
fn file_of(repository: &Repository, options: &FetchOptions) -> PathBuf {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(repository.to_string());
    let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    home(repository, options).join("plans").join(name + ".json")
}

/// All plans in the cache, with what they are of.
pub(super) fn all(options: &FetchOptions) -> Vec<(Repository, Plan)> {
    let mut plans = Vec::new();
    for owner in folders(&options.cache_dir.join("hub")) {
        for name in folders(&owner) {
            for entry in fs::read_dir(name.join("plans")).into_iter().flatten().flatten() {
                let Some(plan) = Plan::read(&entry.path()) else { continue };
                let Some(repository) = Repository::parse(&plan.asked) else { continue };
                // A plan that lies elsewhere says nothing of the files here.
                if file_of(&repository, options) == entry.path() {
                    plans.push((repository, plan));
                }
            }
        }
    }
    plans.sort_by_key(|(repository, _)| repository.to_string());
    plans
}

/// The folders in a folder.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    paths
        .filter(|path| matches!(path.components().next_back(), Some(Component::Normal(_))))
        .collect()
}
