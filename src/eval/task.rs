//! What every evaluation has in common: a task is prepared once, for a model's
//! tokenizer, and then run in one setting after another on the same prompts, so that
//! its trials can be compared in pairs.

use super::load::{Load, LoadWatch};
use super::question::Question;
use crate::engine::{Runner, Stats};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;

/// A task with its prompts made; nothing of it depends on how the cache is stored.
pub trait Task: Send + Sync {
    /// The name on the command line and in tables.
    fn name(&self) -> &str;
    /// What the values of its outcome are.
    fn metric(&self) -> Metric;
    /// Units that [`run`](Self::run) reports as progress, the last one when it is done.
    fn steps(&self) -> usize;
    /// Tokens of its longest sequence, the answer included.
    fn longest(&self) -> usize;
    /// Its prompts, one a trial and in the same order; none for a task that asks nothing.
    fn questions(&self) -> &[Question] {
        &[]
    }
    /// Runs every trial in the runner's configuration. `progress` is told how many
    /// steps are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) when `cancel` is set; anything that
    /// [`Runner::submit`] reports.
    fn run(
        &self,
        runner: &mut Runner,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Outcome>;
}

/// Runs a task and looks at what else the machine does meanwhile.
///
/// # Errors
/// As [`Task::run`].
pub fn measure(
    task: &dyn Task,
    runner: &mut Runner,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Outcome> {
    let watch = LoadWatch::begin();
    let outcome = task.run(runner, cancel, progress)?;
    Ok(Outcome { load: watch.end(), ..outcome })
}

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Lower is better; trials are mean negative log-likelihoods a token, in nats.
    Perplexity,
    /// Mean of trials between 0 and 1; higher is better.
    Score,
}

/// What came out of a task in one setting.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The perplexity or the mean score.
    pub value: f64,
    /// One standard error of it: over the tokens that were predicted, or over the trials.
    #[serde(default)]
    pub error: f64,
    /// Every trial, in an order that does not depend on the setting.
    pub trials: Vec<Trial>,
    /// The cache when it held most.
    pub memory: KvMemory,
    /// How fast it went.
    pub speed: Speed,
    /// What else the machine did, if that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<Load>,
}

impl Outcome {
    /// Whether it had the machine to itself, so that its speed means something; `None`: not
    /// known.
    pub fn idle(&self) -> Option<bool> {
        self.load.and_then(|load| load.idle())
    }
}

/// One prompt or one window of text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The same in every setting, and unique within the task.
    pub id: String,
    /// Tokens of the prompt; where prompts are made to a length, the length asked for.
    pub length: usize,
    /// Where in the text what is asked for lies, in percent, if that is one place.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub depth: Option<usize>,
    /// See [`Metric`].
    pub score: f64,
    /// Scores of the things asked for, in the order in which the text has them, if they
    /// are several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<f64>,
    /// What the answer is compared with.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub expected: Vec<String>,
    /// What the model said, if it was asked something.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answer: Option<String>,
}

/// Memory that the cache held when a sequence was complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvMemory {
    /// Bytes held, 16-bit window and sinks included.
    pub kv_bytes: u64,
    /// Bytes that the same tokens take in 16 bits.
    pub kv_bytes_16_bit: u64,
}

impl KvMemory {
    /// Bits a number of the cache, everything that is held counted: pages in use and
    /// half used, sinks and the 16-bit window.
    pub fn bits(&self) -> f64 {
        16.0 * self.kv_bytes as f64 / self.kv_bytes_16_bit as f64
    }

    /// How many times smaller than 16 bits.
    pub fn ratio(&self) -> f64 {
        self.kv_bytes_16_bit as f64 / self.kv_bytes as f64
    }
}

/// Tokens and the time that they took, prefill and decode apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens computed in chunks.
    pub prefill_tokens: usize,
    /// Seconds that they took.
    pub prefill_seconds: f64,
    /// Tokens computed one at a time.
    pub decode_tokens: usize,
    /// Seconds that they took.
    pub decode_seconds: f64,
}

impl Speed {
    /// Adds what a generation took; its first token comes from the prefill.
    pub fn add(&mut self, stats: &Stats) {
        self.prefill_tokens += stats.prompt_tokens;
        self.prefill_seconds += stats.time_to_first_token.as_secs_f64();
        self.decode_tokens += stats.generated_tokens.saturating_sub(1);
        self.decode_seconds += stats.decode_time.as_secs_f64();
    }

    /// Prefill, tokens a second; `None` if there was none.
    pub fn prefill(&self) -> Option<f64> {
        (self.prefill_tokens > 0).then(|| self.prefill_tokens as f64 / self.prefill_seconds)
    }

    /// Decode, tokens a second; `None` if there was none.
    pub fn decode(&self) -> Option<f64> {
        (self.decode_tokens > 0).then(|| self.decode_tokens as f64 / self.decode_seconds)
    }
}
