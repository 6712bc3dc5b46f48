//! The cells that a spec spans, in an order that depends on the spec alone.

use super::identity::identity;
use super::row::{Cell, hash};
use super::spec::{NO_POLICY, Spec, weights_name};
use crate::engine::{AUTO, EngineConfig};
use crate::error::{Error, Result};
use crate::eval::Format;
use crate::eval::TaskSpec;
use crate::model::Checkpoint;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// A cell to be measured.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What to measure.
    pub cell: Cell,
    /// A hash of all that defines the outcome: content of the model and of the texts,
    /// format, options. Not of names of files, kvfold's version or the machine.
    pub key: String,
    /// Bits that the format stores an element in.
    pub bits: f64,
}

/// Models of a spec by the names that it gives them, with their files.
pub type ModelFiles = BTreeMap<String, PathBuf>;

/// All cells: models, then tasks, seeds, policies, budgets, formats, sinks and windows.
/// So neighbours share the loaded model and the prompts. What makes no difference (sinks
/// of a format that never seals) is `None`, and each cell appears once: a task without
/// drawn prompts is measured for the first seed only.
///
/// # Errors
/// [`Error::Io`] if a model's or a task's file cannot be read.
pub fn grid(spec: &Spec, models: &ModelFiles) -> Result<Vec<Planned>> {
    let mut cells = Vec::new();
    let mut keys = HashSet::new();
    for model in &spec.models {
        let path = models.get(model).ok_or_else(|| Error::NotFound { what: model.clone() })?;
        let model_content = identity(path)?;
        let (formats, shipped) = formats(spec, path)?;
        let settings = settings(spec, &formats);
        for task in &spec.tasks {
            let text = task.file().map(identity).transpose()?;
            let written = task_json(task)?;
            for &seed in &spec.seed {
                for (format, setting) in &settings {
                    let cell = Cell {
                        model: model.clone(),
                        task: written.clone(),
                        seed,
                        chunk: spec.chunk,
                        device: spec.device.to_string(),
                        weights: weights_name(spec.weights).into(),
                        ..setting.clone()
                    };
                    let kv = match &shipped {
                        Some(shipped) if cell.kv == AUTO => shipped.clone(),
                        _ => kv_content(&cell.kv)?,
                    };
                    let key = key(&cell, task, &model_content, text.as_deref(), &kv)?;
                    if keys.insert(key.clone()) {
                        cells.push(Planned { cell, key, bits: format.bits });
                    }
                }
            }
        }
    }
    Ok(cells)
}

/// The formats for a model, `auto` as what it is there; and the content of the model's own
/// calibration, if that is it.
fn formats(spec: &Spec, model: &Path) -> Result<(Vec<Format>, Option<String>)> {
    if !spec.kv.iter().any(|format| format.name == AUTO) {
        return Ok((spec.kv.clone(), None));
    }
    // A device takes one format for all heads, so only the CPU has calibrations.
    let mixed = spec.device.open()?.is_none();
    let fingerprint = Checkpoint::open(model)?.fingerprint()?;
    let options = EngineConfig::default().with_kv(AUTO).kv_options_of(&fingerprint, mixed)?;
    let formats = spec.kv.iter().map(|format| format.resolved(&options)).collect();
    Ok((formats, options.calibration.map(|calibration| hash(&json!(calibration.to_json())))))
}

/// How caches are kept: a cell each with everything else left open.
fn settings<'a>(spec: &Spec, formats: &'a [Format]) -> Vec<(&'a Format, Cell)> {
    let mut settings = Vec::new();
    let mut add = |format, cell: Cell| {
        if !settings.iter().any(|(_, other)| *other == cell) {
            settings.push((format, cell));
        }
    };
    for policy in &spec.policy {
        let budgets = match policy.as_str() {
            NO_POLICY => vec![None],
            _ => spec.budget.iter().copied().map(Some).collect(),
        };
        for &budget in &budgets {
            for format in formats {
                for &sinks in &spec.sinks {
                    for &hot_window in &spec.hot_window {
                        let cell = Cell {
                            kv: format.name.clone(),
                            policy: policy.clone(),
                            budget,
                            sinks: format.seals.then_some(sinks),
                            hot_window: format.seals.then_some(hot_window),
                            ..Cell::default()
                        };
                        add(format, cell);
                    }
                }
            }
        }
    }
    settings
}

/// What a format counts by: its name, or what a file of a calibration says.
fn kv_content(kv: &str) -> Result<String> {
    let file = Path::new(kv);
    if file.is_file() { identity(file) } else { Ok(kv.to_owned()) }
}

/// The key of a cell of a model, a text and a format of these contents.
fn key(cell: &Cell, task: &TaskSpec, model: &str, text: Option<&str>, kv: &str) -> Result<String> {
    let mut task = task.clone().with_batch(cell.seed);
    if let Some(path) = task.file_mut() {
        *path = PathBuf::new();
    }
    Ok(hash(&json!({
        "model": model,
        "text": text,
        "kv": kv,
        "policy": cell.policy,
        "budget": cell.budget,
        "sinks": cell.sinks,
        "hot_window": cell.hot_window,
        "task": task_json(&task)?,
        "chunk": cell.chunk,
        "device": cell.device,
        "weights": cell.weights,
    })))
}

fn task_json(task: &TaskSpec) -> Result<Value> {
    serde_json::to_value(task).map_err(|error| Error::config("task", error.to_string()))
}
