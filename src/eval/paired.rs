//! Comparing two outcomes trial by trial.
//!
//! The same prompts are asked in every setting, so what the prompts differ in cancels:
//! the mean difference of the pairs is known far better than the two means.

use super::prose::Rng;
use super::task::Trial;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Resamples behind an interval.
pub const RESAMPLES: usize = 10_000;

/// How one outcome differs from a reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Pairs.
    pub pairs: usize,
    /// Mean of score minus the reference's score. For perplexity, nats a token: its
    /// exponential is the ratio of the two perplexities.
    pub difference: f64,
    /// The lower end of the 95 % interval of the mean difference.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Trials with a higher score than the reference's.
    pub higher: usize,
    /// Trials with a lower score.
    pub lower: usize,
    /// The exact two-sided p of McNemar's test, if all scores are 0 or 1.
    pub p: Option<f64>,
}

/// Compares `trials` with `reference`, which must be of the same trials in the same order.
///
/// # Errors
/// [`Error::Config`] if they are not.
pub fn paired(trials: &[Trial], reference: &[Trial]) -> Result<Paired> {
    let same =
        trials.len() == reference.len() && trials.iter().zip(reference).all(|(a, b)| a.id == b.id);
    if !same || trials.is_empty() {
        return Err(Error::config("trials", "the two outcomes are not of the same trials"));
    }
    let differences: Vec<f64> =
        trials.iter().zip(reference).map(|(a, b)| a.score - b.score).collect();
    let (low, high) = bootstrap(&differences, 0.95);
    let higher = differences.iter().filter(|&&d| d > 0.0).count();
    let lower = differences.iter().filter(|&&d| d < 0.0).count();
    let yes_or_no = |trial: &Trial| trial.score == 0.0 || trial.score == 1.0;
    let p = trials.iter().chain(reference).all(yes_or_no).then(|| mcnemar(higher, lower));
    let difference = differences.iter().sum::<f64>() / differences.len() as f64;
    Ok(Paired { pairs: trials.len(), difference, low, high, higher, lower, p })
}

/// The bootstrap's percentile interval of the mean of `values` (Efron 1979), from
/// [`RESAMPLES`] resamples; the same every time. (0, 0) if there are none.
pub fn bootstrap(values: &[f64], confidence: f64) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut rng = Rng::new(0x6b76_666f_6c64);
    let n = values.len();
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..n).map(|_| values[rng.below(n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    let at = |share: f64| means[((RESAMPLES as f64 * share) as usize).min(RESAMPLES - 1)];
    (at(tail), at(1.0 - tail))
}

/// McNemar's exact test: the two-sided probability that, of `a + b` pairs that differ, at
/// most the smaller number differ in one direction, if both directions were as likely.
pub fn mcnemar(a: usize, b: usize) -> f64 {
    let n = a + b;
    // Binomial terms C(n, k) / 2^n, each from the one before, in logarithms.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=a.min(b) {
        if k > 0 {
            term += ((n - k + 1) as f64).ln() - (k as f64).ln();
        }
        tail += term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Relative change of `value` against `reference`, in percent; `None` if the
/// reference is 0.
pub fn change_percent(value: f64, reference: f64) -> Option<f64> {
    (reference != 0.0).then(|| (value / reference - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(scores: &[f64]) -> Vec<Trial> {
        let trial =
            |(i, &score): (usize, &f64)| Trial { id: i.to_string(), score, ..Trial::default() };
        scores.iter().enumerate().map(trial).collect()
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        // By hand: 1 against 5 of 6 gives 2 (1 + 6) / 64.
        assert!((mcnemar(1, 5) - 14.0 / 64.0).abs() < 1e-12);
        assert!((mcnemar(0, 8) - 2.0 / 256.0).abs() < 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(3, 3), mcnemar(4, 0)), (1.0, 1.0, mcnemar(0, 4)));
    }

    #[test]
    fn pairs_are_compared() {
        let (a, b) = (trials(&[1.0, 0.0, 1.0, 0.0]), trials(&[1.0, 1.0, 1.0, 1.0]));
        let got = paired(&a, &b).unwrap();
        assert_eq!((got.pairs, got.difference, got.higher, got.lower), (4, -0.5, 0, 2));
        assert_eq!(got.p, Some(0.5));
        assert!((-1.0..-0.5).contains(&got.low) && (-0.5..=0.0).contains(&got.high), "{got:?}");
        assert_eq!(paired(&b, &b).unwrap().low, 0.0);
        assert_eq!(paired(&trials(&[0.5]), &trials(&[1.0])).unwrap().p, None);
        let mut other = b.clone();
        other[2].id = "another".into();
        assert!(paired(&a, &other).is_err() && paired(&a, &b[..3]).is_err());
        assert!(paired(&[], &[]).is_err());
    }

    #[test]
    fn the_interval_is_that_of_a_mean() {
        // 400 values of variance 1/4: the mean's standard error is 1/40.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let (low, high) = bootstrap(&values, 0.95);
        assert!((low - (0.5 - 1.96 / 40.0)).abs() < 0.004, "{low}");
        assert!((high - (0.5 + 1.96 / 40.0)).abs() < 0.004, "{high}");
        assert_eq!(bootstrap(&values, 0.95), (low, high));
        assert_eq!(bootstrap(&[2.0; 7], 0.95), (2.0, 2.0));
    }
}
