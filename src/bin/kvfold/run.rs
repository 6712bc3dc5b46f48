//! `kvfold run`: one question, optionally of documents, answered as a stream.

use crate::model_args::ModelArgs;
use crate::{prompt, size};
use anyhow::{Context, Result, bail};
use clap::Args;
use kvfold::codec::formats::known;
use kvfold::engine::{AUTO, Engine, EngineConfig, Event, FinishReason, Request, Stats};
use kvfold::sample::SamplingParams;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Answer a question, optionally of documents or long files.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The question or instruction
    #[arg(required_unless_present = "show_context", default_value = "", hide_default_value = true)]
    pub question: String,

    /// Files and folders (or - for stdin) from which matching passages are chosen
    #[arg(long, num_args = 1, value_name = "PATH")]
    pub docs: Vec<PathBuf>,

    /// Put this whole file (or - for stdin) into the context
    #[arg(long, num_args = 1, value_name = "PATH")]
    pub file: Vec<PathBuf>,

    /// Tokens of passages chosen from --docs
    #[arg(long, default_value_t = 1024, value_name = "TOKENS")]
    pub context_budget: usize,

    /// Print the text that was put into the context, with its sources, on stderr
    #[arg(long)]
    pub show_context: bool,

    /// The model and its weights
    #[command(flatten)]
    pub model: ModelArgs,

    /// The KV format
    #[arg(long, default_value = AUTO, help = format!("KV format: {}, or a file of `calibrate`; auto: the calibration that kvfold comes with if it has one of the model, else kivi4/kivi2", known()))]
    pub kv: String,

    /// Tokens at the start that stay in 16 bits
    #[arg(long, default_value_t = 4)]
    pub sinks: usize,

    /// Recent tokens that stay in 16 bits, a multiple of 64
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub hot_window: usize,

    /// Bytes that the KV cache may hold, e.g. 64MB [default: the model's context]
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub kv_budget: Option<u64>,

    /// Tokens of a prompt that are computed at once
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub prefill_chunk: usize,

    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 256, value_name = "TOKENS")]
    pub max_tokens: usize,

    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,

    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Sample among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,

    /// Sample among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,

    /// Divide the logits of the last 64 tokens by this; 1 turns it off
    #[arg(long, value_name = "FACTOR", default_value_t = 1.1)]
    pub repetition_penalty: f32,

    /// Seed of the sampler
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,

    /// No summary on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

impl RunArgs {
    fn config(&self) -> EngineConfig {
        EngineConfig::default()
            .with_kv(&self.kv)
            .with_sinks(self.sinks)
            .with_hot_window(self.hot_window)
            .with_prefill_chunk(self.prefill_chunk)
            .with_kv_budget(self.kv_budget)
    }

    fn sampling(&self) -> SamplingParams {
        let mut sampling = SamplingParams::default()
            .with_temperature(self.temperature)
            .with_repetition_penalty(self.repetition_penalty)
            .with_seed(self.seed);
        if let Some(k) = self.top_k {
            sampling = sampling.with_top_k(k);
        }
        if let Some(p) = self.top_p {
            sampling = sampling.with_top_p(p);
        }
        if let Some(p) = self.min_p {
            sampling = sampling.with_min_p(p);
        }
        sampling
    }
}

/// Runs the subcommand; setting `cancel` stops it.
pub fn run(args: &RunArgs, cancel: &Arc<AtomicBool>) -> Result<()> {
    // What can be wrong without the model is said before it is loaded.
    args.config().validate()?;
    args.sampling().validate()?;
    if args.question.trim().is_empty() && !args.show_context {
        bail!("the question is empty; say what to do, in quotation marks");
    }
    let sources = prompt::Sources::read(args)?;
    let model = args.model.load(&args.config(), cancel)?;
    let prompt = prompt::build(args, &sources, &model)?;
    let mut log = std::io::stderr();
    for notice in &prompt.notices {
        writeln!(log, "note: {notice}")?;
    }
    if args.show_context {
        writeln!(log, "{}\n", prompt.context.trim_end())?;
        if args.question.trim().is_empty() {
            return Ok(());
        }
    }

    let request = Request::new(prompt.ids, args.max_tokens)
        .with_sampling(args.sampling())
        .with_stop(args.stop.clone());
    let device = model.device();
    let kv = model.kv_name(&args.config())?;
    let engine = Engine::start(model, args.config())?;
    let events = engine.submit(request)?;
    let mut out = std::io::stdout().lock();
    let mut print = |text: &str| {
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
    };
    for event in events {
        match event {
            Event::Token { text, .. } => print(&text)?,
            Event::Finished { reason, text, stats } => {
                print(&format!("{text}\n"))?;
                if !args.quiet {
                    log.write_all(summary(&stats, reason, &device, &kv).as_bytes())?;
                }
            }
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The short account after an answer.
fn summary(stats: &Stats, reason: FinishReason, device: &str, kv: &str) -> String {
    let ms = |d: Duration| format!("{:.0} ms", d.as_secs_f64() * 1e3);
    let ratio = stats.kv_bytes_16_bit as f64 / stats.kv_bytes.max(1) as f64;
    // Whole pages are held, so a short text takes more than its tokens need.
    let folded = match ratio < 1.0 {
        true => format!("{:.2}x larger (too short to fold)", 1.0 / ratio.max(1e-9)),
        false => format!("{ratio:.2}x smaller"),
    };
    let end = match reason {
        FinishReason::Length => ", cut off by --max-tokens",
        FinishReason::Stop => ", stopped by --stop",
        _ => "",
    };
    format!(
        "\ndevice      {device}\n\
         prompt      {} tokens, {:.0} tokens/s\n\
         answer      {} tokens, {:.1} tokens/s{end}\n\
         first token {}\n\
         KV cache    {} as {} (peak {}), {} at 16 bits: {folded}\n",
        stats.prompt_tokens,
        stats.prefill_rate(),
        stats.generated_tokens,
        stats.decode_rate(),
        ms(stats.time_to_first_token),
        size::show(stats.kv_bytes),
        kv,
        size::show(stats.kv_peak_bytes),
        size::show(stats.kv_bytes_16_bit),
    )
}
