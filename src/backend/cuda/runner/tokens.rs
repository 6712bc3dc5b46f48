//! Tokens on the device.

use super::arena::Arena;
use super::backend::CudaBackend;
use super::buffer::Buffer;
use crate::backend::Tokens;
use crate::backend::cuda::dense::{self, Logits};
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::NONE;
use crate::backend::cuda::weights::Matrix;
use crate::error::{Error, Result};

impl<T: Element> Tokens for CudaBackend<T> {
    fn embed(
        &mut self,
        arena: &mut Arena,
        table: &Matrix<T>,
        scale: f32,
        to: &mut Buffer<T>,
    ) -> Result<()> {
        let begun = arena.begun_mut()?;
        let (n, cols) = (begun.tokens.len(), table.cols());
        let to = to.set_wide(n, cols, &self.stream)?;
        let (tokens, slots) = (begun.tokens.buffer(), self.slots.drawn());
        let rows = dense::Rows { n, tokens, slots, ids: &mut begun.ids };
        dense::embed(table.data(), scale, rows, cols, to, &self.stream)
    }

    fn select(&self, arena: &Arena, from: &Buffer<T>, to: &mut Buffer<T>) -> Result<()> {
        let (wanted, cols) = (&arena.begun()?.rows, from.cols());
        let to = to.set_narrow(wanted.len(), cols, &self.stream)?;
        dense::select_rows(from.narrow()?, wanted.buffer(), wanted.len(), cols, to, &self.stream)
    }

    fn sample(&mut self, arena: &Arena, logits: &mut Buffer<T>) -> Result<()> {
        let (rows, vocab) = (logits.rows(), logits.cols());
        let begun = arena.begun()?;
        if begun.draws.len() != rows {
            let what = format!("{} for {rows} rows", begun.draws.len());
            return Err(Error::config("choices", what));
        }
        let logits = Logits { values: logits.wide()?, rows, vocab, stride: vocab };
        // SAFETY: `begin` made the lists; they are consistent, and it made room for the
        // slots.
        unsafe {
            dense::penalise(logits, begun.penalties(), &self.stream)?;
            dense::sample(logits, begun.draws.buffer(), self.slots.drawn_mut(), &self.stream)
        }
    }

    fn send(&mut self, arena: &Arena) -> Result<()> {
        self.slots.send(&arena.begun()?.slots, &self.stream)
    }

    fn receive(&mut self) -> Result<Vec<Option<u32>>> {
        let ids = self.slots.receive()?;
        Ok(ids.into_iter().map(|id| (id != NONE).then_some(id)).collect())
    }
}
