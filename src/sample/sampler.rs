//! The sampler: each step of the chain is one small function.

use super::SamplingParams;
use crate::backend::draw::{Choice, Draw, Penalty, penalised};
use crate::error::{Error, Result};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Chooses tokens for one sequence; its random state advances with each draw.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: StdRng,
    /// Logits after the repetition penalty; reused from step to step.
    scores: Vec<f32>,
    /// What is left of the vocabulary; reused from step to step.
    candidates: Vec<Candidate>,
}

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    score: f32,
    /// Probability relative to the most probable token's: exp((score − max) / temperature).
    weight: f64,
}

impl Sampler {
    /// A sampler with a fresh random state from `params.seed`.
    ///
    /// # Errors
    /// [`Error::Config`] if a parameter is out of range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let rng = StdRng::seed_from_u64(params.seed);
        Ok(Self { params, rng, scores: Vec::new(), candidates: Vec::new() })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// What a backend needs to choose the next token itself, as [`sample`](Self::sample)
    /// would but for rounding and the random number; backends pass NaN over, where
    /// `sample` refuses it. `history`: the tokens before the one
    /// that the step takes in, which need not be known yet. The random state advances.
    pub fn choice(&mut self, history: &[u32]) -> Choice {
        Choice { penalty: self.penalty(history), draw: self.draw() }
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

    /// Chooses the next token.
    ///
    /// `logits`: one per token of the vocabulary; −∞ forbids a token.
    /// `history`: the tokens of the sequence so far, oldest first.
    ///
    /// # Errors
    /// [`Error::Sampling`] if there are no logits, one is NaN or +∞, all are −∞,
    /// or a token of the penalty's window is outside the vocabulary.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let best = self.penalise(logits, history)?;
        if self.params.is_greedy() {
            return Ok(best);
        }
        self.shortlist(best);
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        // Only rounding in the sums leads here: the draw was the very end of the range.
        Ok(self.candidates.last().map_or(best, |c| c.id))
    }

    /// The distribution that [`sample`](Self::sample) would draw from, as
    /// (token, probability) of every token left; the random state is not touched.
    /// With greedy parameters it is one token with probability 1.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn distribution(&mut self, logits: &[f32], history: &[u32]) -> Result<Vec<(u32, f64)>> {
        let best = self.penalise(logits, history)?;
        if self.params.is_greedy() {
            return Ok(vec![(best, 1.0)]);
        }
        self.shortlist(best);
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        Ok(self.candidates.iter().map(|c| (c.id, c.weight / total)).collect())
    }

    /// Checks the logits, fills `scores` and returns the best token, the lowest id on ties.
    fn penalise(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        if let Some(id) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(Error::Sampling(format!("the logit of token {id} is {}", logits[id])));
        }
        self.scores.clear();
        self.scores.extend_from_slice(logits);

        let penalty = self.params.repetition_penalty;
        if penalty != 1.0 {
            let start = history.len().saturating_sub(self.params.repetition_window);
            for &id in &history[start..] {
                let (Some(score), Some(&logit)) =
                    (self.scores.get_mut(id as usize), logits.get(id as usize))
                else {
                    return Err(Error::Sampling(format!(
                        "token {id} of the history is outside the vocabulary of {}",
                        logits.len()
                    )));
                };
                // From the untouched logit, so that repeats count once.
                *score = penalised(logit, penalty);
            }
        }

        let mut best: Option<usize> = None;
        for (id, &score) in self.scores.iter().enumerate() {
            if score > best.map_or(f32::NEG_INFINITY, |b| self.scores[b]) {
                best = Some(id);
            }
        }
        best.map(|id| id as u32).ok_or_else(|| {
            Error::Sampling("no token is allowed: there are no logits above -inf".into())
        })
    }

    /// Temperature, top-k, top-p and min-p: fills `candidates`, never empty.
    fn shortlist(&mut self, best: u32) {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let max = f64::from(self.scores[best as usize]);
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(self.scores.iter().enumerate().map(|(id, &score)| {
            let weight = ((f64::from(score) - max) / f64::from(temperature)).exp();
            Candidate { id: id as u32, score, weight }
        }));
        keep_top_k(candidates, top_k);
        if top_p < 1.0 {
            keep_top_p(candidates, f64::from(top_p));
        }
        candidates.retain(|c| c.weight > 0.0 && c.weight >= f64::from(min_p));
    }
}

/// Most probable first; equal scores by id.
fn by_score(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // No score is NaN; unlike `total_cmp` this takes -0 and 0 as equal.
    b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Keeps the `k` best; 0 keeps all.
fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_score);
        candidates.truncate(k);
        candidates.sort_unstable_by(by_score);
    }
}

/// Keeps the shortest beginning, best first, that holds at least the share `p`
/// of what the candidates weigh together.
fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64) {
    candidates.sort_unstable_by(by_score);
    let enough = p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut held = 0.0;
    let crossing = candidates.iter().position(|c| {
        held += c.weight;
        held >= enough
    });
    if let Some(last) = crossing {
        candidates.truncate(last + 1);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
