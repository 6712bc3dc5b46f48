//! From a request's parameters to one choice after another.

use super::SamplingParams;
use crate::backend::draw::{Choice, Draw, Penalty};
use crate::error::Result;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Says how each token of one sequence is chosen; its random state advances with each. The
/// choosing is a backend's ([`draw`](crate::backend::draw)), and the same on all.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
}

impl Sampler {
    /// A sampler with a fresh random state from `params.seed`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if a parameter is out of range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let rng = StdRng::seed_from_u64(params.seed);
        Ok(Self { params, rng })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// How the next token is chosen, to go to `slot`. `history`: the tokens before the one
    /// that the step takes in, which need not be known yet. The random state advances.
    pub fn choice(&mut self, history: &[u32], slot: u32) -> Choice {
        Choice { penalty: self.penalty(history), draw: self.draw(), slot }
    }

    fn draw(&mut self) -> Draw {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        if self.params.is_greedy() {
            return Draw::GREEDY;
        }
        Draw { temperature, top_k, top_p, min_p, uniform: self.rng.random() }
    }

    fn penalty(&self, history: &[u32]) -> Penalty {
        let SamplingParams { repetition_penalty: factor, repetition_window, .. } = self.params;
        match repetition_window.checked_sub(1) {
            Some(known) if factor != 1.0 => {
                let mut tokens = history[history.len().saturating_sub(known)..].to_vec();
                tokens.sort_unstable();
                tokens.dedup();
                Penalty { factor, tokens }
            }
            _ => Penalty::NONE,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
