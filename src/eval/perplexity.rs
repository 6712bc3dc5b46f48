//! Perplexity as llama.cpp's `llama-perplexity` defines it.
//!
//! The text is tokenised whole and cut into windows of N tokens, each computed
//! in a sequence of its own. The first half of a window is context only; from
//! the logits at positions ⌊N/2⌋ … N−2 the following token is scored.
//!
//! A model that wants a beginning-of-sequence token gets one at the head of the
//! text, and in place of the first token of every later window.
//!
//! What a query sees depends on positions alone (ARCHITECTURE, rule 1), so one
//! chunked pass over a window shows exactly the loss that decoding token by
//! token would have.

use super::task::{KvMemory, Metric, Outcome, Speed, Task, Trial};
use crate::backend::RowToken;
use crate::backend::draw::Choice;
use crate::cache::SeqId;
use crate::engine::{Runner, Share, Want};
use crate::error::{Error, Result};
use crate::model::Tokenizer;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Rows of logits that are computed at once, to bound memory: with 49,152
/// tokens in the vocabulary they take 25 MB.
const ROWS: usize = 128;

/// Tokens that are computed one by one after the last window, if the context has room for
/// them, to measure how fast that is.
pub const DECODED: usize = 32;

/// Which text, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerplexitySpec {
    /// The text.
    pub file: PathBuf,
    /// Tokens a window.
    #[serde(default = "default_context")]
    pub context: usize,
    /// Windows to score; `None`: all that the text fills.
    #[serde(default)]
    pub windows: Option<usize>,
}

fn default_context() -> usize {
    2048
}

impl PerplexitySpec {
    /// Windows of 2,048 tokens, all that `file` fills.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), context: default_context(), windows: None }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        check(self.context, self.windows)
    }

    /// Cuts `text`, which is the file's, for a model with a context of `limit` tokens.
    ///
    /// # Errors
    /// As [`Windows::new`]; [`Error::Config`] for windows longer than `limit`.
    pub fn windows(&self, tokenizer: &Tokenizer, text: &str, limit: usize) -> Result<Windows> {
        if self.context > limit {
            let context = self.context;
            let what = format!(
                "{context} is more than the {limit} tokens that the model was trained for; lower it, or stretch its rope with --rope-scaling yarn"
            );
            return Err(Error::config("context", what));
        }
        Windows::new(tokenizer, text, &self.file, self.context, self.windows)
    }
}

/// A text cut into windows: a [`Task`].
#[derive(Clone, Debug)]
pub struct Windows {
    ids: Vec<u32>,
    bos: Option<u32>,
    context: usize,
    count: usize,
}

impl Windows {
    /// Tokenises `text` and cuts it into `count` windows of `context` tokens, or
    /// into as many as there are. Texts of special tokens stay text, and one line
    /// break at the end does not count, as in llama.cpp. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Config`] for a context or count out of range, [`Error::Document`]
    /// if the text is too short, [`Error::Tokenizer`].
    pub fn new(
        tokenizer: &Tokenizer,
        text: &str,
        path: &Path,
        context: usize,
        count: Option<usize>,
    ) -> Result<Self> {
        // Before the tokeniser's work, which a long text makes long.
        check(context, count)?;
        let bos = leading_bos(tokenizer)?;
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode_plain(text.strip_suffix('\n').unwrap_or(text))?);
        let tokens = ids.len();
        match Self::from_ids(ids, bos, context, count)? {
            Some(windows) => Ok(windows),
            None => {
                let count = count.unwrap_or(1);
                let needed = count.saturating_mul(context);
                Err(Error::Document {
                    path: path.to_owned(),
                    what: format!("has {tokens} tokens, {count} x {context} are {needed}"),
                    remedy: "name a longer text, or lower --windows or --context".into(),
                })
            }
        }
    }

    /// Cuts token ids; `None` if there are too few. With `bos`, that token takes
    /// the place of the first of each window.
    ///
    /// # Errors
    /// [`Error::Config`] for a context or count out of range.
    pub fn from_ids(
        ids: Vec<u32>,
        bos: Option<u32>,
        context: usize,
        count: Option<usize>,
    ) -> Result<Option<Self>> {
        check(context, count)?;
        let available = ids.len() / context;
        let count = count.unwrap_or(available);
        let enough = 1 <= count && count <= available;
        Ok(enough.then_some(Self { ids, bos, context, count }))
    }

    /// Tokens a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Number of windows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens that are scored, over all windows.
    pub fn predictions(&self) -> usize {
        self.count * (self.context - 1 - self.first())
    }

    /// The tokens of a window.
    pub fn window(&self, index: usize) -> Vec<u32> {
        let mut ids = self.ids[index * self.context..(index + 1) * self.context].to_vec();
        if let Some(bos) = self.bos {
            ids[0] = bos;
        }
        ids
    }

    /// The first position whose logits count.
    fn first(&self) -> usize {
        self.context / 2
    }
}

