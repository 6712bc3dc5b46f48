//! Drawing a token: what is asked for, and the one arithmetic of all devices.
//!
//! The steps run in the order of Hugging Face `transformers`: repetition penalty,
//! temperature, top-k, top-p, min-p, draw. A token's weight
//! `exp((logit − max) / temperature)` is an integer, in units of 2⁻⁴⁰ of the most
//! probable token's, computed by operations that round alike everywhere. So a sum of
//! weights does not depend on the order in which a device adds them, and
//! [`Draw::token`] and `kernels/dense/sample.cu` give the same token for the same
//! logits. Tokens are drawn in the order of their ids.

use crate::error::{Error, Result};

/// How one token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens remain; 0 keeps all.
    pub top_k: usize,
    /// Only the fewest, most probable tokens remain whose probabilities add up to at
    /// least `top_p`, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as probable as the most probable one remain,
    /// in [0, 1].
    pub min_p: f32,
    /// The random number: uniform, of 2³².
    pub uniform: u32,
}

/// How a row's next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What lowers logits first.
    pub penalty: Penalty,
    /// How the token is drawn.
    pub draw: Draw,
    /// Where it goes ([`Tokens`](super::Tokens)).
    pub slot: u32,
}

impl Choice {
    /// The most probable token, to a slot.
    pub const fn greedy(slot: u32) -> Self {
        Self { penalty: Penalty::NONE, draw: Draw::GREEDY, slot }
    }
}

/// What lowers the logits of a row before a token is drawn: the repetition penalty of
/// CTRL (Keskar et al. 2019).
#[derive(Clone, Debug, PartialEq)]
pub struct Penalty {
    /// Positive logits are divided by it, others multiplied; finite and above 0. 1 does
    /// nothing.
    pub factor: f32,
    /// Tokens, each once. The row's own input token is penalised besides, once.
    pub tokens: Vec<u32>,
}

impl Penalty {
    /// None.
    pub const NONE: Self = Self { factor: 1.0, tokens: Vec::new() };

    /// Lowers the logits of the row whose input token is `last`, as
    /// `kernels/dense/penalise.cu` does. Tokens outside the vocabulary are passed over.
    pub fn apply(&self, logits: &mut [f32], last: u32) {
        let last = Some(last).filter(|last| !self.tokens.contains(last));
        for token in self.tokens.iter().copied().chain(last) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = penalised(*logit, self.factor);
            }
        }
    }
}

/// A logit under a repetition penalty. It never becomes infinite by it.
pub fn penalised(logit: f32, factor: f32) -> f32 {
    if factor == 1.0 {
        return logit;
    }
    let lowered = if logit > 0.0 { logit / factor } else { logit * factor };
    // Not `min`, which would make a number of NaN.
    if lowered > f32::MAX { f32::MAX } else { lowered }
}

/// A [`Draw`] in the numbers that it is computed with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FixedDraw {
    /// `log2(e) / temperature`; 0: the largest logit.
    pub scale: f32,
    /// 0: all.
    pub top_k: u32,
    /// Of 2^32; 0: all.
    pub top_p: u32,
    /// Of [`FULL_WEIGHT`].
    pub min_weight: u64,
}

/// Bits of a weight.
const WEIGHT_BITS: i32 = 40;
/// The weight of the most probable token.
pub const FULL_WEIGHT: u64 = 1 << WEIGHT_BITS;
/// Tokens of a vocabulary at most: then no sum of weights overflows.
pub const MAX_VOCAB: usize = 1 << 22;

impl Draw {
    /// The most probable token.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0 };

