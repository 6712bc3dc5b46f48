//! Tokens on the CPU.

use super::cpu_backend::CpuBackend;
use super::kv::CpuArena;
use super::matrix::CpuMatrix;
use super::memory::select;
use super::tensor::CpuBuffer;
use crate::backend::Tokens;
use crate::error::{Error, Result};

impl Tokens for CpuBackend {
    fn embed(
        &mut self,
        arena: &mut CpuArena,
        table: &CpuMatrix,
        scale: f32,
        to: &mut CpuBuffer,
    ) -> Result<()> {
        table.embed(&arena.begun.ids, to)?;
        if scale != 1.0 {
            to.as_mut_slice().iter_mut().for_each(|x| *x *= scale);
        }
        Ok(())
    }

    fn select(&self, arena: &CpuArena, from: &CpuBuffer, to: &mut CpuBuffer) -> Result<()> {
        select(from, arena.begun.rows.iter().copied(), to)
    }

    fn sample(&mut self, arena: &CpuArena, logits: &mut CpuBuffer) -> Result<()> {
        let begun = &arena.begun;
        if begun.choices.len() != logits.rows() || logits.rows() != begun.rows.len() {
            let what = format!("{} for {} rows of logits", begun.choices.len(), logits.rows());
            return Err(Error::config("choices", what));
        }
        for (i, (choice, row)) in begun.choices.iter().zip(&begun.rows).enumerate() {
            let logits = logits.row_mut(i);
            let sane = logits.iter().all(|logit| *logit < f32::INFINITY);
            choice.penalty.apply(logits, begun.ids[*row]);
            let token = if sane { choice.draw.token(logits)? } else { None };
            self.drawn.put(choice.slot, token);
        }
        Ok(())
    }

    fn send(&mut self, arena: &CpuArena) -> Result<()> {
        let slots = arena.begun.choices.iter().map(|choice| choice.slot as usize);
        let drawn = slots.map(|slot| self.drawn.get(slot));
        let drawn = drawn.collect();
        self.drawn.sent.push_back(drawn);
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        self.drawn.sent.pop_front().ok_or_else(|| Error::misuse("tokens", "none were sent"))
    }
}