fn check(context: usize, count: Option<usize>) -> Result<()> {
    if context < 3 {
        let what = format!("{context} leaves nothing to predict; it must be at least 3");
        return Err(Error::config("context", what));
    }
    match count {
        Some(0) => Err(Error::config("windows", "must be at least 1")),
        _ => Ok(()),
    }
}

/// The token that the tokenizer puts before a text, if it is the model's
/// beginning-of-sequence token.
pub(super) fn leading_bos(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
    let added = with.len() > without.len() && with.first() != without.first();
    Ok(tokenizer.bos().filter(|&bos| added && with[0] == bos))
}

impl Task for Windows {
    fn name(&self) -> &str {
        "perplexity"
    }

    fn metric(&self) -> Metric {
        Metric::Perplexity
    }

    fn steps(&self) -> usize {
        self.count * self.context
    }

    fn longest(&self) -> usize {
        self.context + DECODED
    }

    fn run(
        &self,
        runner: &mut Runner,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Outcome> {
        let scored = perplexity(runner, self, cancel, progress)?;
        let trial = |(index, &score): (usize, &f64)| Trial {
            id: index.to_string(),
            length: self.context,
            score,
            ..Trial::default()
        };
        Ok(Outcome {
            value: scored.perplexity,
            error: scored.error,
            trials: scored.windows.iter().enumerate().map(trial).collect(),
            memory: scored.memory,
            speed: scored.speed,
            ..Outcome::default()
        })
    }
}

/// How well a text was predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log likelihood.
    pub perplexity: f64,
    /// One standard error of it: that of the mean, times the perplexity.
    pub error: f64,
    /// Mean negative log likelihood in nats.
    pub nll: f64,
    /// Tokens that were scored.
    pub predictions: usize,
    /// Mean negative log likelihood of each window.
    pub windows: Vec<f64>,
    /// The cache after the last token of a window.
    #[serde(flatten)]
    pub memory: KvMemory,
    /// Prefill is everything that a window takes, its logits included; decode the
    /// [`DECODED`] tokens after the last one.
    pub speed: Speed,
}

