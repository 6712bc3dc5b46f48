//! Tokens that were drawn, by slot.

use crate::backend::RowToken;
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// The tokens drawn, and those on their way to whoever asks.
#[derive(Default)]
pub(super) struct DrawnTokens {
    /// By slot.
    slots: Vec<Option<u32>>,
    pub sent: VecDeque<Vec<Option<u32>>>,
}

impl DrawnTokens {
    /// The tokens of rows.
    pub(super) fn resolve(&self, tokens: &[RowToken]) -> Result<Vec<u32>> {
        let resolve = |token: &RowToken| match *token {
            RowToken::Given(id) => Ok(id),
            RowToken::Drawn(slot) => {
                let drawn = self.get(slot as usize);
                let none = || Error::misuse("tokens", format!("no token was drawn to slot {slot}"));
                drawn.ok_or_else(none)
            }
        };
        tokens.iter().map(resolve).collect()
    }

    /// The token of a slot, if one was drawn there.
    pub(super) fn get(&self, slot: usize) -> Option<u32> {
        self.slots.get(slot).copied().flatten()
    }

    /// Keeps a token in its slot.
    pub(super) fn put(&mut self, slot: u32, token: Option<u32>) {
        let slot = slot as usize;
        self.slots.resize(self.slots.len().max(slot + 1), None);
        self.slots[slot] = token;
    }
}
