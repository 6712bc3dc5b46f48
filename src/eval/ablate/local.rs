//! Measuring a cell in this process.

use super::row::Cell;
use super::runner::Measured;
use super::spec::weight_policy;
use crate::engine::{EngineConfig, LoadOptions, LoadedModel, Runner};
use crate::error::{Error, Result};
use crate::eval::{Task, TaskSpec, measure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// A cell and where its model lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The model's file or folder.
    pub path: PathBuf,
    /// What to measure.
    pub cell: Cell,
}

/// Keeps the last cell's model and prompts, which the next one often shares.
#[derive(Default)]
pub struct Local {
    loaded: Option<(PathBuf, Runner)>,
    prepared: Option<(Value, usize, Box<dyn Task>)>,
}

impl Local {
    /// Measures a cell. `progress` is told how many steps of how many are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` is set; what loading the model, making the
    /// prompts and running them reports.
    pub fn run(
        &mut self,
        job: &Job,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Measured> {
        let Job { path, cell } = job;
        let config = engine_config(cell);
        let (path, mut runner) = match self.loaded.take() {
            Some((loaded, mut runner)) if loaded == *path => {
                runner.reconfigure(config)?;
                (loaded, runner)
            }
            // The old model goes before the new one comes.
            other => {
                drop(other);
                self.prepared = None;
                (path.clone(), open(job, config)?)
            }
        };
        let task = match self.prepared.take() {
            Some((task, seed, made)) if task == cell.task && seed == cell.seed => made,
            _ => prepare(&runner, cell)?,
        };
        let steps = task.steps();
        progress(0, steps);
        let outcome =
            measure(task.as_ref(), &mut runner, cancel, &mut |done| progress(done, steps))?;
        let metric = task.metric();
        self.prepared = Some((cell.task.clone(), cell.seed, task));
        self.loaded = Some((path, runner));
        Ok(Measured { metric, outcome })
    }
}

/// How a cell's cache is kept.
pub(super) fn engine_config(cell: &Cell) -> EngineConfig {
    let mut config =
        EngineConfig::default().with_kv(cell.kv.as_str()).with_prefill_chunk(cell.chunk);
    if let Some(sinks) = cell.sinks {
        config = config.with_sinks(sinks);
    }
    if let Some(tokens) = cell.hot_window {
        config = config.with_hot_window(tokens);
    }
    config
}

fn open(job: &Job, config: EngineConfig) -> Result<Runner> {
    let options = LoadOptions::default()
        .with_device(job.cell.device.parse()?)
        .with_weights(weight_policy(&job.cell.weights)?);
    Runner::new(LoadedModel::open_with(&job.path, &options)?, config)
}

fn prepare(runner: &Runner, cell: &Cell) -> Result<Box<dyn Task>> {
    let model = runner.model();
    let task = task(cell)?.with_batch(cell.seed);
    task.prepare(&model.tokenizer, model.template.as_deref(), model.context())
}

/// A cell's task, the seed left aside.
pub(super) fn task(cell: &Cell) -> Result<TaskSpec> {
    serde_json::from_value(cell.task.clone())
        .map_err(|error| Error::config("task", error.to_string()))
}
