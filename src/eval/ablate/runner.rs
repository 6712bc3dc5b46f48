//! Measuring the cells of a grid side by side, within a limit of memory.
//!
//! ```text
//! pending cells ─▶ worker 1: first of its loaded model that fits, else of another ─┐
//!              └─▶ worker 2: …                                                     ├─▶ ResultFile
//!                                                   a line a cell, on disk at once ─┘
//! ```

use super::grid::Planned;
use super::output::ResultFile;
use super::row::{Cell, Machine, Row, now};
use crate::error::{Error, Result};
use crate::eval::{Metric, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What came of a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What the outcome's values are.
    pub metric: Metric,
    /// The outcome.
    pub outcome: Outcome,
}

/// Bytes that a worker holds for a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// For the model, as long as it is loaded.
    pub model: u64,
    /// For the cell: cache and buffers.
    pub cell: u64,
}

impl Need {
    fn sum(self) -> u64 {
        self.model.saturating_add(self.cell)
    }
}

/// What measures cells.
pub trait Executor: Sync {
    /// An estimate of what a cell takes.
    fn need(&self, cell: &Cell) -> Need;
    /// A worker with no model loaded.
    ///
    /// # Errors
    /// If it cannot be started.
    fn worker(&self) -> Result<Box<dyn Worker + '_>>;
}

/// Measures one cell after another and keeps the last one's model.
pub trait Worker {
    /// Measures a cell. `progress` is told how many steps of how many are done, and also
    /// while nothing else happens.
    ///
    /// # Errors
    /// [`Failure::Cancelled`] when `cancel` is set; whatever goes wrong. The worker is not
    /// used again then.
    fn run(
        &mut self,
        cell: &Cell,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Measured, Failure>;
}

/// Why a cell has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The run was interrupted; nothing is recorded.
    Cancelled,
    /// What the row says.
    Failed(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled => Self::Cancelled,
            // One line a row, and one an error.
            error => Self::Failed(error.to_string().replace('\n', " ")),
        }
    }
}

/// What is told about a run, from several threads.
pub trait Watch: Sync {
    /// A worker begins a cell.
    fn begin(&self, worker: usize, cell: &Cell);
    /// It has done so many steps of so many.
    fn step(&self, worker: usize, done: usize, of: usize);
    /// Its row is on disk.
    fn end(&self, worker: usize, row: &Row);
}

/// How much of the machine a run may have.
#[derive(Clone, Debug)]
pub struct CellLimits {
    /// Cells side by side, at least 1.
    pub jobs: usize,
    /// Bytes; `None`: no limit.
    pub memory: Option<u64>,
    /// What rows say about the machine.
    pub machine: Machine,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cells of the grid.
    pub cells: usize,
    /// Those whose row was there before.
    pub found: usize,
    /// Those measured now.
    pub measured: usize,
    /// Those that failed, now or, if they were not tried again, before.
    pub failed: usize,
    /// Whether it was interrupted before all were done.
    pub cancelled: bool,
}

/// What a run is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The spec's name.
    pub spec: &'a str,
    /// The grid.
    pub cells: &'a [Planned],
    /// Whether cells that failed before are tried again.
    pub retry_errors: bool,
}

/// Cells that still have to be measured: without a row, or with `retry_errors` without an
/// outcome. With them the number of failed ones that are left as they are.
pub fn pending<'a>(plan: &Plan<'a>, output: &ResultFile) -> (Vec<&'a Planned>, usize) {
    // The last row of a key is the one that counts.
    let rows: HashMap<&str, bool> =
        output.rows().iter().map(|row| (row.key.as_str(), row.outcome.is_some())).collect();
    let mut failed = 0;
    let pending = (plan.cells.iter())
        .filter(|planned| match rows.get(planned.key.as_str()) {
            None => true,
            Some(true) => false,
            Some(false) => {
                failed += usize::from(!plan.retry_errors);
                plan.retry_errors
            }
        })
        .collect();
    (pending, failed)
}

/// Measures every cell that is [`pending`], writes a row for each as soon as it is done,
/// and goes on after cells that fail.
///
/// # Errors
/// [`Error::Io`] if a row cannot be written; rows before it are on disk.
pub fn run(
    plan: &Plan<'_>,
    output: &mut ResultFile,
    executor: &dyn Executor,
    limits: &CellLimits,
    cancel: &AtomicBool,
    watch: &dyn Watch,
) -> Result<Summary> {
    let (pending, failed) = pending(plan, output);
    let found = plan.cells.len() - pending.len();
    let left = pending.iter().map(|&planned| (planned, executor.need(&planned.cell))).collect();
    let jobs = limits.jobs.clamp(1, pending.len().max(1));
    let state = State { left, held: vec![Holding::default(); jobs], ..State::default() };
    let run = Run {
        spec: plan.spec,
        executor,
        limits,
        cancel,
        watch,
        state: Mutex::new(state),
        changed: Condvar::new(),
        output: Mutex::new(output),
    };
    std::thread::scope(|scope| {
        for worker in 0..jobs {
            let run = &run;
            scope.spawn(move || run.work(worker));
        }
    });
    let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.broken {
        Some(error) => Err(error),
        None => Ok(Summary {
            cells: plan.cells.len(),
            found,
            measured: state.measured,
            failed: failed + state.failed,
            cancelled: cancel.load(Ordering::Relaxed) && found + state.done() < plan.cells.len(),
        }),
    }
}

struct Run<'a> {
    spec: &'a str,
    executor: &'a dyn Executor,
    limits: &'a CellLimits,
    cancel: &'a AtomicBool,
    watch: &'a dyn Watch,
    state: Mutex<State<'a>>,
    changed: Condvar,
    output: Mutex<&'a mut ResultFile>,
}

