//! Runs over a made-up executor: what is measured, when, and what is left on disk.

use kvfold::eval::ablate::{
    Cell, CellLimits, Executor, Failure, Machine, Measured, Need, Plan, Planned, ResultFile, Row,
    Summary, Watch, Worker, run,
};
use kvfold::eval::{Metric, Outcome, Trial};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Counts calls, and goes wrong when it is told to.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    workers: AtomicUsize,
    /// Sets the run's cancel flag during this call.
    cancel_at: Option<usize>,
    /// Formats that fail.
    broken: Vec<&'static str>,
    /// Bytes that workers hold now, and the most that they held.
    held: AtomicU64,
    most: AtomicU64,
    slow: bool,
}

impl Executor for Fake {
    fn need(&self, cell: &Cell) -> Need {
        Need { model: if cell.model == "large" { 60 } else { 30 }, cell: cell.chunk as u64 }
    }

    fn worker(&self) -> kvfold::Result<Box<dyn Worker + '_>> {
        self.workers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(FakeWorker { fake: self, model: None, held: 0 }))
    }
}

struct FakeWorker<'a> {
    fake: &'a Fake,
    model: Option<String>,
    held: u64,
}

impl FakeWorker<'_> {
    fn hold(&mut self, bytes: u64) {
        let before = self.fake.held.fetch_sub(self.held, Ordering::SeqCst) - self.held;
        self.held = bytes;
        self.fake.held.fetch_add(bytes, Ordering::SeqCst);
        self.fake.most.fetch_max(before + bytes, Ordering::SeqCst);
    }
}

impl Drop for FakeWorker<'_> {
    fn drop(&mut self) {
        self.hold(0);
    }
}

