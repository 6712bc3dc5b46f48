//! `kvfold bench`: tokens a second of prefill and decode, and memory, in one
//! process; random tokens, nothing sampled.

use crate::model_args::{ContextArgs, ModelArgs, warn_of_outliers};
use crate::size;
use crate::terminal::print;
use anyhow::{Result, ensure};
use clap::Args;
use kvfold::Error;
use kvfold::backend::RowToken;
use kvfold::backend::cpu::{Level, threads};
use kvfold::backend::draw::Choice;
use kvfold::cache::SeqId;
use kvfold::codec::formats::known;
use kvfold::engine::{AUTO, EngineConfig, Runner, Share, Want};
use kvfold::eval::{Load, LoadWatch};
use kvfold::printable::printable;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Time prefill and decode.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model and its weights
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub context: ContextArgs,

    /// KV formats
    #[arg(long, value_delimiter = ',', default_value = "f16,kivi2", help = format!("KV formats, each {}, or a file of `calibrate`", known()))]
    pub kv: Vec<String>,

    /// Tokens of the prompt whose prefill is timed; 0: none
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub prompt: usize,

    /// Tokens to decode at each depth; 0: none
    #[arg(long = "gen", default_value_t = 32, value_name = "TOKENS")]
    pub generate: usize,

    /// Tokens already in the cache when decoding begins
    #[arg(long, value_delimiter = ',', default_value = "0,128,4096,7680", value_name = "TOKENS")]
    pub depth: Vec<usize>,

    /// Also time steps that verify so many drafted tokens at once
    #[arg(long, value_delimiter = ',', value_name = "ROWS", value_parser = clap::value_parser!(u16).range(2..))]
    pub verify: Vec<u16>,

    /// Times that everything is repeated; formats take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub repeat: u16,

    /// Tokens of a prompt that are computed at once
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub prefill_chunk: usize,

    /// Show speeds even if other programs were busy meanwhile
    #[arg(long)]
    pub busy: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The measurements of one test.
struct Cell {
    /// `None`: prefill.
    depth: Option<usize>,
    tokens: usize,
    /// Of a step.
    rows: usize,
    /// Tokens a second of each repetition.
    rates: Vec<f64>,
}

impl Cell {
    fn name(&self) -> String {
        match (self.depth, self.rows) {
            (None, _) => format!("prefill {}", self.tokens),
            (Some(depth), 1) => format!("decode {} at {depth}", self.tokens),
            (Some(depth), rows) => format!("verify {rows} at {depth}"),
        }
    }

    fn test(&self) -> &'static str {
        match (self.depth, self.rows) {
            (None, _) => "prefill",
            (Some(_), 1) => "decode",
            _ => "verify",
        }
    }

    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        let n = rates.len();
        if n == 0 { 0.0 } else { (rates[(n - 1) / 2] + rates[n / 2]) / 2.0 }
    }
}

/// Everything measured with one KV format.
struct Report {
    kv: String,
    /// The same for people: what `auto` is.
    label: String,
    cells: Vec<Cell>,
    kv_peak_bytes: u64,
    kv_budget_bytes: u64,
}

/// What is true of the whole process.
struct Totals {
    model: String,
    weight_bytes: u64,
    /// The most memory that the process has held.
    peak_rss_bytes: Option<u64>,
    /// What else the machine did meanwhile.
    load: Option<Load>,
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &BenchArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    for kv in &args.kv {
        config(args, kv).validate()?;
    }
    let Some(first) = args.kv.first() else { return Ok(()) };
    ensure!(args.prompt > 0 || args.generate > 0, "--prompt 0 and --gen 0 leave nothing to time");
    let model = args.model.load_for(args.context.context, &config(args, first), cancel)?;
    let configs: Vec<EngineConfig> = args.kv.iter().map(|kv| config(args, kv)).collect();
    warn_of_outliers(&model, &configs)?;
    let watch = LoadWatch::begin();
    let mut runner = Runner::new(model, config(args, first))?;
    let ids = draw_ids(args, &runner)?;

    // The first products pack the weights.
    let seq = runner.create();
    let limit = runner.model().context();
    prefill(&mut runner, seq, &ids[..64.min(limit)], cancel)?;
    decode(&mut runner, seq, &ids[..2], cancel)?;
    runner.free(seq)?;

    let mut reports = Vec::new();
    for kv in &args.kv {
        reports.push(Report::new(args, kv, runner.model().kv_name(&config(args, kv))?));
    }
    for _ in 0..args.repeat {
        // In turns, so that a noisy minute meets every format.
        for report in &mut reports {
            if args.kv.len() > 1 {
                runner.reconfigure(config(args, &report.kv))?;
            }
            measure(&mut runner, &ids, &mut report.cells, cancel)?;
            report.kv_peak_bytes = runner.cache().peak_bytes();
            report.kv_budget_bytes = runner.cache().budget();
        }
    }
    let totals = Totals {
        model: runner.model().name.clone(),
        weight_bytes: runner.model().weight_bytes(),
        peak_rss_bytes: peak_rss(),
        load: watch.end(),
    };
    let mut out = Vec::new();
    if args.json {
        writeln!(out, "{:#}", as_json(&totals, &reports))?;
    } else {
        show(&mut out, &totals, &reports, args.busy)?;
    }
    print(&String::from_utf8_lossy(&out))
}

