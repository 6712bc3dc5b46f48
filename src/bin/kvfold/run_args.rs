//! The arguments of `run`.

use crate::model_args::{ContextArgs, ModelArgs};
use crate::size;
use clap::Args;
use kvfold::codec::formats::known;
use kvfold::engine::{AUTO, EngineConfig};
use kvfold::sample::SamplingParams;
use std::path::PathBuf;

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

    #[command(flatten)]
    pub context: ContextArgs,

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
    /// How the engine keeps and computes.
    pub fn config(&self) -> EngineConfig {
        EngineConfig::default()
            .with_kv(&self.kv)
            .with_sinks(self.sinks)
            .with_hot_window(self.hot_window)
            .with_prefill_chunk(self.prefill_chunk)
            .with_kv_budget(self.kv_budget)
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> SamplingParams {
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