/// Scores every window in the runner's configuration, a prefill chunk at a time;
/// `progress` is told the tokens done so far.
///
/// # Errors
/// [`Error::ContextTooLong`] if a window exceeds the model's context,
/// [`Error::KvBudget`], [`Error::Cancelled`], [`Error::Config`] for unknown ids,
/// [`Error::NotFinite`] for a window whose loss is no number.
pub fn perplexity(
    runner: &mut Runner,
    windows: &Windows,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Perplexity> {
    runner.admit(windows.context, 0)?;
    let room = runner.admit(windows.context, DECODED).is_ok();
    let (mut all, mut each) = (Sums::default(), Vec::new());
    let (mut memory, mut speed) = (KvMemory::default(), Speed::default());
    for index in 0..windows.count {
        let ids = windows.window(index);
        let done = index * windows.context;
        let seq = runner.create();
        let scored: Result<Sums> = (|| {
            let start = Instant::now();
            let sums = score(runner, seq, &ids, windows.first(), cancel, &mut |end| {
                progress(done + end);
            })?;
            speed.prefill_tokens += ids.len();
            speed.prefill_seconds += start.elapsed().as_secs_f64();
            memory = KvMemory {
                kv_bytes: runner.cache().bytes_of(seq)?,
                kv_bytes_16_bit: runner.bytes_16_bit(ids.len()),
            };
            if index + 1 == windows.count && room {
                decode(runner, seq, &ids, cancel, &mut speed)?;
            }
            Ok(sums)
        })();
        runner.free(seq)?;
        let sums = scored?;
        if !sums.nll.is_finite() {
            let what = format!("window {} of {}", index + 1, windows.count);
            return Err(Error::NotFinite { what });
        }
        each.push(sums.nll / sums.n as f64);
        all.add_all(&sums);
    }
    Ok(all.finish(each, memory, speed))
}

/// Computes a window and scores the tokens after positions `first` and on.
fn score(
    runner: &mut Runner,
    seq: SeqId,
    ids: &[u32],
    first: usize,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Sums> {
    let mut sums = Sums::default();
    let chunk = runner.config().prefill_chunk;
    for start in (0..ids.len()).step_by(chunk) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let end = ids.len().min(start + chunk);
        // The last token of a window has no successor to predict.
        let first = first.max(start);
        let scored = first..end.min(ids.len() - 1).max(first);
        let rows = scored.start - start..scored.end - start;
        let want = if rows.is_empty() { Want::Nothing } else { Want::Rows(rows.clone()) };
        runner.submit(&[Share::prompt(seq, &ids[start..end], want)])?;
        for row in (0..rows.len()).step_by(ROWS) {
            runner.logits(row..rows.len().min(row + ROWS), |row, logits| {
                sums.add(negative_log_likelihood(logits, ids[scored.start + row + 1])?);
                Ok(())
            })?;
        }
        progress(end);
    }
    Ok(sums)
}

/// Appends the window's first tokens once more, one by one, as if they were an answer.
fn decode(
    runner: &mut Runner,
    seq: SeqId,
    ids: &[u32],
    cancel: &AtomicBool,
    speed: &mut Speed,
) -> Result<()> {
    for id in ids.iter().cycle().take(DECODED) {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let start = Instant::now();
        let token = vec![RowToken::Given(*id)];
        runner.submit(&[Share::generated(seq, token, Want::Token(Choice::greedy(0)))])?;
        runner.receive()?;
        speed.decode_tokens += 1;
        speed.decode_seconds += start.elapsed().as_secs_f64();
    }
    Ok(())
}

/// −ln softmax(logits)\[token\], in f64.
fn negative_log_likelihood(logits: &[f32], token: u32) -> Result<f64> {
    let Some(&wanted) = logits.get(token as usize) else {
        let what = format!("token {token} is outside of the vocabulary of {}", logits.len());
        return Err(Error::config("ids", what));
    };
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    Ok(max + sum.ln() - f64::from(wanted))
}

/// Sums over predictions.
#[derive(Default)]
struct Sums {
    n: usize,
    nll: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, nll: f64) {
        self.n += 1;
        self.nll += nll;
        self.squares += nll * nll;
    }

    fn add_all(&mut self, other: &Self) {
        self.n += other.n;
        self.nll += other.nll;
        self.squares += other.squares;
    }

    fn finish(&self, windows: Vec<f64>, memory: KvMemory, speed: Speed) -> Perplexity {
        let n = self.n as f64;
        let nll = self.nll / n;
        let variance = (self.squares / n - nll * nll).max(0.0);
        let error = if self.n > 1 { (variance / (n - 1.0)).sqrt() * nll.exp() } else { 0.0 };
        let (perplexity, predictions) = (nll.exp(), self.n);
        Perplexity { perplexity, error, nll, predictions, windows, memory, speed }
    }
}
