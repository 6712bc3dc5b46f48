//! `kvfold eval`: what a KV format costs in quality, as a table or as JSON.

use crate::model_args::ModelArgs;
use crate::size;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::engine::{EngineConfig, LoadedModel, Session};
use kvfold::eval::niah::{self, Needles, NiahOptions, Prompt};
use kvfold::eval::perplexity::{Perplexity, Windows, perplexity};
use kvfold::eval::{Memory, Setting, change_percent, table};
use kvfold::rag::read_document;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Measure what a KV format costs in quality.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Perplexity of a text, by llama.cpp's convention: the second half of each window counts
    Perplexity(PerplexityArgs),
    /// Find a 7-digit number hidden in a long text ("needle in a haystack")
    Niah(NiahArgs),
}

/// What both evaluations share.
#[derive(Debug, Args)]
struct CommonArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// KV formats to compare: f16, bf16, fp8, kivi4, kivi2 or KEYS/VALUES; the first is the reference
    #[arg(long, value_delimiter = ',', default_value = "f16,kivi4,kivi2", value_name = "LIST")]
    kv: Vec<String>,

    /// Numbers of tokens at the start that stay in 16 bits, each tried with every format
    #[arg(long, value_delimiter = ',', default_value = "4", value_name = "LIST")]
    sinks: Vec<usize>,

    /// Recent tokens that stay in 16 bits, a multiple of 64
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    hot_window: usize,

    /// Tokens that are computed at once
    #[arg(long, visible_alias = "prefill-chunk", default_value_t = 512, value_name = "TOKENS")]
    chunk: usize,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PerplexityArgs {
    /// The text (or - for stdin)
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,

    /// Tokens a window
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    context: usize,

    /// Windows to score [default: all that the text fills]
    #[arg(long, value_name = "COUNT")]
    windows: Option<usize>,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct NiahArgs {
    /// Tokens of the prompts
    #[arg(long, value_delimiter = ',', default_value = "1024,2048,4096", value_name = "LIST")]
    lengths: Vec<usize>,

    /// Where the number is hidden, in percent of the text
    #[arg(long, value_delimiter = ',', default_value = "10,50,90", value_name = "LIST")]
    depths: Vec<usize>,

    /// Prompts for each length and depth
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    seeds: usize,

    /// Hide it in this text (or - for stdin) instead of generated prose
    #[arg(long, value_name = "PATH")]
    haystack: Option<PathBuf>,

    /// Also write the prompts (text, ids, key) to this file, one JSON object a line
    #[arg(long, value_name = "PATH")]
    prompts: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,
}

impl EvalArgs {
    /// Threads asked for.
    pub fn threads(&self) -> Option<u16> {
        match &self.what {
            What::Perplexity(args) => args.common.model.threads,
            What::Niah(args) => args.common.model.threads,
        }
    }
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &EvalArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    match &args.what {
        What::Perplexity(args) => run_perplexity(args, cancel),
        What::Niah(args) => run_niah(args, cancel),
    }
}

impl CommonArgs {
    /// The settings with their configurations, all checked.
    fn settings(&self) -> Result<Vec<(Setting, EngineConfig)>> {
        let base =
            EngineConfig::default().with_hot_window(self.hot_window).with_prefill_chunk(self.chunk);
        let mut settings = Vec::new();
        for setting in Setting::grid(&self.kv, &self.sinks)? {
            let config = setting.apply(base.clone());
            config.validate()?;
            settings.push((setting, config));
        }
        Ok(settings)
    }

    /// Loads the model, for the first setting to begin with.
    fn load(
        &self,
        settings: &[(Setting, EngineConfig)],
        cancel: &Arc<AtomicBool>,
    ) -> Result<LoadedModel> {
        let first = settings.first().map(|(_, config)| config.clone());
        self.model.load(&first.unwrap_or_default(), cancel)
    }

    /// Measures every setting on one model, with a progress bar of `steps` each.
    fn measure<T>(
        &self,
        model: LoadedModel,
        settings: Vec<(Setting, EngineConfig)>,
        steps: usize,
        mut measure: impl FnMut(&mut Session, &mut dyn FnMut(usize)) -> kvfold::Result<T>,
    ) -> Result<Vec<Measured<T>>> {
        // Hidden by itself where stderr is no terminal.
        let bar = ProgressBar::new((steps * settings.len()) as u64);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let mut model = Some(model);
        let mut session: Option<Session> = None;
        let mut results = Vec::new();
        for (index, (setting, config)) in settings.into_iter().enumerate() {
            bar.set_message(name(&setting));
            let session = match (&mut session, model.take()) {
                (Some(session), _) => {
                    session.reconfigure(config)?;
                    session
                }
                (none, Some(model)) => none.insert(Session::new(model, config)?),
                (None, None) => break,
            };
            let start = Instant::now();
            let result =
                measure(session, &mut |done| bar.set_position((index * steps + done) as u64))?;
            results.push(Measured { setting, result, seconds: start.elapsed().as_secs_f64() });
        }
        bar.finish_and_clear();
        Ok(results)
    }
}

/// One row of the table.
struct Measured<T> {
    setting: Setting,
    result: T,
    seconds: f64,
}

impl<T: Serialize> Measured<T> {
    /// The result's own fields, preceded by what was measured.
    fn json(&self, change_percent: Option<f64>, memory: &Memory) -> Result<Value> {
        let mut value = serde_json::to_value(self.setting)?;
        value["bits"] = json!(self.setting.kv.bits());
        if let (Value::Object(all), Value::Object(result)) =
            (&mut value, serde_json::to_value(&self.result)?)
        {
            all.extend(result);
        }
        value["change_percent"] = json!(change_percent);
        value["ratio"] = json!(memory.ratio());
        value["seconds"] = json!(self.seconds);
        Ok(value)
    }

    /// Cells: format, sinks, bits; `quality`; change, bytes, ratio.
    fn cells(&self, quality: Vec<String>, change: Option<f64>, memory: &Memory) -> Vec<String> {
        let sinks = self.setting.sinks.map_or("-".to_owned(), |s| s.to_string());
        let mut cells = vec![self.setting.kv.to_string(), sinks];
        cells.push(format!("{:.2}", self.setting.kv.bits()));
        cells.extend(quality);
        cells.push(change.map_or("-".to_owned(), |c| format!("{c:+.2} %")));
        cells.push(size::show(memory.kv_bytes));
        cells.push(format!("{:.2}x", memory.ratio()));
        cells
    }
}

fn name(setting: &Setting) -> String {
    match setting.sinks {
        Some(sinks) => format!("{} sinks {sinks}", setting.kv),
        None => setting.kv.to_string(),
    }
}

fn run_perplexity(args: &PerplexityArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    let settings = args.common.settings()?;
    let text = read_document(&args.file)?;
    let model = args.common.load(&settings, cancel)?;
    anyhow::ensure!(
        args.context <= model.context(),
        "context: {} is more than the {} tokens that {} was trained for",
        args.context,
        model.context(),
        model.name
    );
    let windows =
        Windows::new(&model.tokenizer, text.text(), &args.file, args.context, args.windows)?;
    let model_name = model.name.clone();
    let steps = windows.count() * windows.context();
    let results = args.common.measure(model, settings, steps, |session, progress| {
        perplexity(session, &windows, cancel, progress)
    })?;

    let change = |p: &Perplexity| change_percent(p.perplexity, results[0].result.perplexity);
    let row = |m: &Measured<Perplexity>| {
        let quality = vec![format!("{:.4}", m.result.perplexity), format!("{:.4}", m.result.error)];
        m.cells(quality, change(&m.result), &m.result.memory)
    };
    if args.common.json {
        let results: Result<Vec<Value>> =
            results.iter().map(|m| m.json(change(&m.result), &m.result.memory)).collect();
        return print_json(&json!({
            "evaluation": "perplexity",
            "model": model_name,
            "file": args.file.display().to_string(),
            "context": windows.context(),
            "windows": windows.count(),
            "hot_window": args.common.hot_window,
            "results": results?,
        }));
    }
    print(&format!(
        "{model_name}, {}: {} x {} tokens, {} predictions\n\n{}",
        args.file.display(),
        windows.count(),
        windows.context(),
        windows.predictions(),
        table(
            &["kv", "sinks", "bits", "perplexity", "+/-", "change", "KV", "ratio"],
            &results.iter().map(row).collect::<Vec<_>>(),
        )
    ))
}

fn run_niah(args: &NiahArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    let settings = args.common.settings()?;
    let haystack = args.haystack.as_deref().map(read_document).transpose()?;
    let options = NiahOptions {
        lengths: args.lengths.clone(),
        depths: args.depths.clone(),
        seeds: args.seeds,
        haystack,
    };
    options.validate(usize::MAX)?;
    let model = args.common.load(&settings, cancel)?;
    let prompts =
        niah::prompts(&model.tokenizer, model.template.as_deref(), model.context(), &options)?;
    if let Some(path) = &args.prompts {
        write_prompts(path, &prompts).with_context(|| path.display().to_string())?;
    }
    let model_name = model.name.clone();
    let results = args.common.measure(model, settings, prompts.len(), |session, progress| {
        niah::niah(session, &prompts, cancel, progress)
    })?;

    let change = |n: &Needles| change_percent(n.hits as f64, results[0].result.hits as f64);
    let lengths: Vec<usize> =
        args.lengths.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let row = |m: &Measured<Needles>| {
        let at = |length: usize| {
            let asked = m.result.answers.iter().filter(|a| a.length == length);
            format!("{}/{}", asked.clone().filter(|a| a.hit).count(), asked.count())
        };
        let mut quality: Vec<String> = lengths.iter().map(|&length| at(length)).collect();
        quality.push(format!("{}/{}", m.result.hits, m.result.prompts));
        m.cells(quality, change(&m.result), &m.result.memory)
    };
    if args.common.json {
        let results: Result<Vec<Value>> =
            results.iter().map(|m| m.json(change(&m.result), &m.result.memory)).collect();
        return print_json(&json!({
            "evaluation": "niah",
            "model": model_name,
            "haystack": args.haystack.as_ref().map(|path| path.display().to_string()),
            "lengths": args.lengths,
            "depths": args.depths,
            "seeds": args.seeds,
            "hot_window": args.common.hot_window,
            "results": results?,
        }));
    }
    let titles: Vec<String> = lengths.iter().map(|length| format!("at {length}")).collect();
    let mut header = vec!["kv", "sinks", "bits"];
    header.extend(titles.iter().map(String::as_str));
    header.extend(["hits", "change", "KV", "ratio"]);
    print(&format!(
        "{model_name}: {} prompts\n\n{}",
        prompts.len(),
        table(&header, &results.iter().map(row).collect::<Vec<_>>())
    ))
}

/// One JSON object a line; the file appears when it is complete.
fn write_prompts(path: &Path, prompts: &[Prompt]) -> Result<()> {
    let mut lines = Vec::new();
    for prompt in prompts {
        serde_json::to_writer(&mut lines, prompt)?;
        lines.push(b'\n');
    }
    let mut name = path.file_name().context("names no file")?.to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = std::fs::write(&part, &lines).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // What is reported is the failure to write.
        let _ = std::fs::remove_file(&part);
    }
    Ok(written?)
}

fn print_json(value: &Value) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
