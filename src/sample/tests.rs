//! The sampler, and the backends' arithmetic behind it, against known distributions.

use super::*;
use proptest::prelude::*;

/// A sampler whose choices are carried out here, as a backend does it.
struct Host(Sampler);

fn sampler(params: SamplingParams) -> Host {
    Host(Sampler::new(params).unwrap())
}

impl Host {
    /// A choice, and logits under its penalty. The last token of `history` is the one that
    /// the step takes in.
    fn choose(&mut self, logits: &[f32], history: &[u32]) -> (Choice, Vec<f32>) {
        let known = history.len().saturating_sub(1);
        let choice = self.0.choice(&history[..known], 0);
        let mut logits = logits.to_vec();
        if let Some(last) = history.last() {
            choice.penalty.apply(&mut logits, *last);
        }
        (choice, logits)
    }

    fn sample(&mut self, logits: &[f32], history: &[u32]) -> Option<u32> {
        let (choice, logits) = self.choose(logits, history);
        choice.draw.token(&logits).unwrap()
    }

    fn distribution(&mut self, logits: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
        let (choice, logits) = self.choose(logits, history);
        let kept = choice.draw.kept(&logits).unwrap();
        let total: f64 = kept.iter().map(|k| k.1 as f64).sum();
        kept.into_iter().map(|(id, weight)| (id, weight as f64 / total)).collect()
    }
}

/// Sampling at temperature 1, everything else off.
fn plain() -> SamplingParams {
    SamplingParams::default().with_temperature(1.0)
}

fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

/// The tokens that remain, by id.
fn kept(params: SamplingParams, logits: &[f32]) -> Vec<u32> {
    let left = sampler(params).distribution(logits, &[]);
    let mut ids: Vec<u32> = left.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids
}

/// Pearson's statistic of 100,000 draws against `expected`.
fn chi_square(params: SamplingParams, logits: &[f32], expected: &[f64]) -> f64 {
    const DRAWS: usize = 100_000;
    let mut sampler = sampler(params);
    let mut counts = vec![0usize; expected.len()];
    for _ in 0..DRAWS {
        counts[sampler.sample(logits, &[]).unwrap() as usize] += 1;
    }
    counts
        .iter()
        .zip(expected)
        .map(|(&seen, p)| {
            if *p == 0.0 {
                assert_eq!(seen, 0, "a forbidden token was drawn");
                return 0.0;
            }
            let expected = p * DRAWS as f64;
            (seen as f64 - expected).powi(2) / expected
        })
        .sum()
}

const P: [f64; 5] = [0.15, 0.4, 0.05, 0.3, 0.1];

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_on_ties() {
    let mut greedy = sampler(SamplingParams::default());
    assert_eq!(greedy.sample(&[0.0, 3.0, -1.0, 3.0], &[]).unwrap(), 1);
    assert_eq!(greedy.sample(&[-0.0, 0.0], &[]).unwrap(), 0);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -7.0], &[]).unwrap(), 1);
    assert_eq!(greedy.distribution(&[0.0, 3.0], &[]), [(1, 1.0)]);
}

// 18.47 is the 0.999 quantile of chi-square with 4 degrees of freedom; the seed is fixed.
#[test]
fn draws_follow_the_softmax() {
    let statistic = chi_square(plain().with_seed(1), &logits_of(&P), &P);
    assert!(statistic < 18.47, "{statistic}");
}

#[test]
fn temperature_raises_probabilities_to_its_inverse() {
    let powers: Vec<f64> = P.iter().map(|p| p.powf(1.0 / 2.0)).collect();
    let total: f64 = powers.iter().sum();
    let expected: Vec<f64> = powers.iter().map(|p| p / total).collect();
    let statistic = chi_square(plain().with_temperature(2.0), &logits_of(&P), &expected);
    assert!(statistic < 18.47, "{statistic}");
}

// 9.21 is the 0.99 quantile with 2 degrees of freedom.
#[test]
fn what_top_k_leaves_is_renormalised() {
    let expected = [0.15 / 0.85, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.0];
    let statistic = chi_square(plain().with_top_k(3), &logits_of(&P), &expected);
    assert!(statistic < 9.21, "{statistic}");
}

#[test]
fn top_k_keeps_exactly_k_and_the_lowest_ids_on_ties() {
    let logits = logits_of(&P);
    assert_eq!(kept(plain().with_top_k(1), &logits), [1]);
    assert_eq!(kept(plain().with_top_k(3), &logits), [0, 1, 3]);
    assert_eq!(kept(plain().with_top_k(0), &logits), [0, 1, 2, 3, 4]);
    assert_eq!(kept(plain().with_top_k(99), &logits), [0, 1, 2, 3, 4]);
    assert_eq!(kept(plain().with_top_k(2), &[1.0, 0.0, 0.0, 0.0]), [0, 1]);
    assert_eq!(kept(plain().with_top_k(1), &[-0.0, 0.0]), [0]);
}