#[derive(Default)]
struct State<'a> {
    /// Cells that no worker has taken, in the grid's order.
    left: Vec<(&'a Planned, Need)>,
    /// What each worker holds.
    held: Vec<Holding>,
    measured: usize,
    failed: usize,
    /// Why no more rows can be written.
    broken: Option<Error>,
}

#[derive(Clone, Default)]
struct Holding {
    model: Option<String>,
    bytes: u64,
}

/// What a worker does next.
enum Next<'a> {
    Cell(&'a Planned),
    /// Give memory back and wait until others have.
    Wait,
    End,
}

impl<'a> State<'a> {
    fn done(&self) -> usize {
        self.measured + self.failed
    }

    /// Takes the first cell of the worker's model that fits beside the others, else the
    /// first of another model. A worker that is alone gets a cell of any size.
    fn take(&mut self, worker: usize, memory: Option<u64>) -> Next<'a> {
        if self.left.is_empty() || self.broken.is_some() {
            return Next::End;
        }
        let others: u64 = (self.held.iter().enumerate())
            .filter(|(other, _)| *other != worker)
            .fold(0, |sum, (_, holding)| sum.saturating_add(holding.bytes));
        let fits = |need: Need| {
            others == 0 || memory.is_none_or(|memory| others.saturating_add(need.sum()) <= memory)
        };
        let model = self.held[worker].model.take();
        let mine = |planned: &Planned| model.as_ref() == Some(&planned.cell.model);
        let first = (self.left.iter())
            .position(|(planned, need)| mine(planned) && fits(*need))
            .or_else(|| self.left.iter().position(|(_, need)| fits(*need)));
        let Some(first) = first else { return Next::Wait };
        let (planned, need) = self.left.remove(first);
        self.held[worker] = Holding { model: Some(planned.cell.model.clone()), bytes: need.sum() };
        Next::Cell(planned)
    }
}

impl<'a> Run<'a> {
    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker's loop.
    fn work(&self, index: usize) {
        let mut worker: Option<Box<dyn Worker + '_>> = None;
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                break;
            }
            let mut state = self.lock();
            let before = state.held[index].model.clone();
            match state.take(index, self.limits.memory) {
                Next::End => break,
                Next::Wait => {
                    drop(state);
                    worker = None;
                    // Only now is what it held free for others.
                    let mut state = self.lock();
                    state.held[index] = Holding::default();
                    self.changed.notify_all();
                    // Woken by time, too: the user may have interrupted the run.
                    let pause = std::time::Duration::from_millis(50);
                    drop(self.changed.wait_timeout(state, pause));
                }
                Next::Cell(planned) => {
                    drop(state);
                    if before.as_ref() != Some(&planned.cell.model) {
                        worker = None;
                    }
                    self.measure(index, &mut worker, planned);
                }
            }
        }
        drop(worker);
        self.lock().held[index] = Holding::default();
        self.changed.notify_all();
    }

    /// Measures a cell and writes its row.
    fn measure<'w>(
        &'w self,
        index: usize,
        worker: &mut Option<Box<dyn Worker + 'w>>,
        planned: &Planned,
    ) {
        self.watch.begin(index, &planned.cell);
        let start = Instant::now();
        let measured = self.attempt(index, worker, planned);
        let (measured, error) = match measured {
            Ok(measured) => (Some(measured), None),
            Err(Failure::Failed(why)) => (None, Some(why)),
            Err(Failure::Cancelled) => return,
        };
        let row = self.row(planned, measured, error, start.elapsed().as_secs_f64());
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let written = output.append(row.clone());
        drop(output);
        let mut state = self.lock();
        match written {
            Ok(()) => {
                *if row.error.is_none() { &mut state.measured } else { &mut state.failed } += 1
            }
            Err(error) => state.broken = Some(error),
        }
        drop(state);
        self.watch.end(index, &row);
        self.changed.notify_all();
    }

    fn attempt<'w>(
        &'w self,
        index: usize,
        worker: &mut Option<Box<dyn Worker + 'w>>,
        planned: &Planned,
    ) -> Result<Measured, Failure> {
        let need = self.executor.need(&planned.cell).sum();
        if let Some(memory) = self.limits.memory.filter(|&memory| need > memory) {
            return Err(Failure::Failed(format!(
                "about {need} bytes are needed, more than the limit of {memory}; raise --memory \
                 and run again with --retry-errors"
            )));
        }
        let ready = match worker {
            Some(ready) => ready,
            None => worker.insert(self.executor.worker()?),
        };
        let measured = ready.run(&planned.cell, self.cancel, &mut |done, of| {
            self.watch.step(index, done, of);
        });
        if measured.is_err() {
            *worker = None;
        }
        let measured = measured?;
        if !measured.outcome.value.is_finite() {
            return Err(Failure::Failed(format!("the result is {}", measured.outcome.value)));
        }
        Ok(measured)
    }

    fn row(
        &self,
        planned: &Planned,
        measured: Option<Measured>,
        error: Option<String>,
        seconds: f64,
    ) -> Row {
        Row {
            key: planned.key.clone(),
            kvfold: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("KVFOLD_COMMIT").map(str::to_owned),
            date: now(),
            machine: self.limits.machine.clone(),
            spec: self.spec.into(),
            cell: planned.cell.clone(),
            bits: planned.bits,
            metric: measured.as_ref().map(|m| m.metric),
            outcome: measured.map(|m| m.outcome),
            error,
            seconds,
        }
    }
}
