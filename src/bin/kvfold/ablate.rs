//! `kvfold ablate`: measures a grid of models, formats and tasks into JSON lines.

use crate::model_args::{model_path, thread_counts};
use crate::size;
use crate::terminal::{print, say};
use anyhow::{Result, bail};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kvfold::backend::cpu::THREADS;
use kvfold::eval::ablate::{
    Cell, CellLimits, Machine, ModelFacts, Plan, Planned, Processes, ResultFile, Row, Spec,
    Summary, Watch, available, cores, grid, pending, run as measure, serve,
};
use kvfold::printable::{Printable, printable};
use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cores that a cell gets at least, unless --jobs says otherwise.
const CORES_A_JOB: usize = 4;

/// Measure a grid of models, KV formats and tasks into JSON lines.
#[derive(Debug, Args)]
pub struct AblateArgs {
    /// The spec, a TOML file: see examples/ablate.toml
    #[arg(value_name = "SPEC")]
    spec: PathBuf,

    /// The file that lines are appended to, and found in by the next run [default: the spec's name with .jsonl]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Cells that are measured side by side; they share the cores [default: one for every 4 cores, on a GPU one]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Memory that they may take together [default: what is available]
    #[arg(long, value_parser = size::parse, value_name = "BYTES")]
    memory: Option<u64>,

    /// Try cells again that failed before
    #[arg(long)]
    retry_errors: bool,

    /// List the cells, and what is known of them, and measure nothing
    #[arg(long)]
    dry_run: bool,
}

static IN_PROGRESS: AtomicBool = AtomicBool::new(false);

/// Whether cells are being measured: an interruption must let their workers end.
pub fn in_progress() -> bool {
    IN_PROGRESS.load(Ordering::Relaxed)
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &AblateArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    let spec = Spec::load(&args.spec)?;
    // What is wrong with the device is said before anything is fetched.
    let on_gpu = spec.device.open()?.is_some();
    let mut models = BTreeMap::new();
    for model in &spec.models {
        let path = model_path(model, cancel)?;
        models.insert(model.clone(), ModelFacts::read(path, spec.weights)?);
    }
    let files = models.iter().map(|(name, facts)| (name.clone(), facts.path.clone())).collect();
    let cells = grid(&spec, &files)?;
    for (name, facts) in &models {
        let mut cells =
            cells.iter().map(|planned| &planned.cell).filter(|cell| cell.model == *name);
        if let Some(warning) = cells.find_map(|cell| facts.warning(cell)) {
            say(format_args!("warning: {name}: {warning}"));
        }
    }
    let mut output =
        ResultFile::open(args.output.clone().unwrap_or_else(|| args.spec.with_extension("jsonl")))?;
    if let Some(bytes) = output.cut() {
        say(format_args!(
            "{}: the last line had been cut off and was removed ({bytes} bytes); its cell is \
             measured again",
            output.path().display()
        ));
    }
    let plan = Plan { spec: &spec.name, cells: &cells, retry_errors: args.retry_errors };
    if args.dry_run {
        return list(&plan, &output, &models);
    }
    let default = if on_gpu { 1 } else { (cores() / CORES_A_JOB).max(1) };
    let jobs = args.jobs.map_or(default, usize::from);
    let threads = (cores() / jobs).clamp(1, *THREADS.end());
    let limits = CellLimits {
        jobs,
        memory: args.memory.or_else(available),
        machine: Machine::here(jobs, threads),
    };
    let program = std::env::current_exe()?;
    let command = || {
        let mut command = Command::new(&program);
        command.arg("ablate-worker").arg("--threads").arg(threads.to_string());
        // The pool behind calibrations reads its size there.
        command.env("RAYON_NUM_THREADS", threads.to_string());
        command
    };
    let executor = Processes { models, command };
    let bars = Bars::new(&plan, &output, jobs);
    IN_PROGRESS.store(true, Ordering::Relaxed);
    let summary = measure(&plan, &mut output, &executor, &limits, cancel, &bars);
    IN_PROGRESS.store(false, Ordering::Relaxed);
    bars.clear();
    report(&summary?, &output)
}