fn config(args: &BenchArgs, kv: &str) -> EngineConfig {
    EngineConfig::default().with_kv(kv).with_prefill_chunk(args.prefill_chunk)
}

impl Report {
    /// The tests that are asked for, none of them run.
    fn new(args: &BenchArgs, kv: &str, name: String) -> Self {
        let cell = |depth, tokens, rows| Cell { depth, tokens, rows, rates: Vec::new() };
        let mut depths = args.depth.clone();
        depths.sort_unstable();
        depths.dedup();
        let rows: Vec<usize> =
            std::iter::once(1).chain(args.verify.iter().map(|&rows| rows.into())).collect();
        let mut cells = vec![cell(None, args.prompt, args.prefill_chunk)];
        for depth in depths {
            // Whole steps.
            let tokens =
                |&rows: &usize| args.generate.checked_next_multiple_of(rows).unwrap_or(usize::MAX);
            cells.extend(rows.iter().map(|rows| cell(Some(depth), tokens(rows), *rows)));
        }
        cells.retain(|cell| cell.tokens > 0);
        let label = printable(&if kv == AUTO { format!("auto: {name}") } else { name });
        Self { kv: kv.to_owned(), label, cells, kv_peak_bytes: 0, kv_budget_bytes: 0 }
    }
}

/// Tokens for the longest test.
fn draw_ids(args: &BenchArgs, runner: &Runner) -> Result<Vec<u32>> {
    let deepest = args.depth.iter().max().filter(|_| args.generate > 0);
    let rows = args.verify.iter().copied().max().unwrap_or(1).into();
    let generate = args.generate.checked_next_multiple_of(rows).unwrap_or(usize::MAX);
    let longest = deepest.map_or(0, |depth| depth.saturating_add(generate)).max(args.prompt);
    let limit = runner.model().context();
    ensure!(
        longest <= limit,
        "--prompt, --depth, --gen: {longest} tokens, but the model's context is {limit}"
    );
    Ok(random_ids(longest.max(64), runner.model().tokenizer.vocab_size()))
}

/// Runs every test once.
fn measure(
    runner: &mut Runner,
    ids: &[u32],
    cells: &mut [Cell],
    cancel: &AtomicBool,
) -> Result<()> {
    let (prompts, decodes) = cells.split_at_mut(cells.partition_point(|c| c.depth.is_none()));
    for cell in prompts {
        let seq = runner.create();
        let start = Instant::now();
        prefill(runner, seq, &ids[..cell.tokens], cancel)?;
        cell.rates.push(cell.tokens as f64 / start.elapsed().as_secs_f64());
        runner.free(seq)?;
    }
    if !decodes.is_empty() {
        walk(runner, ids, decodes, cancel)?;
    }
    Ok(())
}

/// Decodes at each depth in rising order. One sequence serves all depths that
/// it has not passed yet.
fn walk(runner: &mut Runner, ids: &[u32], cells: &mut [Cell], cancel: &AtomicBool) -> Result<()> {
    let mut seq = runner.create();
    let mut held = 0;
    for cell in cells {
        let depth = cell.depth.unwrap_or(0);
        if depth < held {
            runner.free(seq)?;
            seq = runner.create();
            held = 0;
        }
        if depth > held {
            prefill(runner, seq, &ids[held..depth], cancel)?;
        }
        let start = Instant::now();
        let ids = &ids[depth..depth + cell.tokens];
        match cell.rows {
            1 => decode(runner, seq, ids, cancel)?,
            rows => verify(runner, seq, ids, rows, cancel)?,
        }
        cell.rates.push(cell.tokens as f64 / start.elapsed().as_secs_f64());
        held = depth + cell.tokens;
    }
    runner.free(seq)?;
    Ok(())
}

/// Computes a prompt and the logits of its last token.
fn prefill(runner: &mut Runner, seq: SeqId, ids: &[u32], cancel: &AtomicBool) -> Result<()> {
    runner.prefill(seq, ids, cancel)?;
    Ok(runner.logits(0..1, |_, _| Ok(()))?)
}

/// Appends tokens one by one and chooses one after each, as when it generates: on a device
/// of its own one step is always under way.
fn decode(runner: &mut Runner, seq: SeqId, ids: &[u32], cancel: &AtomicBool) -> Result<()> {
    let ahead = usize::from(runner.capabilities().enqueues);
    for &id in ids {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled.into());
        }
        let token = vec![RowToken::Given(id)];
        runner.submit(&[Share::generated(seq, token, Want::Token(Choice::greedy(0)))])?;
        while runner.in_flight() > ahead {
            runner.receive()?;
        }
    }
    while runner.in_flight() > 0 {
        runner.receive()?;
    }
    Ok(())
}