#[test]
fn top_p_keeps_the_token_that_crosses() {
    let logits = logits_of(&P);
    assert_eq!(kept(plain().with_top_p(0.01), &logits), [1]);
    assert_eq!(kept(plain().with_top_p(0.39), &logits), [1]);
    assert_eq!(kept(plain().with_top_p(0.41), &logits), [1, 3]);
    assert_eq!(kept(plain().with_top_p(0.8), &logits), [0, 1, 3]);
    assert_eq!(kept(plain().with_top_p(0.99), &logits), [0, 1, 2, 3, 4]);
}

#[test]
fn top_p_sees_only_what_top_k_left() {
    // Of the three best, 0.4 and 0.3 hold 0.7 / 0.85 = 0.82.
    assert_eq!(kept(plain().with_top_k(3).with_top_p(0.8), &logits_of(&P)), [1, 3]);
}

#[test]
fn min_p_is_relative_to_the_best_and_follows_temperature() {
    let logits = logits_of(&P);
    assert_eq!(kept(plain().with_min_p(0.2), &logits), [0, 1, 3, 4]);
    assert_eq!(kept(plain().with_min_p(0.3), &logits), [0, 1, 3]);
    assert_eq!(kept(plain().with_min_p(1.0), &logits), [1]);
    // At temperature 2, 0.15 / 0.4 becomes its square root, 0.61.
    assert_eq!(kept(plain().with_temperature(2.0).with_min_p(0.6), &logits), [0, 1, 3]);
}

#[test]
fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
    let params = SamplingParams::default().with_repetition_penalty(2.0);
    let mut sampler = sampler(params);
    let (_, lowered) = sampler.choose(&[4.0, -4.0, 0.0, 1.0], &[0, 0, 1, 2]);
    assert_eq!(lowered, [2.0, -8.0, 0.0, 1.0]);
    assert_eq!(sampler.sample(&[4.0, 3.0], &[0]).unwrap(), 1);
}

#[test]
fn the_penalty_looks_back_as_far_as_its_window() {
    let params = SamplingParams::default().with_repetition_penalty(2.0);
    let logits = [4.0, 3.0];
    let choose = |window| {
        sampler(params.clone().with_repetition_window(window)).sample(&logits, &[0, 1, 1]).unwrap()
    };
    assert_eq!(choose(0), 0);
    assert_eq!(choose(2), 0);
    assert_eq!(choose(3), 0, "both halved");
    let mut short = sampler(params.clone().with_repetition_window(1));
    assert_eq!(short.sample(&logits, &[1, 0]).unwrap(), 1);
    let mut all = sampler(params.with_repetition_window(usize::MAX));
    assert_eq!(all.sample(&[4.0, 3.0, 2.5], &[0, 1]).unwrap(), 2);
}

#[test]
fn the_seed_decides() {
    let logits = vec![0.0; 1000];
    let draw = |seed| {
        let mut sampler = sampler(plain().with_seed(seed));
        (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
fn nothing_is_drawn_from_unusable_logits() {
    let mut random = sampler(plain());
    for logits in [&[f32::NEG_INFINITY; 2][..], &[f32::NAN], &[]] {
        for sampler in [&mut random, &mut sampler(SamplingParams::default())] {
            assert_eq!(sampler.sample(logits, &[]), None);
        }
    }
}

#[test]
fn extreme_parameters_stay_finite() {
    let cold = plain().with_temperature(f32::MIN_POSITIVE);
    assert_eq!(sampler(cold).sample(&[1.0, 1.5], &[]).unwrap(), 1);
    let tiny = plain().with_repetition_penalty(f32::MIN_POSITIVE);
    assert_eq!(sampler(tiny).sample(&[1e30, 1e30], &[1]).unwrap(), 1);
}

proptest! {
    #[test]
    fn a_forbidden_token_is_never_drawn_and_probabilities_add_up(
        logits in proptest::collection::vec(
            prop_oneof![4 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY)], 1..40),
        temperature in 0.0f32..3.0, top_k in 0usize..10, top_p in 0.01f32..=1.0,
        min_p in 0.0f32..=1.0, penalty in 0.5f32..2.0, seed: u64,
    ) {
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..plain() }
            .with_repetition_penalty(penalty);
        let mut sampler = sampler(params);
        let left = sampler.distribution(&logits, &[0]);
        let token = sampler.sample(&logits, &[0]).unwrap();
        prop_assert!(logits[token as usize].is_finite());
        prop_assert!(left.iter().any(|&(id, p)| id == token && p > 0.0));
        let total: f64 = left.iter().map(|&(_, p)| p).sum();
        prop_assert!((total - 1.0).abs() < 1e-9);
    }
}