/// What a worker is told before its jobs.
#[derive(Args)]
pub struct WorkerArgs {
    /// Threads to use [default: all cores]
    #[arg(long, value_parser = thread_counts())]
    pub threads: Option<u16>,
}

/// A worker's side: `kvfold ablate-worker`.
pub fn work() -> Result<()> {
    Ok(serve(BufReader::new(std::io::stdin()), std::io::stdout())?)
}

/// Says how it ended.
fn report(summary: &Summary, output: &ResultFile) -> Result<()> {
    let path = Printable(output.path().display());
    let Summary { cells, found, measured, failed, cancelled } = *summary;
    if cancelled {
        let done = found + measured;
        say(format_args!("{done} of {cells} cells are in {path}; the same command goes on"));
        bail!("cancelled");
    }
    print(&format!("{cells} cells: {measured} measured, {found} found in {path}\n"))?;
    if failed > 0 {
        bail!(
            "{failed} of {cells} cells failed: see \"error\" in {path}; --retry-errors tries them again"
        );
    }
    Ok(())
}

/// What would be measured.
fn list(plan: &Plan<'_>, output: &ResultFile, models: &BTreeMap<String, ModelFacts>) -> Result<()> {
    let (pending, _) = pending(plan, output);
    let mut lines = String::new();
    for Planned { cell, key, .. } in plan.cells {
        let state = match pending.iter().any(|planned| planned.key == *key) {
            true => "pending",
            false => "found",
        };
        let need = models.get(&cell.model).map(|facts| facts.need(cell)).unwrap_or_default();
        let bytes = size::show(need.model.saturating_add(need.cell));
        let (model, cell) = (Printable(&cell.model), Printable(cell));
        lines += &format!("{key}  {state:<7}  {bytes:>8}  {model} {cell}\n");
    }
    lines += &format!("{} cells, {} pending\n", plan.cells.len(), pending.len());
    print(&lines)
}

/// A bar for the grid and one a worker; hidden where stderr is no terminal.
struct Bars {
    all: ProgressBar,
    workers: Vec<ProgressBar>,
    group: MultiProgress,
}

impl Bars {
    fn new(plan: &Plan<'_>, output: &ResultFile, jobs: usize) -> Self {
        let group = MultiProgress::new();
        let style = |template: &str| {
            let style = ProgressStyle::with_template(template);
            style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
        };
        let cells = plan.cells.len();
        let left = pending(plan, output).0.len();
        let all = group.add(ProgressBar::new(cells as u64));
        all.set_style(style("cells [{bar:30}] {pos}/{len} {elapsed} left {eta}{msg}"));
        all.set_position((cells - left) as u64);
        all.reset_eta();
        let worker = |_| {
            let bar = group.add(ProgressBar::new(0));
            bar.set_style(style("  {msg:40!} [{bar:30}] {pos}/{len}"));
            bar
        };
        let workers = (0..jobs.min(left)).map(worker).collect();
        Self { all, workers, group }
    }

    fn clear(&self) {
        // Bars that cannot be cleared do no harm.
        let _ = self.group.clear();
    }
}

impl Watch for Bars {
    fn begin(&self, worker: usize, cell: &Cell) {
        if let Some(bar) = self.workers.get(worker) {
            bar.set_length(0);
            bar.set_position(0);
            bar.set_message(printable(&cell.to_string()));
        }
    }

    fn step(&self, worker: usize, done: usize, of: usize) {
        if let Some(bar) = self.workers.get(worker) {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        }
    }

    fn end(&self, worker: usize, row: &Row) {
        if let Some(error) = &row.error {
            let line = format!("{} {}: {error}", row.cell.model, row.cell);
            // Where there are no bars, nothing else says so.
            match self.group.is_hidden() {
                true => say(line),
                false => drop(self.group.println(printable(&line))),
            }
        }
        self.all.inc(1);
        if let Some(bar) = self.workers.get(worker) {
            bar.set_message("");
        }
    }
}