/// Appends tokens `rows` at a time, as if each step accepted a whole draft, and looks at the
/// logits of every one.
fn verify(
    runner: &mut Runner,
    seq: SeqId,
    ids: &[u32],
    rows: usize,
    cancel: &AtomicBool,
) -> Result<()> {
    for ids in ids.chunks(rows) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled.into());
        }
        let tokens = ids.iter().map(|&id| RowToken::Given(id)).collect();
        runner.submit(&[Share::generated(seq, tokens, Want::Rows(0..ids.len()))])?;
        runner.logits(0..ids.len(), |_, _| Ok(()))?;
    }
    Ok(())
}

/// The same tokens in every run.
fn random_ids(n: usize, vocab: usize) -> Vec<u32> {
    let mut state = 0x2545_f491u32;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(state) * vocab as u64) >> 32) as u32
    };
    (0..n).map(draw).collect()
}

/// The most memory that this process has held, files mapped into it included;
/// `None` where the system does not say.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn as_json(totals: &Totals, reports: &[Report]) -> Value {
    let results: Vec<_> = reports
        .iter()
        .flat_map(|r| r.cells.iter().map(move |c| (r, c)))
        .map(|(r, c)| {
            json!({
                "kv": r.kv,
                "test": c.test(),
                "rows": c.rows,
                "depth": c.depth.unwrap_or(0),
                "tokens": c.tokens,
                "tokens_per_second": c.rates,
                "best": c.best(),
                "median": c.median(),
            })
        })
        .collect();
    let memory: Vec<_> = reports
        .iter()
        .map(|r| {
            json!({
                "kv": r.kv,
                "weight_bytes": totals.weight_bytes,
                "kv_budget_bytes": r.kv_budget_bytes,
                "kv_peak_bytes": r.kv_peak_bytes,
                "peak_rss_bytes": totals.peak_rss_bytes,
            })
        })
        .collect();
    json!({
        "kvfold": env!("CARGO_PKG_VERSION"),
        "model": totals.model,
        "threads": threads(),
        "level": Level::best().name(),
        "idle": totals.load.and_then(|load| load.idle()),
        "load": totals.load,
        "results": results,
        "memory": memory,
    })
}

fn show(out: &mut impl Write, totals: &Totals, reports: &[Report], busy: bool) -> Result<()> {
    writeln!(
        out,
        "kvfold {}, {}, {} threads, {}",
        env!("CARGO_PKG_VERSION"),
        printable(&totals.model),
        threads(),
        Level::best().name()
    )?;
    // Speeds beside other work are not those of this machine.
    let hidden = match totals.load.and_then(|load| load.idle()) {
        _ if busy => None,
        Some(true) => None,
        Some(false) => Some("busy"),
        None => Some("?"),
    };
    let rate = |rate: f64| hidden.map_or_else(|| format!("{rate:.1}"), str::to_owned);
    let width =
        reports.iter().map(|report| report.label.chars().count() + 2).max().unwrap_or(0).max(12);
    writeln!(out, "{:<width$}{:<22}{:>12}{:>10}", "KV", "test", "tokens/s", "best")?;
    for report in reports {
        for cell in &report.cells {
            let (median, best) = (rate(cell.median()), rate(cell.best()));
            writeln!(out, "{:<width$}{:<22}{median:>12}{best:>10}", report.label, cell.name())?;
        }
    }
    match (hidden, totals.load) {
        (Some("busy"), Some(load)) => writeln!(
            out,
            "machine busy: not shown; other programs took {:.1} of {} cores (--busy shows all the same)",
            load.others, load.cores
        )?,
        (Some(_), _) => writeln!(
            out,
            "not shown: too short to know whether the machine was idle (--busy shows all the same)"
        )?,
        (None, _) => {}
    }
    for report in reports {
        let (kv, budget) = (report.kv_peak_bytes, report.kv_budget_bytes);
        let (kv, budget) = (size::show(kv), size::show(budget));
        writeln!(out, "{}: KV {kv} of a budget of {budget}", report.label)?;
    }
    write!(out, "weights {}", size::show(totals.weight_bytes))?;
    match (totals.peak_rss_bytes, reports) {
        (None, _) => writeln!(out)?,
        (Some(peak), [report]) => {
            let expected = totals.weight_bytes + report.kv_budget_bytes;
            let (sign, rest) = match peak.checked_sub(expected) {
                Some(rest) => ('+', rest),
                None => ('-', expected - peak),
            };
            let (peak, rest) = (size::show(peak), size::show(rest));
            writeln!(out, "; peak memory {peak} = weights + budget {sign} {rest}")?;
        }
        (Some(peak), _) => writeln!(out, "; peak memory {}", size::show(peak))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let cell = |rates: &[f64]| Cell { depth: None, tokens: 1, rows: 1, rates: rates.to_vec() };
        assert_eq!(cell(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(cell(&[4.0, 1.0]).median(), 2.5);
        assert_eq!((cell(&[4.0, 1.0]).best(), cell(&[]).median()), (4.0, 0.0));
    }

    #[test]
    fn random_ids_are_in_the_vocabulary() {
        let ids = random_ids(1000, 7);
        assert!((0..7).all(|id| ids.contains(&id)) && ids.iter().all(|&id| id < 7));
    }
}
