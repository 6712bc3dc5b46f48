//! `kvfold eval`: what a KV format costs in quality, as a table or as JSON.

mod args;
mod show;

pub use args::EvalArgs;

use crate::model_args::warn_of_outliers;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::engine::{EngineConfig, LoadedModel, Runner};
use kvfold::eval::{Question, Setting, Task, paired, write_whole};
use serde_json::json;
use show::{EvalRow, Evaluation};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &EvalArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    let common = args.common();
    let settings = common.settings()?;
    let spec = args.spec()?;
    let loaded = spec.load()?;
    let first = settings.first().map(|(_, config)| config.clone()).unwrap_or_default();
    let model = common.model.load(&first, cancel)?;
    warn_of_outliers(&model, settings.iter().map(|(_, config)| config))?;
    let task = loaded.prepare(&model.tokenizer, model.template.as_deref(), model.context())?;
    if let Some(path) = args.prompts() {
        write_prompts(path, task.questions())?;
    }
    let evaluation = Evaluation {
        model: model.name.clone(),
        hot_window: common.hot_window,
        rows: measure(task.as_ref(), model, settings, cancel)?,
        spec,
        task,
    };
    print(&if common.json {
        serde_json::to_string_pretty(&evaluation.json()?)? + "\n"
    } else {
        evaluation.table()
    })
}

/// Runs the task in every setting on one model, with a progress bar.
fn measure(
    task: &dyn Task,
    model: LoadedModel,
    settings: Vec<(Setting, EngineConfig)>,
    cancel: &AtomicBool,
) -> Result<Vec<EvalRow>> {
    // Hidden by itself where stderr is no terminal.
    let steps = task.steps();
    let bar = ProgressBar::new((steps * settings.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut model = Some(model);
    let mut runner: Option<Runner> = None;
    let mut rows: Vec<EvalRow> = Vec::new();
    for (index, (setting, config)) in settings.into_iter().enumerate() {
        bar.set_message(match setting.sinks {
            Some(sinks) => format!("{} sinks {sinks}", setting.kv.name),
            None => setting.kv.name.clone(),
        });
        let runner = match (&mut runner, model.take()) {
            (Some(runner), _) => {
                runner.reconfigure(config)?;
                runner
            }
            (none, Some(model)) => none.insert(Runner::new(model, config)?),
            (None, None) => break,
        };
        let start = Instant::now();
        let outcome = task.run(runner, cancel, &mut |done| {
            bar.set_position((index * steps + done) as u64);
        })?;
        let reference = rows.first().map_or(&outcome, |row| &row.outcome);
        let paired = paired(&outcome.trials, &reference.trials)?;
        rows.push(EvalRow { setting, paired, outcome, seconds: start.elapsed().as_secs_f64() });
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// One JSON object a line; the file appears when it is complete.
fn write_prompts(path: &Path, questions: &[Question]) -> Result<()> {
    let mut lines = Vec::new();
    for question in questions {
        let mut value = serde_json::to_value(question)?;
        if let [key] = question.expected.as_slice() {
            value["key"] = json!(key);
        }
        serde_json::to_writer(&mut lines, &value)?;
        lines.push(b'\n');
    }
    Ok(write_whole(path, &lines)?)
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