impl Worker for FakeWorker<'_> {
    fn run(
        &mut self,
        cell: &Cell,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Measured, Failure> {
        let model = self.model.get_or_insert(cell.model.clone());
        assert_eq!(*model, cell.model, "a worker keeps to its model");
        let need = self.fake.need(cell);
        self.hold(need.model + need.cell);
        let mut calls = self.fake.calls.lock().unwrap();
        calls.push(format!("{} {cell}", cell.model));
        let call = calls.len();
        drop(calls);
        if self.fake.slow {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.fake.cancel_at == Some(call) {
            cancel.store(true, Ordering::Relaxed);
            return Err(Failure::Cancelled);
        }
        if self.fake.broken.contains(&cell.kv.as_str()) {
            return Err(Failure::Failed(format!("{} is broken", cell.kv)));
        }
        progress(1, 1);
        Ok(measured(if cell.kv == "nan" { f64::NAN } else { 0.5 }))
    }
}

fn measured(value: f64) -> Measured {
    let trials = vec![Trial { id: "a".into(), length: 64, score: 0.5, ..Trial::default() }];
    Measured { metric: Metric::Score, outcome: Outcome { value, trials, ..Outcome::default() } }
}

/// Every combination, its name as the key.
fn cells(models: &[&str], kv: &[&str]) -> Vec<Planned> {
    let mut cells = Vec::new();
    for model in models {
        for kv in kv {
            let cell = Cell {
                model: (*model).into(),
                kv: (*kv).into(),
                policy: "none".into(),
                chunk: 10,
                task: serde_json::json!({"task": "niah"}),
                ..Cell::default()
            };
            cells.push(Planned { key: format!("{model}-{kv}"), cell, bits: 3.0 });
        }
    }
    cells
}

const KV: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A file of results in a folder of its own.
struct Results(TempDir);

impl Results {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("results.jsonl")
    }

    fn run(&self, cells: &[Planned], fake: &Fake, retry_errors: bool) -> Summary {
        self.run_with(cells, fake, retry_errors, 1, None)
    }

    fn run_with(
        &self,
        cells: &[Planned],
        fake: &Fake,
        retry_errors: bool,
        jobs: usize,
        memory: Option<u64>,
    ) -> Summary {
        let mut output = ResultFile::open(self.path()).unwrap();
        let plan = Plan { spec: "made up", cells, retry_errors };
        let limits = CellLimits { jobs, memory, machine: Machine::here(jobs, 1) };
        let (cancel, quiet) = (AtomicBool::new(false), Quiet);
        run(&plan, &mut output, fake, &limits, &cancel, &quiet).unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    fn rows(&self) -> Vec<Row> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

struct Quiet;

impl Watch for Quiet {
    fn begin(&self, _: usize, _: &Cell) {}
    fn step(&self, _: usize, _: usize, _: usize) {}
    fn end(&self, _: usize, _: &Row) {}
}

#[test]
fn finished_cells_are_not_measured_again() {
    let (results, fake) = (Results::new(), Fake::default());
    let cells = cells(&["small", "large"], &KV);
    let summary = results.run(&cells, &fake, false);
    assert_eq!(summary, Summary { cells: 10, measured: 10, ..Summary::default() });
    let rows = results.rows();
    let keys: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    assert_eq!(keys, cells.iter().map(|planned| planned.key.as_str()).collect::<Vec<_>>());
    assert_eq!(fake.workers.load(Ordering::Relaxed), 2, "a model is loaded once");
    let row = &rows[3];
    assert_eq!((row.spec.as_str(), row.bits, row.metric), ("made up", 3.0, Some(Metric::Score)));
    assert_eq!((&row.cell, row.outcome.as_ref().unwrap().value), (&cells[3].cell, 0.5));
    let text = results.text();
    let summary = results.run(&cells, &fake, true);
    assert_eq!(summary, Summary { cells: 10, found: 10, ..Summary::default() });
    assert_eq!((fake.calls.lock().unwrap().len(), results.text()), (10, text));
}

#[test]
fn a_torn_last_line_is_cut_off_and_measured_again() {
    let whole = Results::new();
    let cells = cells(&["small"], &KV);
    whole.run(&cells, &Fake::default(), false);
    let text = whole.text();
    let last = text[..text.len() - 1].rfind('\n').unwrap() + 1;
    // In the line, at its very start and just before its end.
    for end in [last + 1, last + 40, text.len() - 2] {
        std::fs::write(whole.path(), &text[..end]).unwrap();
        let output = ResultFile::open(whole.path()).unwrap();
        assert_eq!((output.cut(), output.rows().len()), (Some(end - last), 4));
        drop(output);
        assert_eq!(whole.text(), text[..last]);
        let fake = Fake::default();
        let summary = whole.run(&cells, &fake, false);
        assert_eq!((summary.found, summary.measured), (4, 1));
        assert_eq!(*fake.calls.lock().unwrap(), ["small niah e seed 0"]);
        assert!(whole.text().starts_with(&text[..last]));
        assert_eq!(whole.rows().len(), 5);
    }
    // Only the line's end is missing: nothing is lost.
    std::fs::write(whole.path(), &text[..text.len() - 1]).unwrap();
    let fake = Fake::default();
    assert_eq!(whole.run(&cells, &fake, false).found, 5);
    assert_eq!((fake.calls.lock().unwrap().len(), whole.text()), (0, text));
}

#[test]
fn other_damage_is_named_and_left_alone() {
    let results = Results::new();
    results.run(&cells(&["small"], &KV), &Fake::default(), false);
    let text = results.text().replacen("\"key\"", "\"kex\"", 2);
    let damaged = text.replacen("\"kex\"", "\"key\"", 1);
    std::fs::write(results.path(), &damaged).unwrap();
    let error = ResultFile::open(results.path()).unwrap_err().to_string();
    assert!(error.contains("results.jsonl: line 2: not a row of results: "), "{error}");
    assert!(error.contains("`key`") && !error.contains('\n'), "{error}");
    assert_eq!(results.text(), damaged);
    let error = ResultFile::open(Path::new("/nonexistent/results.jsonl")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/results.jsonl: "), "{error}");
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let results = Results::new();
    let cells = cells(&["small", "large"], &KV);
    let first = Fake { cancel_at: Some(4), ..Fake::default() };
    let summary = results.run(&cells, &first, false);
    assert_eq!(summary, Summary { cells: 10, measured: 3, cancelled: true, ..Summary::default() });
    let text = results.text();
    assert_eq!(results.rows().len(), 3);
    let second = Fake::default();
    let summary = results.run(&cells, &second, false);
    assert_eq!(summary, Summary { cells: 10, found: 3, measured: 7, ..Summary::default() });
    assert!(results.text().starts_with(&text));
    // The interrupted cell was begun twice, every other one once.
    let mut calls: HashMap<String, usize> = HashMap::new();
    for call in
        first.calls.into_inner().unwrap().into_iter().chain(second.calls.into_inner().unwrap())
    {
        *calls.entry(call).or_default() += 1;
    }
    assert_eq!((calls.len(), calls["small niah d seed 0"]), (10, 2));
    assert_eq!(calls.values().sum::<usize>(), 11);
}

#[test]
fn a_cell_that_fails_does_not_stop_the_others() {
    let results = Results::new();
    let cells = cells(&["small"], &["a", "nan", "c", "d"]);
    let fake = Fake { broken: vec!["c"], ..Fake::default() };
    let summary = results.run(&cells, &fake, false);
    assert_eq!(summary, Summary { cells: 4, measured: 2, failed: 2, ..Summary::default() });
    let errors: Vec<_> = results.rows().into_iter().map(|row| row.error).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(errors, [None, some("the result is NaN"), some("c is broken"), None]);
    // They count as done, and are said again, until asked for.
    let mended = Fake::default();
    let summary = results.run(&cells, &mended, false);
    assert_eq!(summary, Summary { cells: 4, found: 4, failed: 2, ..Summary::default() });
    let summary = results.run(&cells, &mended, true);
    assert_eq!(
        summary,
        Summary { cells: 4, found: 2, measured: 1, failed: 1, ..Summary::default() }
    );
    assert_eq!(mended.calls.lock().unwrap().len(), 2);
    assert_eq!(results.run(&cells, &Fake::default(), false).failed, 1);
}

#[test]
fn two_runs_on_one_file_are_refused() {
    let results = Results::new();
    let first = ResultFile::open(results.path()).unwrap();
    let error = ResultFile::open(results.path()).unwrap_err().to_string();
    assert!(error.contains("results.jsonl: another process is writing to it"), "{error}");
    drop(first);
    ResultFile::open(results.path()).unwrap();
}

#[test]
fn workers_side_by_side_stay_within_the_memory() {
    let kv: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
    let kv: Vec<&str> = kv.iter().map(String::as_str).collect();
    let cells = cells(&["small", "large"], &kv);
    // A small cell takes 40 and a large one 70.
    for (memory, jobs) in [(None, 3), (Some(115), 3), (Some(110), 4), (Some(80), 2), (Some(70), 2)]
    {
        let results = Results::new();
        let fake = Fake { slow: true, ..Fake::default() };
        let summary = results.run_with(&cells, &fake, false, jobs, memory);
        assert_eq!((summary.measured, summary.failed), (24, 0), "{memory:?}");
        assert_eq!(results.rows().len(), 24);
        let most = fake.most.into_inner();
        assert!(memory.is_none_or(|memory| most <= memory), "{most} of {memory:?}");
        assert_eq!(fake.held.into_inner(), 0);
    }
    let results = Results::new();
    let summary = results.run_with(&cells, &Fake::default(), false, 2, Some(69));
    assert_eq!((summary.measured, summary.failed), (12, 12));
    let refused = results.rows().into_iter().filter_map(|row| row.error);
    assert!(refused.clone().count() == 12);
    for error in refused {
        assert!(error.contains("70 bytes") && error.contains("raise --memory"), "{error}");
    }
}
