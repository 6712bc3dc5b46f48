//! The tokens that steps draw.

use crate::backend::RowToken;
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// The tokens drawn, and those on their way to whoever asks.
#[derive(Default)]
pub(super) struct Slots {
    drawn: Vec<Option<u32>>,
    sent: VecDeque<Vec<Option<u32>>>,
}

impl Slots {
    /// The tokens of rows.
    pub(super) fn resolve(&self, tokens: &[RowToken]) -> Result<Vec<u32>> {
        let resolve = |token: &RowToken| match *token {
            RowToken::Given(id) => Ok(id),
            RowToken::Drawn(slot) => {
                let drawn = self.drawn.get(slot as usize).copied().flatten();
                let none = || Error::misuse("tokens", format!("no token was drawn to slot {slot}"));
                drawn.ok_or_else(none)
            }
        };
        tokens.iter().map(resolve).collect()
    }

    /// Puts the token that a row has drawn into its slot.
    pub(super) fn put(&mut self, slot: u32, token: Option<u32>) {
        let slot = slot as usize;
        self.drawn.resize(self.drawn.len().max(slot + 1), None);
        self.drawn[slot] = token;
    }

    /// Keeps what is in these slots for [`receive`](Self::receive).
    pub(super) fn send(&mut self, slots: impl Iterator<Item = u32>) {
        let drawn = slots.map(|slot| self.drawn.get(slot as usize).copied().flatten());
        self.sent.push_back(drawn.collect());
    }

    /// The tokens that were sent first.
    pub(super) fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        self.sent.pop_front().ok_or_else(|| Error::misuse("tokens", "none were sent"))
    }
}
