//! One request's state: its tokens, its text, what it cost.

use super::request::{Event, FinishReason, Request, Stats};
use super::runner::{Runner, Want};
use super::text::TextStream;
use crate::backend::draw::Choice;
use crate::cache::SeqId;
use crate::error::{Error, Result};
use crate::model::Tokenizer;
use crate::sample::Sampler;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request that runs.
pub(super) struct Generation {
    request: Request,
    pub seq: SeqId,
    /// Where its tokens are drawn to.
    pub slot: u32,
    /// Whether these are its own.
    runs: bool,
    sampler: Sampler,
    text: TextStream,
    tokenizer: Arc<Tokenizer>,
    /// The prompt and the tokens received.
    history: Vec<u32>,
    /// Tokens drawn, those on their way included.
    drawn: usize,
    preemptions: usize,
    queue_time: Duration,
    start: Instant,
    first_token: Option<Instant>,
    peak_bytes: u64,
}

impl Generation {
    /// Begins a sequence for a request that came at `came`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn new(request: Request, came: Instant, slot: u32, runner: &mut Runner) -> Result<Self> {
        let start = Instant::now();
        let sampler = Sampler::new(request.sampling.clone())?;
        let text = TextStream::new(&request.stop)?;
        Ok(Self {
            seq: runner.create(),
            slot,
            runs: true,
            sampler,
            text,
            tokenizer: runner.model().tokenizer.clone(),
            history: request.prompt.clone(),
            request,
            drawn: 0,
            preemptions: 0,
            queue_time: start - came,
            start,
            first_token: None,
            peak_bytes: 0,
        })
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.request.prompt
    }

    /// Gives its memory and its slot back, if it has them. To go on later, all its tokens must
    /// have come.
    pub fn leave(&mut self, runner: &mut Runner) -> Option<u32> {
        if !std::mem::take(&mut self.runs) {
            return None;
        }
        // Its sequence exists and no step of it is in the books' hands.
        let _ = runner.free(self.seq);
        Some(self.slot)
    }

    /// Begins again after it made room.
    pub fn resume(&mut self, slot: u32, runner: &mut Runner) {
        self.preemptions += 1;
        (self.seq, self.slot, self.runs) = (runner.create(), slot, true);
    }

    /// Whether a token was drawn.
    pub fn has_begun(&self) -> bool {
        self.drawn > 0
    }

    /// The tokens received.
    pub fn answer(&self) -> &[u32] {
        &self.history[self.request.prompt.len()..]
    }

    /// The next token, or nothing yet.
    pub fn want(&mut self, token: bool) -> Want {
        match token {
            true => Want::Token(self.choose()),
            false => Want::Nothing,
        }
    }

    /// How the next token is chosen, after those received and one for each on its way.
    fn choose(&mut self) -> Choice {
        // The step takes in one token more than the penalty is told of: the last of the
        // prompt, or the one that was drawn last. Of tokens on their way only that one is
        // not known.
        let received = self.history.len() - self.request.prompt.len();
        let on_way = self.drawn - received;
        let known = self.history.len() - usize::from(on_way == 0);
        self.drawn += 1;
        let first = match self.request.sampling.repetition_of_prompt {
            true => 0,
            false => self.request.prompt.len().min(known),
        };
        self.sampler.choice(&self.history[first..known], self.slot)
    }

    /// Notes what the sequence holds while a step of it is under way.
    pub fn measure(&mut self, bytes: u64) {
        self.peak_bytes = self.peak_bytes.max(bytes);
    }

    /// Takes in a token that came to the host. Gives what is to be told: a token, the end,
    /// or both.
    pub fn take(&mut self, token: Option<u32>, runner: &Runner) -> (Option<Event>, Option<Event>) {
        let first = *self.first_token.get_or_insert_with(Instant::now);
        let Some(token) = token else {
            let tokens = self.history.len() - self.request.prompt.len();
            let error = Error::NotFinite { what: format!("token {} of the answer", tokens + 1) };
            return (None, Some(Event::Failed(error)));
        };
        tracing::trace!(token, since_first = ?first.elapsed());
        if self.tokenizer.eos_ids().contains(&token) && !self.request.ignore_eos {
            return (None, Some(self.finish(FinishReason::EndOfSequence, runner)));
        }
        self.history.push(token);
        let piece = self.text.push(self.tokenizer.token_bytes(token));
        let event = Event::Token { id: token, text: piece.text };
        let generated = self.history.len() - self.request.prompt.len();
        let end = if piece.stopped.is_some() {
            Some(FinishReason::Stop)
        } else if generated == self.request.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        (Some(event), end.map(|reason| self.finish(reason, runner)))
    }

    fn finish(&mut self, reason: FinishReason, runner: &Runner) -> Event {
        let end = Instant::now();
        let first = self.first_token.unwrap_or(end);
        // The last token was not taken in, unless it was the end, which is not in the
        // history; a step that ran ahead in vain does not count.
        let taken_in = self.history.len() - usize::from(reason != FinishReason::EndOfSequence);
        let tokens = runner.cache().len(self.seq).unwrap_or(0).min(taken_in);
        let prompt_tokens = self.request.prompt.len();
        let stats = Stats {
            prompt_tokens,
            generated_tokens: self.history.len() - prompt_tokens,
            queue_time: self.queue_time,
            preemptions: self.preemptions,
            time_to_first_token: first - self.start,
            decode_time: end - first,
            kv_bytes: runner.cache().bytes_of(self.seq).unwrap_or(0),
            kv_peak_bytes: self.peak_bytes,
            kv_bytes_16_bit: runner.bytes_16_bit(tokens),
        };
        let stopped = reason == FinishReason::Stop;
        let text = if stopped { String::new() } else { self.text.finish().text };
        Event::Finished { reason, text, stats }
    }
}
