//! `kvfold eval`: what a KV format costs in quality, as a table or as JSON.

mod args;
mod show;

pub use args::EvalArgs;

use crate::model_args::warn_of_outliers;
use crate::terminal::{print, print_beside};
use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::engine::{EngineConfig, LoadedModel, Runner};
use kvfold::eval::{Output, Question, Setting, Task, measure, paired};
use kvfold::printable::printable;
use serde_json::json;
use show::{EvalRow, Evaluation};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &EvalArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    let common = args.common();
    let settings = common.settings()?;
    let prompts = args.prompts().map(Output::at).transpose()?;
    let prompts_only = prompts.as_ref().is_some_and(Output::is_stdout);
    ensure!(
        !(prompts_only && common.json),
        "--prompts: both the prompts and --json would go to standard output; name a file"
    );
    let spec = args.spec()?;
    let loaded = spec.load()?;
    let first = settings.first().map(|(_, config)| config.clone()).unwrap_or_default();
    let model = common.model.load(&first, cancel)?;
    let settings = resolved(settings, &model)?;
    warn_of_outliers(&model, settings.iter().map(|(_, config)| config))?;
    let task = loaded.prepare(&model.tokenizer, model.template.as_deref(), model.context())?;
    if let Some(output) = prompts {
        output.write(lines(task.questions())?)?;
    }
    let evaluation = Evaluation {
        model: model.name.clone(),
        hot_window: common.hot_window,
        rows: rows(task.as_ref(), model, settings, cancel)?,
        spec,
        task,
    };
    match common.json {
        true => print(&(serde_json::to_string_pretty(&evaluation.json()?)? + "\n")),
        false => print_beside(&evaluation.table(), prompts_only),
    }
}

/// The settings with `auto` as what it is for a model, each once.
fn resolved(
    settings: Vec<(Setting, EngineConfig)>,
    model: &LoadedModel,
) -> Result<Vec<(Setting, EngineConfig)>> {
    let mut all: Vec<(Setting, EngineConfig)> = Vec::new();
    for (setting, config) in settings {
        let kv = setting.kv.resolved(&model.kv_options(&config)?);
        let setting = Setting { kv, ..setting };
        let config = setting.apply(config);
        if !all.iter().any(|(other, _)| *other == setting) {
            all.push((setting, config));
        }
    }
    Ok(all)
}

/// Runs the task in every setting on one model, with a progress bar.
fn rows(
    task: &dyn Task,
    model: LoadedModel,
    settings: Vec<(Setting, EngineConfig)>,
    cancel: &AtomicBool,
) -> Result<Vec<EvalRow>> {
    // Hidden by itself where stderr is no terminal.
    let steps = task.steps();
    let bar = ProgressBar::new(steps.saturating_mul(settings.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut model = Some(model);
    let mut runner: Option<Runner> = None;
    let mut rows: Vec<EvalRow> = Vec::new();
    for (index, (setting, config)) in settings.into_iter().enumerate() {
        bar.set_message(match setting.sinks {
            Some(sinks) => format!("{} sinks {sinks}", printable(&setting.kv.label())),
            None => printable(&setting.kv.label()),
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
        let outcome = measure(task, runner, cancel, &mut |done| {
            bar.set_position((index * steps + done) as u64);
        })?;
        let reference = rows.first().map_or(&outcome, |row| &row.outcome);
        let paired = paired(&outcome.trials, &reference.trials)?;
        rows.push(EvalRow { setting, paired, outcome, seconds: start.elapsed().as_secs_f64() });
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// One JSON object a line.
fn lines(questions: &[Question]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for question in questions {
        let mut value = serde_json::to_value(question)?;
        if let [key] = question.expected.as_slice() {
            value["key"] = json!(key);
        }
        serde_json::to_writer(&mut lines, &value)?;
        lines.push(b'\n');
    }
    Ok(lines)
}
