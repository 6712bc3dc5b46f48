//! What is asked of an engine, and what it answers.

use crate::error::{Error, Result};
use crate::sample::SamplingParams;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// One generation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The prompt, special tokens included.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token (for benchmarks).
    pub ignore_eos: bool,
    /// Higher ones come first, and those that came later and are lower make room when memory
    /// is short: they are computed anew, with the same tokens. Ten seconds of waiting are
    /// worth a level. 0 is usual.
    pub priority: i32,
    /// The time that it has, from [`Engine::submit`](super::Engine::submit) to its last token.
    pub deadline: Option<Duration>,
}

impl Request {
    /// A greedy request.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        let sampling = SamplingParams::default();
        let (stop, ignore_eos, priority, deadline) = (Vec::new(), false, 0, None);
        Self { prompt, max_tokens, sampling, stop, ignore_eos, priority, deadline }
    }

    /// Sets how tokens are chosen.
    pub fn with_sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the stop texts.
    pub fn with_stop(mut self, stop: Vec<String>) -> Self {
        self.stop = stop;
        self
    }

    /// Goes on after an end-of-sequence token.
    pub fn with_ignore_eos(mut self, ignore: bool) -> Self {
        self.ignore_eos = ignore;
        self
    }

    /// Sets the priority.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the time that it has.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Checks what does not depend on the model.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.prompt.is_empty() {
            return Err(Error::config("prompt", "has no tokens"));
        }
        if self.max_tokens == 0 {
            return Err(Error::config("max_tokens", "must be at least 1"));
        }
        self.sampling.validate()
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model said so.
    EndOfSequence,
    /// A stop text appeared.
    Stop,
    /// `max_tokens`.
    Length,
}

/// What a generation cost.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// How long the request waited before it ran.
    pub queue_time: Duration,
    /// How often it made room for another and was computed anew.
    pub preemptions: usize,
    /// From the start of the work to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// Bytes that the KV cache held at the end.
    pub kv_bytes: u64,
    /// The most that it held.
    pub kv_peak_bytes: u64,
    /// What the same tokens take in 16 bits.
    pub kv_bytes_16_bit: u64,
}

impl Stats {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.time_to_first_token.as_secs_f64().max(1e-9)
    }

    /// Generated tokens a second, the first one excluded.
    pub fn decode_rate(&self) -> f64 {
        let tokens = self.generated_tokens.saturating_sub(1);
        tokens as f64 / self.decode_time.as_secs_f64().max(1e-9)
    }
}

/// What happens to a request, in order: `Admitted`, `Prefill`s, `Token`s, then one of
/// `Finished` and `Failed`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The prompt fits and is being computed. Comes once.
    Admitted {
        /// Tokens of the prompt that were already in the cache.
        cached_tokens: usize,
    },
    /// A part of the prompt has been computed, or given to a device that computes it. A
    /// request that made room before its first token begins again.
    Prefill {
        /// Tokens of the prompt that are done, this part included.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// One token. Its text may be empty while characters or stop texts are
    /// incomplete.
    Token {
        /// The token.
        id: u32,
        /// Valid UTF-8 that became final with it.
        text: String,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Text that was still held back.
        text: String,
        /// What it cost.
        stats: Stats,
    },
    /// The end, with nothing more to come.
    Failed(Error),
}

/// A finished generation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub stats: Stats,
}

impl Generated {
    /// Takes in all events of a request.
    ///
    /// # Errors
    /// What [`Event::Failed`] says; [`Error::EngineStopped`] if there is no last event.
    pub fn collect(events: impl Iterator<Item = Event>) -> Result<Self> {
        let (mut ids, mut all) = (Vec::new(), String::new());
        for event in events {
            match event {
                Event::Admitted { .. } | Event::Prefill { .. } => {}
                Event::Token { id, text } => {
                    ids.push(id);
                    all += &text;
                }
                Event::Finished { reason, text, stats } => {
                    return Ok(Self { ids, text: all + &text, reason, stats });
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(Error::EngineStopped("the request had no end".into()))
    }
}

/// The events of one request; dropping it cancels the request.
#[derive(Debug)]
pub struct RequestStream {
    events: Receiver<Event>,
    cancel: Arc<AtomicBool>,
    over: bool,
}

impl RequestStream {
    pub(super) fn new(events: Receiver<Event>, cancel: Arc<AtomicBool>) -> Self {
        Self { events, cancel, over: false }
    }

    /// Cancels the request; the stream ends with [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// A flag that cancels the request when set, for signal handlers.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }
}

impl Iterator for RequestStream {
    type Item = Event;

    /// Waits for the next event.
    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| {
            Event::Failed(Error::EngineStopped("its thread ended during the request".into()))
        });
        self.over = matches!(event, Event::Finished { .. } | Event::Failed(_));
        Some(event)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.cancel();
    }
}
