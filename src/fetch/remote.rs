//! Models of the hub: from a repository's name to a plan, and to a model that is here.

use std::path::{Path, PathBuf};

use super::choose::{CONFIG, Choice, INDEX, SINGLE, Weights, choose, shards};
use super::fail::Fail;
use super::http::{Much, explain, read};
use super::hub;
use super::listing::{Listing, ask, refused};
use super::options::FetchOptions;
use super::plan::{Plan, PlannedFile};
use super::progress::Progress;
use super::repository::Repository;
use super::stores;
use super::wanted::Sum;
use crate::backend::{Geometry, Kernels};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, check_gguf_architecture, check_gguf_head};

/// The largest `config.json` or index that is read into memory.
const JSON_LIMIT: u64 = 64 << 20;

/// Bytes of a GGUF file that are read before all of it is: the architecture stands among
/// the first keys.
const HEAD: u64 = 64 << 10;

/// Returns the path of a model of the hub, a file or a folder, fetching it if need be.
///
/// It is looked for here first: as an earlier fetch left it, in `options.model_dir`, then in
/// the caches of other programs, which are used in place and never changed. Else the hub is
/// asked for its newest commit (also if `options.refresh` is set and the model came from an
/// earlier fetch), and every file is fetched at that commit and checked against the size and
/// sum that the hub gives. What kvfold cannot run is refused before weights are fetched. A
/// fetch that was interrupted is resumed by the next.
///
/// # Errors
/// [`Error::Fetch`] with what was tried, [`Error::UnknownArchitecture`],
/// [`Error::DiskFull`], [`Error::CacheFolder`], [`Error::Cancelled`].
pub fn fetch_repository(
    repository: &Repository,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let failed = |reasons: Vec<String>| Error::Fetch {
        model: repository.to_string(),
        reasons: reasons.join("; "),
    };
    let mut reasons = Vec::new();
    let known = Plan::load(repository, options);
    // A plan of which nothing more than a part is here gives way to a cache that has it all.
    let complete = known.as_ref().is_some_and(|plan| plan.is_complete(repository, options));
    if !complete {
        let (path, why_not) = stores::find(repository, options);
        for (store, reason) in why_not {
            progress.failed(&store, &reason);
            reasons.push(format!("{store}: {reason}"));
        }
        if let Some(path) = path {
            progress.done(&path);
            return Ok(path);
        }
    }
    let plan = match known {
        Some(plan) if !options.refresh || options.offline => plan,
        known => match make_plan(repository, options) {
            Ok(plan) => plan,
            Err(Fail::Fatal(error)) => return Err(error),
            Err(Fail::Source(reason) | Fail::Skipped(reason)) => match known {
                Some(plan) if complete => {
                    progress.failed("the hub", &format!("{reason}; what is here is used"));
                    plan
                }
                _ => {
                    reasons.push(reason);
                    return Err(failed(reasons));
                }
            },
        },
    };
    match plan.complete(repository, options, progress) {
        Ok(path) => {
            progress.done(&path);
            Ok(path)
        }
        Err(Fail::Fatal(error)) => Err(error),
        Err(Fail::Source(reason) | Fail::Skipped(reason)) => {
            reasons.push(reason);
            reasons.push(format!(
                "the same command goes on where it was, `kvfold fetch {repository}` asks the hub anew"
            ));
            Err(failed(reasons))
        }
    }
}

fn how_to_go_on(repository: &Repository) -> String {
    format!(
        "a model that was copied here by other means is used by its path, or as \
         KVFOLD_MODEL_DIR/{}; HF_ENDPOINT names a mirror",
        repository.id()
    )
}

/// Asks the hub what there is, chooses, and refuses what cannot be run.
fn make_plan(repository: &Repository, options: &FetchOptions) -> Result<Plan, Fail> {
    if options.offline {
        let reason = "it is not here, and HF_HUB_OFFLINE is set, so the hub was not asked";
        return Err(Fail::Skipped(format!("{reason}; {}", how_to_go_on(repository))));
    }
    let listing = ask(repository, options).map_err(|fail| match fail {
        Fail::Source(reason) => Fail::Source(format!("{reason}; {}", how_to_go_on(repository))),
        other => other,
    })?;
    let names: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
    let choice = choose(&names, repository.selection.as_deref());
    let choice = choice.map_err(Fail::Source)?;
    let asker = Asker { repository, listing: &listing, options };
    let (open, paths) = match choice {
        Choice::Gguf(parts) => {
            asker.check_gguf(&parts)?;
            let open = parts.first().cloned();
            // The first part, which is the one that is opened, comes last.
            (open, parts.into_iter().rev().collect())
        }
        Choice::Folder { files, weights } => {
            asker.check_config()?;
            let mut paths = match weights {
                Weights::Single => vec![SINGLE.to_owned()],
                Weights::Index => {
                    let index = asker.small(INDEX)?;
                    let mut paths = shards(&index).map_err(Fail::Source)?;
                    paths.push(INDEX.to_owned());
                    paths
                }
            };
            paths.extend(files);
            (None, paths)
        }
    };
    let file = |path: String| {
        let (size, sum) = listing.file(&path)?;
        Ok(PlannedFile { size, sum: sum.clone(), path })
    };
    let files = paths.into_iter().map(file).collect::<std::result::Result<_, String>>();
    let files = files.map_err(Fail::Source)?;
    let plan = Plan { asked: repository.to_string(), commit: listing.commit.clone(), open, files };
    plan.save(repository, options)?;
    Ok(plan)
}

