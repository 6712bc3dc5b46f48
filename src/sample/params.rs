//! What a caller may ask of the sampler.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the next token is chosen. The default is greedy decoding.
///
/// ```
/// use kvfold::sample::SamplingParams;
/// let params = SamplingParams::default().with_temperature(0.7).with_top_p(0.9).with_seed(1);
/// assert!(params.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SamplingParams {
    /// The logits are divided by it; 0 is greedy decoding, which ignores
    /// `top_k`, `top_p`, `min_p` and `seed`. Default 0.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens remain; 0 keeps all. Default 0.
    pub top_k: usize,
    /// Only the fewest, most probable tokens remain whose probabilities add up
    /// to at least `top_p` (nucleus sampling, Holtzman et al. 2019), in (0, 1];
    /// 1 keeps all. Default 1.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as probable as the most probable one
    /// remain (Nguyen et al. 2024), in [0, 1]; 0 keeps all. Default 0.
    pub min_p: f32,
    /// Logits of tokens already in the text are divided by it when positive and
    /// multiplied by it when negative (CTRL, Keskar et al. 2019), once however
    /// often the token occurs; 1 does nothing. Default 1.
    pub repetition_penalty: f32,
    /// How many of the last tokens the penalty looks at. Default 64, as in
    /// llama.cpp; `usize::MAX` looks at all of them, as `transformers` does.
    pub repetition_window: usize,
    /// Whether tokens of the prompt count, as in llama.cpp and `transformers`. An answer
    /// from a text needs the text's words, so there it is better if they do not. Default true.
    pub repetition_of_prompt: bool,
    /// Seed of the random numbers. Default 0: a caller that wants a different
    /// answer each time draws a seed of its own.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            repetition_of_prompt: true,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Sets [`temperature`](Self::temperature).
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_k`](Self::top_k).
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Sets [`top_p`](Self::top_p).
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets [`min_p`](Self::min_p).
    pub fn with_min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// Sets [`repetition_penalty`](Self::repetition_penalty).
    pub fn with_repetition_penalty(mut self, penalty: f32) -> Self {
        self.repetition_penalty = penalty;
        self
    }

    /// Sets [`repetition_window`](Self::repetition_window), in tokens.
    pub fn with_repetition_window(mut self, tokens: usize) -> Self {
        self.repetition_window = tokens;
        self
    }

    /// Sets [`repetition_of_prompt`](Self::repetition_of_prompt).
    pub fn with_repetition_of_prompt(mut self, counts: bool) -> Self {
        self.repetition_of_prompt = counts;
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whether every token is the most probable one.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first field that is out of range. NaN always is.
    pub fn validate(&self) -> Result<()> {
        let check = |field, value: f32, allowed: bool, range: &str| {
            if allowed {
                return Ok(());
            }
            Err(Error::config(field, format!("{value} is out of range; it must be {range}")))
        };
        let Self { temperature, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        let finite = temperature.is_finite() && temperature >= 0.0;
        check("temperature", temperature, finite, "0 (greedy) or a positive number")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "between 0 and 1")?;
        let positive = penalty.is_finite() && penalty > 0.0;
        check("repetition_penalty", penalty, positive, "a positive number (1 does nothing)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_greedy() {
        let params = SamplingParams::default();
        assert!(params.validate().is_ok());
        assert!(params.is_greedy());
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        let good = SamplingParams::default;
        let cases = [
            ("temperature", good().with_temperature(-0.1)),
            ("temperature", good().with_temperature(f32::INFINITY)),
            ("temperature", good().with_temperature(f32::NAN)),
            ("top_p", good().with_top_p(0.0)),
            ("top_p", good().with_top_p(1.1)),
            ("top_p", good().with_top_p(f32::NAN)),
            ("min_p", good().with_min_p(-0.1)),
            ("min_p", good().with_min_p(f32::NAN)),
            ("repetition_penalty", good().with_repetition_penalty(0.0)),
            ("repetition_penalty", good().with_repetition_penalty(f32::NAN)),
        ];
        for (field, params) in cases {
            let error = params.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }

    #[test]
    fn json_may_leave_fields_out_but_not_misspell_them() {
        let params: SamplingParams = serde_json::from_str(r#"{"top_k": 5}"#).unwrap();
        assert_eq!(params, SamplingParams::default().with_top_k(5));
        assert!(serde_json::from_str::<SamplingParams>(r#"{"topk": 5}"#).is_err());
    }
}
