//! The tokens of one sequence, one after the other.
//!
//! On the CPU each is chosen from its logits here, by the sampler's own arithmetic. On a device of its own the device
//! chooses, and each step takes in the token of the one before without waiting for it to
//! come to the host: while a token is looked at, the next step is under way. If that
//! token was the last, one step was in vain.

use super::session::Session;
use crate::backend::Ids;
use crate::cache::SeqId;
use crate::error::{Error, Result};
use crate::sample::Sampler;

/// Generates the tokens of a sequence.
pub(super) struct Tokens<'a> {
    session: &'a mut Session,
    seq: SeqId,
    sampler: Sampler,
    /// Steps that may still be enqueued.
    left: usize,
    /// Steps whose tokens were not received yet.
    in_flight: usize,
    /// Why the step after those could not be enqueued.
    failed: Option<Error>,
}

impl<'a> Tokens<'a> {
    /// At most `most` tokens.
    pub fn new(session: &'a mut Session, seq: SeqId, sampler: Sampler, most: usize) -> Self {
        Self { session, seq, sampler, left: most, in_flight: 0, failed: None }
    }

    /// The token after `ids`, which end `history`. Nothing runs ahead of it, so that it
    /// comes as soon as it can.
    pub fn first(&mut self, ids: &[u32], history: &[u32]) -> Result<u32> {
        if !self.session.chooses_tokens() {
            return self.choose(ids, history);
        }
        self.enqueue(Ids::Given(ids), &history[..history.len() - 1])?;
        self.receive()
    }

    /// The token after `history`, which ends with the one that was given last.
    pub fn next(&mut self, history: &[u32]) -> Result<u32> {
        if !self.session.chooses_tokens() {
            return self.choose(&history[history.len() - 1..], history);
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.in_flight == 0 {
            self.enqueue(Ids::Drawn(1), &history[..history.len() - 1])?;
        }
        if self.left > 0
            && let Err(error) = self.enqueue(Ids::Drawn(1), history)
        {
            // The token under way may be the last, and then nobody minds.
            self.failed = Some(error);
        }
        self.receive()
    }

    fn receive(&mut self) -> Result<u32> {
        self.in_flight -= 1;
        self.session.receive()
    }

    fn choose(&mut self, ids: &[u32], history: &[u32]) -> Result<u32> {
        self.session.step(self.seq, ids, &[ids.len() - 1])?;
        let mut next = 0;
        self.session.logits(0..1, |_, logits| {
            next = self.sampler.sample(logits, history)?;
            Ok(())
        })?;
        Ok(next)
    }

    /// Enqueues a step over `ids`; `known` are the tokens before the last of them.
    fn enqueue(&mut self, ids: Ids<'_>, known: &[u32]) -> Result<()> {
        let choice = self.sampler.choice(known);
        self.session.step_and_choose(self.seq, ids, choice)?;
        self.left = self.left.saturating_sub(1);
        self.in_flight += 1;
        Ok(())
    }
}

impl Drop for Tokens<'_> {
    /// Tokens that nobody wants are received, lest the next request takes them for its own.
    fn drop(&mut self) {
        for _ in 0..self.in_flight {
            // What went wrong in a step that was in vain, a later one will say.
            let _ = self.session.receive();
        }
    }
}