/// Looks into files of a repository before they are fetched.
struct Asker<'a> {
    repository: &'a Repository,
    listing: &'a Listing,
    options: &'a FetchOptions,
}

impl Asker<'_> {
    /// What messages call a file.
    fn name(&self, path: &str) -> PathBuf {
        Path::new(&self.repository.id()).join(path)
    }

    fn url(&self, path: &str) -> String {
        let Self { repository, listing, options } = self;
        hub::url(&options.hub_endpoint, &repository.id(), &listing.commit, path)
    }

    /// A whole small file, checked as all others are.
    fn small(&self, path: &str) -> Result<Vec<u8>, Fail> {
        let (size, sum) = self.listing.file(path).map_err(Fail::Source)?;
        let url = self.url(path);
        if size > JSON_LIMIT {
            return Err(Fail::Source(format!("{url}: has {size} bytes, which is no such file")));
        }
        let answer = read(&url, Much::All(size), self.options)?;
        match answer.status {
            200 if is_of(&answer.body, sum) => Ok(answer.body),
            200 => Err(Fail::Source(format!(
                "{url}: {} bytes came whose {} is not the one that the hub says{}",
                answer.body.len(),
                sum.kind(),
                if answer.body.starts_with(b"<") { " (a web page, of a proxy?)" } else { "" }
            ))),
            401 | 403 => {
                let reason = refused(&answer, self.repository, self.options);
                Err(Fail::Source(format!("{url}: {reason}")))
            }
            status => Err(Fail::Source(format!("{url}: {}", explain(status)))),
        }
    }

    /// Refuses a `config.json` that kvfold cannot run.
    fn check_config(&self) -> Result<(), Fail> {
        let text = self.small(CONFIG)?;
        let text = String::from_utf8_lossy(&text);
        let runs = |config: ModelConfig| Geometry::gqa(config.head_dim).check(Kernels::Cpu);
        match ModelConfig::from_json(&text).and_then(runs) {
            Ok(()) => Ok(()),
            Err(Error::UnknownArchitecture { name, supported, .. }) => {
                let path = self.name(CONFIG);
                Err(Fail::Fatal(Error::UnknownArchitecture { path, name, supported }))
            }
            Err(error) => Err(Fail::Source(format!("it cannot be run: {error}"))),
        }
    }

    /// Refuses a GGUF file of an architecture that kvfold does not know.
    fn check_gguf(&self, parts: &[String]) -> Result<(), Fail> {
        let Some(path) = parts.first() else { return Ok(()) };
        let name = self.name(path);
        if let Some(architecture) = &self.listing.gguf_architecture {
            // Of one of its GGUF files, which may be a drafter or a picture tower; if this is
            // known, the others are read as well.
            if check_gguf_architecture(architecture, &name).is_ok() {
                return Ok(());
            }
        }
        let url = self.url(path);
        let (size, _) = self.listing.file(path).map_err(Fail::Source)?;
        let answer = read(&url, Much::First(HEAD.min(size)), self.options)?;
        match answer.status {
            200 | 206 => match check_gguf_head(&answer.body, &name) {
                Err(Error::BadFile { what, .. }) => Err(Fail::Source(format!("{url}: {what}"))),
                other => Ok(other?),
            },
            401 | 403 => {
                let reason = refused(&answer, self.repository, self.options);
                Err(Fail::Source(format!("{url}: {reason}")))
            }
            status => Err(Fail::Source(format!("{url}: {}", explain(status)))),
        }
    }
}

/// Whether `bytes` have the sum.
fn is_of(bytes: &[u8], sum: &Sum) -> bool {
    use sha1::{Digest, Sha1};
    let hex = |digest: &[u8]| digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match sum {
        Sum::Sha256(digits) => hex(&sha2::Sha256::digest(bytes)) == *digits,
        Sum::GitBlob(digits) => {
            let start = Sha1::new().chain_update(format!("blob {}\0", bytes.len()));
            hex(&start.chain_update(bytes).finalize()) == *digits
        }
    }
}