    /// In fixed point.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub(crate) fn fixed(&self) -> Result<FixedDraw> {
        let Self { temperature, top_k, top_p, min_p, .. } = *self;
        let check = |field, value: f32, good: bool| match good {
            true => Ok(()),
            false => Err(Error::config(field, format!("{value} is out of range"))),
        };
        check("temperature", temperature, temperature.is_finite() && temperature >= 0.0)?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0)?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p))?;
        let scale = (std::f64::consts::LOG2_E / f64::from(temperature)).min(f64::from(f32::MAX));
        let of_one = (f64::from(top_p) * 2f64.powi(32)).round() as u64;
        Ok(FixedDraw {
            scale: if temperature == 0.0 { 0.0 } else { scale as f32 },
            top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
            // A share of nothing would be taken for all, which 2^32 is.
            top_p: u32::try_from(of_one.max(1)).unwrap_or(0),
            min_weight: (f64::from(min_p) * FULL_WEIGHT as f64).ceil() as u64,
        })
    }

    /// The token, as `kernels/dense/sample.cu` draws it. NaN is never drawn; none if no
    /// logit is above −∞.
    ///
    /// # Errors
    /// [`Error::Config`] for a field that is out of range, and for more than
    /// [`MAX_VOCAB`] logits.
    pub fn token(&self, logits: &[f32]) -> Result<Option<u32>> {
        let kept = self.kept(logits)?;
        let total: u64 = kept.iter().map(|k| k.1).sum();
        let target = ((u128::from(total) * u128::from(self.uniform)) >> 32) as u64;
        let mut sum = 0;
        let drawn = kept.into_iter().find(|(_, weight)| {
            sum += weight;
            sum > target
        });
        Ok(drawn.map(|(id, _)| id))
    }

    /// The tokens that may be drawn, by id, with their weights.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn kept(&self, logits: &[f32]) -> Result<Vec<(u32, u64)>> {
        let FixedDraw { scale, top_k, top_p, min_weight } = self.fixed()?;
        if logits.len() > MAX_VOCAB {
            let what = format!("{} logits; at most {MAX_VOCAB} can be drawn from", logits.len());
            return Err(Error::config("vocab", what));
        }
        let Some(best) = argmax(logits) else { return Ok(Vec::new()) };
        if scale == 0.0 {
            return Ok(vec![(best, FULL_WEIGHT)]);
        }
        let top = logits[best as usize];
        let ids = 0..logits.len() as u32;
        // What weighs nothing comes last in every order and is never drawn.
        let weighed = ids.map(|i| (i, weight(logits[i as usize], top, scale)));
        let mut kept: Vec<_> = weighed.filter(|(_, weight)| *weight > 0).collect();
        // Best first; equal ones by id.
        let order = |&(id, _): &(u32, u64)| (rank(logits[id as usize]), id);
        if (1..kept.len()).contains(&(top_k as usize)) {
            kept.select_nth_unstable_by_key(top_k as usize - 1, order);
            kept.truncate(top_k as usize);
        }
        if top_p > 0 {
            kept.sort_unstable_by_key(order);
            let total: u64 = kept.iter().map(|k| k.1).sum();
            let enough = (u128::from(total) * u128::from(top_p)).div_ceil(1 << 32) as u64;
            let mut held = 0;
            let mut before_crossing = |&(_, weight): &(u32, u64)| {
                let crossed = held >= enough;
                held += weight;
                !crossed
            };
            let fewest = kept.iter().take_while(|k| before_crossing(k)).count();
            kept.truncate(fewest);
        }
        kept.retain(|k| k.1 >= min_weight);
        kept.sort_unstable();
        Ok(kept)
    }
}

/// The token with the largest logit, the lowest of equal ones. NaN never wins; none
/// if no logit is above −∞.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<usize> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |b| logits[b]) {
            best = Some(id);
        }
    }
    best.map(|id| id as u32)
}

/// Orders logits, the larger the lower: `rank_of` of kernels/dense/weight.cuh.
fn rank(logit: f32) -> u32 {
    if logit.is_nan() {
        return u32::MAX;
    }
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7fff_ffff }
}

/// 2^f on [−½, ½]: `exp2_near_0`.
fn exp2_near_0(f: f32) -> f32 {
    // Of kernels/dense/weight.cuh, as bits.
    const C: [u32; 7] =
        [0x3920_fdde, 0x3aaf_9f2a, 0x3c1d_96a6, 0x3d63_5774, 0x3e75_fdee, 0x3f31_7218, 0x3f80_0000];
    C[1..].iter().fold(f32::from_bits(C[0]), |y, &c| y * f + f32::from_bits(c))
}

