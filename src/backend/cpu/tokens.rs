//! Tokens on the CPU.

use super::kv::Arena;
use super::matrix::Matrix;
use super::memory::select;
use super::{Buffer, CpuBackend};
use crate::backend::Tokens;
use crate::error::{Error, Result};

impl Tokens for CpuBackend {
    fn embed(
        &mut self,
        arena: &mut Arena,
        table: &Matrix,
        scale: f32,
        to: &mut Buffer,
    ) -> Result<()> {
        table.embed(&arena.begun.ids, to)?;
        if scale != 1.0 {
            to.as_mut_slice().iter_mut().for_each(|x| *x *= scale);
        }
        Ok(())
    }

    fn select(&self, arena: &Arena, from: &Buffer, to: &mut Buffer) -> Result<()> {
        select(from, arena.begun.rows.iter().copied(), to)
    }

    fn sample(&mut self, arena: &Arena, logits: &mut Buffer) -> Result<()> {
        let begun = &arena.begun;
        if begun.choices.len() != logits.rows() || logits.rows() != begun.rows.len() {
            let what = format!("{} for {} rows of logits", begun.choices.len(), logits.rows());
            return Err(Error::config("choices", what));
        }
        for (i, (choice, row)) in begun.choices.iter().zip(&begun.rows).enumerate() {
            let logits = logits.row_mut(i);
            choice.penalty.apply(logits, begun.ids[*row]);
            let sane = logits.iter().all(|logit| *logit < f32::INFINITY);
            let token = if sane { choice.draw.token(logits)? } else { None };
            self.slots.put(choice.slot, token);
        }
        Ok(())
    }

    fn send(&mut self, arena: &Arena) -> Result<()> {
        self.slots.send(arena.begun.choices.iter().map(|choice| choice.slot));
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        self.slots.receive()
    }
}
