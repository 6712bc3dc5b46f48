//! Looking at attention while a model runs, on any device.

use crate::backend::score_pass::{Score, Scores, Top, TopHeads};
use crate::backend::{Attend, Backend};
use crate::error::{Error, Result};

/// Looks at attention, layer by layer ([`Pass::observer`](super::Pass::observer)).
pub trait Observer {
    /// Called after attention over a layer.
    ///
    /// # Errors
    /// What stops the pass.
    fn attended(&mut self, seen: &mut dyn Attended) -> Result<()>;

    /// Whether it asks for scores of this layer: then attention keeps its log-sum-exps.
    fn scores(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }
}

/// What an observer sees of one layer's attention. Rows are those of the step.
pub trait Attended {
    /// Layer of the model.
    fn layer(&self) -> usize;
    /// The call.
    fn call(&self) -> &Attend;
    /// Row `row` of `[q heads | k heads | v heads]`, after RoPE; as wide as `out`.
    ///
    /// # Errors
    /// Of the device.
    fn qkv(&self, row: usize, out: &mut [f32]) -> Result<()>;
    /// The residual stream before attention's output joins it.
    ///
    /// # Errors
    /// Of the device.
    fn residual(&self, row: usize, out: &mut [f32]) -> Result<()>;
    /// `rows`, `[n][heads · head_dim]`, through the layer's output projection: calls
    /// `f(i, row)` with each.
    ///
    /// # Errors
    /// Of the device.
    fn project(&mut self, rows: &[f32], f: &mut dyn FnMut(usize, &[f32])) -> Result<()>;
    /// A score pass over what was attended to.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless the observer said that it
    /// [`scores`](Observer::scores) the layer.
    fn score(&mut self, pass: Score, out: &mut Scores) -> Result<()>;
    /// The most probable token of every query.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    fn score_top(&mut self, of: TopHeads, out: &mut Vec<Top>) -> Result<()>;
}

/// One layer's attention on a backend.
pub(super) struct Seen<'a, B: Backend> {
    pub layer: usize,
    pub hidden: usize,
    pub call: &'a Attend,
    pub backend: &'a mut B,
    pub arena: &'a mut B::Arena,
    pub qkv: &'a B::Buffer,
    /// What attention kept, if it was asked to.
    pub lse: Option<&'a B::Buffer>,
    pub residual: &'a B::Buffer,
    pub output: &'a B::Matrix,
    pub scratch: &'a mut [B::Buffer; 2],
    /// Columns of `rows` given to [`Attended::project`].
    pub width: usize,
}

impl<B: Backend> Attended for Seen<'_, B> {
    fn layer(&self) -> usize {
        self.layer
    }

    fn call(&self) -> &Attend {
        self.call
    }

    fn qkv(&self, row: usize, out: &mut [f32]) -> Result<()> {
        self.backend.read_row(self.qkv, row, out)
    }

    fn residual(&self, row: usize, out: &mut [f32]) -> Result<()> {
        self.backend.read_row(self.residual, row, out)
    }

    fn project(&mut self, rows: &[f32], f: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let [from, to] = self.scratch;
        self.backend.write(rows, self.width, from)?;
        self.backend.matmul(self.output, from, to)?;
        let mut row = vec![0f32; self.hidden];
        for i in 0..rows.len() / self.width {
            self.backend.read_row(to, i, &mut row)?;
            f(i, &row);
        }
        Ok(())
    }

    fn score(&mut self, pass: Score, out: &mut Scores) -> Result<()> {
        let lse = kept(self.lse)?;
        self.backend.score(self.arena, self.call, pass, self.qkv, lse, out)
    }

    fn score_top(&mut self, of: TopHeads, out: &mut Vec<Top>) -> Result<()> {
        let lse = kept(self.lse)?;
        self.backend.score_top(self.arena, self.call, of, self.qkv, lse, out)
    }
}

fn kept<T>(lse: Option<&T>) -> Result<&T> {
    lse.ok_or_else(|| Error::misuse("lse", "the observer does not score this layer"))
}