/// `weight_of`: 2^((logit − top) · scale) · 2^40, to the nearest integer.
fn weight(logit: f32, top: f32, scale: f32) -> u64 {
    if logit == top {
        return FULL_WEIGHT;
    }
    let x = (logit - top) * scale;
    if x.is_nan() || x <= -42.0 {
        return 0;
    }
    let whole = x.round_ties_even();
    let bits = exp2_near_0(x - whole).to_bits();
    let mantissa = u64::from(bits & 0x7f_ffff | 0x80_0000);
    let shift = (bits >> 23) as i32 - 127 - 23 + whole as i32 + WEIGHT_BITS;
    match shift {
        0.. => mantissa << shift,
        -25..0 => (mantissa + (1 << (-shift - 1))) >> -shift,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials() {
        for scale in [0.1f32, std::f32::consts::LOG2_E, 20.0] {
            for i in 0..20_000 {
                let logit = 7.0 - i as f32 * 0.001_7;
                let got = weight(logit, 7.0, scale) as f64;
                let x = (f64::from(logit) - 7.0) * f64::from(scale);
                let want = x.exp2() * FULL_WEIGHT as f64;
                // Two roundings of the exponent, the polynomial's 2 ulp, one to an integer.
                let slack = want * (x.abs() * 2f64.powi(-23) + 2f64.powi(-22)) + 0.5;
                assert!((got - want).abs() <= slack, "{x}: {got}, not {want}");
            }
        }
        assert_eq!(weight(f32::INFINITY, f32::INFINITY, 1.0), FULL_WEIGHT);
        assert_eq!(weight(3.0, f32::INFINITY, 1.0), 0);
        assert_eq!(weight(f32::NEG_INFINITY, f32::MIN, f32::MAX), 0);
        assert_eq!(weight(f32::NAN, 0.0, 1.0), 0);
    }

    #[test]
    fn ranks_order_all_floats() {
        let all = [
            f32::INFINITY,
            f32::MAX,
            1.0,
            f32::MIN_POSITIVE,
            1e-45,
            0.0,
            -1e-45,
            -1.0,
            f32::MIN,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        assert!(all.windows(2).all(|w| rank(w[0]) < rank(w[1])));
        assert_eq!(rank(-0.0), rank(0.0));
        assert_eq!(rank(-f32::NAN), rank(f32::NAN));
    }

    #[test]
    fn each_filter_keeps_the_crossing_token_and_the_lowest_of_equal_ones() {
        let logits: Vec<f32> = [0.1f64, 0.4, 0.1, 0.3, 0.1].map(|p| p.ln() as f32).to_vec();
        let all = Draw { temperature: 1.0, ..Draw::GREEDY };
        let ids = |draw: Draw| -> Vec<u32> {
            draw.kept(&logits).unwrap().into_iter().map(|k| k.0).collect()
        };
        assert_eq!(ids(all), [0, 1, 2, 3, 4]);
        assert_eq!(ids(Draw::GREEDY), [1]);
        assert_eq!(ids(Draw { top_k: 3, ..all }), [0, 1, 3]);
        assert_eq!(ids(Draw { top_p: 0.39, ..all }), [1]);
        assert_eq!(ids(Draw { top_p: 0.69, ..all }), [1, 3]);
        assert_eq!(ids(Draw { top_p: 0.75, ..all }), [0, 1, 3]);
        // Of what top-k left: 0.7 of 0.8 is 0.56.
        assert_eq!(ids(Draw { top_k: 3, top_p: 0.7, ..all }), [1, 3]);
        assert_eq!(ids(Draw { min_p: 0.5, ..all }), [1, 3]);
        assert_eq!(ids(Draw { top_p: f32::from_bits(1), min_p: 1.0, ..all }), [1]);
    }

    #[test]
    fn draws_share_out_the_range_of_random_numbers() {
        let logits: Vec<f32> = [0.25f64, 0.5, 0.25].map(|p| p.ln() as f32).to_vec();
        let at = |uniform| {
            let draw = Draw { temperature: 1.0, uniform, ..Draw::GREEDY };
            draw.token(&logits).unwrap().unwrap()
        };
        let quarter = 1 << 30;
        assert_eq!([0, quarter - 9, quarter + 9].map(at), [0, 0, 1]);
        assert_eq!([3 * quarter - 9, 3 * quarter + 9, u32::MAX].map(at), [1, 2, 2]);
    }

    #[test]
    fn nothing_to_draw_and_parameters_out_of_range() {
        let all = Draw { temperature: 1.0, ..Draw::GREEDY };
        for logits in [vec![], vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 2]] {
            assert_eq!(all.token(&logits).unwrap(), None);
            assert_eq!(Draw::GREEDY.token(&logits).unwrap(), None);
        }
        assert_eq!(all.token(&[f32::NAN, -5.0, f32::NEG_INFINITY]).unwrap(), Some(1));
        for (field, draw) in [
            ("temperature", Draw { temperature: f32::NAN, ..all }),
            ("temperature", Draw { temperature: -1.0, ..all }),
            ("top_p", Draw { top_p: 0.0, ..all }),
            ("min_p", Draw { min_p: 1.5, ..all }),
        ] {
            let error = draw.token(&[1.0]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }
}
