//! The engine's thread: takes requests from the queue and runs them.

use super::request::{Event, FinishReason, Request, Stats};
use super::session::Session;
use super::text::TextStream;
use super::tokens::Tokens;
use crate::cache::SeqId;
use crate::error::{Error, Result};
use crate::sample::Sampler;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

/// A request with its way back.
pub(super) struct Job {
    pub request: Request,
    pub events: SyncSender<Event>,
    pub cancel: Arc<AtomicBool>,
}

/// Runs requests until every handle is gone.
pub(super) fn run(mut session: Session, queue: Receiver<Job>) {
    for job in queue {
        if let Err(error) = generate(&mut session, &job) {
            // Nobody listens to a request whose stream was dropped.
            let _ = job.events.send(Event::Failed(error));
        }
    }
}

/// Runs one request and releases its memory, however it ends.
fn generate(session: &mut Session, job: &Job) -> Result<()> {
    let Request { prompt, max_tokens, .. } = &job.request;
    session.admit(prompt.len(), *max_tokens)?;
    let span = tracing::info_span!("request", prompt = prompt.len());
    let _entered = span.enter();
    let seq = session.create();
    let result = decode(session, seq, job);
    let freed = session.free(seq);
    let finished = result?;
    freed?;
    send(job, finished)
}

/// Prefill and decode; the final event.
fn decode(session: &mut Session, seq: SeqId, job: &Job) -> Result<Event> {
    let request = &job.request;
    send(job, Event::Admitted { cached_tokens: 0 })?;
    let sampler = Sampler::new(request.sampling.clone())?;
    let mut text = TextStream::new(&request.stop)?;
    let tokenizer = session.model().tokenizer.clone();
    let mut history = request.prompt.clone();

    let start = Instant::now();
    let last = last_chunk(session, &request.prompt);
    session.prefill(seq, &request.prompt[..last.start], &job.cancel)?;
    let mut tokens = Tokens::new(session, seq, sampler, request.max_tokens);
    let mut first_token = None;
    let mut next = tokens.first(&request.prompt[last], &history)?;
    let reason = loop {
        let first = *first_token.get_or_insert_with(Instant::now);
        tracing::trace!(token = next, since_first = ?first.elapsed());
        if tokenizer.eos_ids().contains(&next) && !request.ignore_eos {
            break FinishReason::EndOfSequence;
        }
        history.push(next);
        let piece = text.push(tokenizer.token_bytes(next));
        let stopped = piece.stopped.is_some();
        send(job, Event::Token { id: next, text: piece.text })?;
        if stopped {
            break FinishReason::Stop;
        }
        if history.len() - request.prompt.len() == request.max_tokens {
            break FinishReason::Length;
        }
        if job.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        next = tokens.next(&history)?;
    };

    let end = Instant::now();
    drop(tokens);
    let first = first_token.unwrap_or(end);
    // The last token was not taken in, unless it was the end, which is not in the history;
    // a step that ran ahead in vain does not count.
    let taken_in = history.len() - usize::from(reason != FinishReason::EndOfSequence);
    let tokens = session.cache().len(seq)?.min(taken_in);
    let stats = Stats {
        prompt_tokens: request.prompt.len(),
        generated_tokens: history.len() - request.prompt.len(),
        time_to_first_token: first - start,
        decode_time: end - first,
        kv_bytes: session.cache().held_bytes(),
        kv_peak_bytes: session.cache().peak_bytes(),
        kv_bytes_16_bit: session.bytes_16_bit(tokens),
    };
    let rest = if reason == FinishReason::Stop { String::new() } else { text.finish().text };
    Ok(Event::Finished { reason, text: rest, stats })
}

/// The last chunk of a prompt.
fn last_chunk(session: &Session, prompt: &[u32]) -> Range<usize> {
    let chunk = session.config().prefill_chunk;
    prompt.len().saturating_sub(1) / chunk * chunk..prompt.len()
}

/// Sends an event; a stream that was dropped cancels the request.
fn send(job: &Job, event: Event) -> Result<()> {
    job.events.send(event).map_err(|_| Error::Cancelled)
}
