//! The arguments of `run`.

use crate::model_args::{ContextArgs, ModelArgs};
use crate::size;
use clap::Args;
use kvfold::codec::formats::known;
use kvfold::engine::{AUTO, EngineConfig};
use kvfold::model::ChatOptions;
use kvfold::sample::SamplingParams;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// What templates call the switch that `--think` turns: Qwen3's and SmolLM3's, Granite's and
/// DeepSeek's.
pub const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

/// Answer a question, optionally of documents or long files.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The question or instruction [default: what is piped in]
    #[arg(default_value = "", hide_default_value = true)]
    pub question: String,

    /// Files and folders (or - for stdin) from which matching passages are chosen
    #[arg(long, num_args = 1, value_name = "PATH")]
    pub docs: Vec<PathBuf>,

    /// Put this whole file (or - for stdin) into the context
    #[arg(long, num_args = 1, value_name = "PATH")]
    pub file: Vec<PathBuf>,

    /// Tokens of passages chosen from --docs [default: 1024]
    #[arg(long, value_name = "TOKENS")]
    pub context_budget: Option<usize>,

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

    /// Tokens at the start that stay in 16 bits [default: 4]
    #[arg(long, value_name = "TOKENS")]
    pub sinks: Option<usize>,

    /// Recent tokens that stay in 16 bits, a multiple of 64 [default: 128]
    #[arg(long, value_name = "TOKENS")]
    pub hot_window: Option<usize>,

    /// Bytes that the KV cache may hold, e.g. 64MB [default: the model's context]
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub kv_budget: Option<u64>,

    /// Tokens of a prompt that are computed at once
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub prefill_chunk: usize,

    /// Tokens to generate at most; fewer if the model's context holds no more
    #[arg(short = 'n', long, default_value_t = 256, value_name = "TOKENS")]
    pub max_tokens: usize,

    /// Sampling temperature; 0 takes the likeliest token
    #[arg(long, visible_alias = "temp", default_value_t = 0.0)]
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

    /// Divide the logits of the last 64 tokens by this; 1 turns it off [default: 1.1; 1.05 and the answer's tokens alone where there is a text]
    #[arg(long, value_name = "FACTOR")]
    pub repetition_penalty: Option<f32>,

    /// Seed of the sampler [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,

    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// The system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,

    /// The chat template, in place of the model's: a Jinja file, or JSON with a "chat_template"
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub chat_template: Option<PathBuf>,

    /// Variables of the chat template, e.g. '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = variables, conflicts_with = "raw")]
    pub chat_template_kwargs: Option<Map<String, Value>>,

    /// Let the model think before it answers, or not, if its template has a switch [default: what the template does]
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on", value_parser = switch, conflicts_with = "raw")]
    pub think: Option<bool>,

    /// No summary and no progress on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

/// Parses `--chat-template-kwargs`.
fn variables(text: &str) -> Result<Map<String, Value>, String> {
    let all: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("it must be a JSON object: {e}"))?;
    match all.contains_key("messages") {
        true => Err("\"messages\" are made of the question".into()),
        false => Ok(all),
    }
}

/// Parses `--think`.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("it must be on or off".into()),
    }
}

impl RunArgs {
    /// What the chat template is told.
    pub fn chat_options(&self) -> ChatOptions {
        let mut options = ChatOptions::new();
        for name in THINKING.iter().filter(|_| self.think.is_some()) {
            options = options.with_variable(*name, self.think);
        }
        options.variables.extend(self.chat_template_kwargs.clone().unwrap_or_default());
        options
    }

    /// How the engine keeps and computes.
    pub fn config(&self) -> EngineConfig {
        let default = EngineConfig::default();
        let sinks = self.sinks.unwrap_or(default.sinks);
        let hot_window = self.hot_window.unwrap_or(default.hot_window);
        default
            .with_kv(&self.kv)
            .with_sinks(sinks)
            .with_hot_window(hot_window)
            .with_prefill_chunk(self.prefill_chunk)
            .with_kv_budget(self.kv_budget)
    }

    /// Tokens of passages chosen from --docs.
    pub fn passages(&self) -> usize {
        self.context_budget.unwrap_or(1024)
    }

    /// How tokens are chosen. An answer from a text needs the text's words, and the digits of
    /// its numbers more than once.
    pub fn sampling(&self, from_text: bool) -> SamplingParams {
        let penalty = if from_text { 1.05 } else { 1.1 };
        let mut sampling = SamplingParams::default()
            .with_temperature(self.temperature)
            .with_repetition_penalty(self.repetition_penalty.unwrap_or(penalty))
            .with_repetition_of_prompt(!from_text)
            .with_seed(self.seed.unwrap_or(0));
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
