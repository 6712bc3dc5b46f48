//! Rotary frequencies, and what was done to them for longer contexts.

/// Rotary position embedding, half-split convention: channel i is rotated
/// together with channel i + dim/2.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// What was done to the frequencies for longer contexts.
    pub scaling: RopeScaling,
    /// Channels of a head that are rotated (the head dimension).
    pub dim: usize,
}

/// Changes to the plain rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a
    /// smooth ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f32,
        /// The context before extension.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023): as [`Llama3`](Self::Llama3), with a ramp over channels
    /// instead of wavelengths, and sharper attention.
    Yarn(Yarn),
    /// One divisor per frequency (GGUF `rope_freqs.weight`), `dim / 2` long.
    Factors(Vec<f32>),
}

/// The numbers of YaRN, as in transformers' `rope_type: "yarn"`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Yarn {
    /// The divisor of long wavelengths.
    pub factor: f32,
    /// The context before extension.
    pub original_context: usize,
    /// Channels that turn more often than this within it are kept. Default 32.
    pub beta_fast: f32,
    /// Channels that turn less often than this within it are divided. Default 1.
    pub beta_slow: f32,
    /// Whether the ramp between the two starts and ends at whole channels. Default true.
    pub truncate: bool,
    /// What cos and sin are multiplied with: see [`RopeConfig::attention_factor`].
    pub attention_factor: f32,
}

impl Yarn {
    /// With the defaults of transformers: an attention factor of
    /// [`mscale(factor, 1)`](Self::mscale).
    pub fn new(factor: f32, original_context: usize) -> Self {
        Self {
            factor,
            original_context,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: Self::mscale(factor, 1.0),
        }
    }

    /// `0.1 · weight · ln(factor) + 1`, the paper's temperature of attention; 1 for
    /// contexts that are not extended.
    pub fn mscale(factor: f32, weight: f32) -> f32 {
        match factor > 1.0 {
            true => (0.1 * f64::from(weight) * f64::from(factor).ln() + 1.0) as f32,
            false => 1.0,
        }
    }

    /// How much of channel pair `i` is divided by the factor, 0 to 1.
    fn ramp(&self, i: usize, theta: f64, dim: usize) -> f64 {
        // The pair, as a fraction, that turns so often within the original context.
        let pair_of = |turns: f32| {
            let wavelengths =
                self.original_context as f64 / (f64::from(turns) * std::f64::consts::TAU);
            dim as f64 * wavelengths.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// A context times a factor; what is out of range is refused with a model's other numbers.
pub(super) fn stretched(context: usize, factor: f32) -> usize {
    (context as f64 * f64::from(factor)).round() as usize
}

impl RopeConfig {
    /// What cos and sin are multiplied with, 1 but for YaRN. Queries and keys both are
    /// rotated, so the same comes of a softmax scale multiplied with its square, and the
    /// rotation stays one.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        }
    }

    /// Tokens that a model holds whose file says `context`: with YaRN at least the original
    /// context times the factor, since model cards tell of the rope alone.
    pub(super) fn stretched_context(&self, context: usize) -> usize {
        match &self.scaling {
            RopeScaling::Yarn(Yarn { factor, original_context, .. }) => {
                context.max(stretched(*original_context, *factor))
            }
            _ => context,
        }
    }

    /// `head_dim^-1/2` and what YaRN multiplies queries and keys with.
    pub(super) fn attention_scale(&self, head_dim: usize) -> f32 {
        (head_dim as f32).powf(-0.5) * self.attention_factor().powi(2)
    }

    /// Radians per position of each of the `dim / 2` channel pairs, as in
    /// transformers' `modeling_rope_utils.py`.
    pub fn inv_freq(&self) -> Vec<f64> {
        let base = f64::from(self.theta);
        (0..self.dim / 2)
            .map(|i| {
                let freq = base.powf(-((2 * i) as f64) / self.dim as f64);
                self.scale(i, freq)
            })
            .collect()
    }

    /// Whether frequencies can be computed from the numbers.
    pub(super) fn is_sane(&self) -> bool {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        positive(self.theta)
            && match &self.scaling {
                RopeScaling::None => true,
                RopeScaling::Linear { factor } => positive(*factor),
                RopeScaling::Factors(factors) => factors.iter().all(|&f| positive(f)),
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                    positive(*factor)
                        && positive(*low_freq_factor)
                        && positive(*high_freq_factor)
                        && high_freq_factor > low_freq_factor
                }
                RopeScaling::Yarn(yarn) => {
                    // The ramp's ends are logarithms to this base.
                    self.theta > 1.0
                        && positive(yarn.factor)
                        && positive(yarn.beta_slow)
                        && yarn.beta_fast.is_finite()
                        && yarn.beta_fast > yarn.beta_slow
                        && positive(yarn.attention_factor)
                        && yarn.original_context > 0
                }
            }
    }

    fn scale(&self, i: usize, freq: f64) -> f64 {
        match &self.scaling {
            RopeScaling::None => freq,
            RopeScaling::Linear { factor } => freq / f64::from(*factor),
            RopeScaling::Factors(factors) => freq / f64::from(factors[i]),
            RopeScaling::Yarn(yarn) => {
                let ramp = yarn.ramp(i, f64::from(self.theta), self.dim);
                freq * (1.0 - ramp) + freq / f64::from(yarn.factor) * ramp
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                let scaled = freq / f64::from(*factor);
                let wavelength = std::f64::consts::TAU / freq;
                let turns = *original_context as f64 / wavelength;
                if turns < low {
                    scaled
                } else if turns > high {
                    freq
                } else {
                    let smooth = (turns - low) / (high - low);
                    (1.0 - smooth) * scaled + smooth * freq
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Vec<f64> {
        RopeConfig { theta: 500_000.0, scaling, dim: 64 }.inv_freq()
    }

    #[test]
    fn plain_linear_and_factors() {
        let plain = rope(RopeScaling::None);
        assert_eq!(plain.len(), 32);
        assert_eq!(plain[0], 1.0);
        assert!((plain[16] - 500_000f64.powf(-0.5)).abs() < 1e-15);
        let linear = rope(RopeScaling::Linear { factor: 4.0 });
        let factors = rope(RopeScaling::Factors((0..32).map(|i| 1.0 + i as f32).collect()));
        for i in 0..32 {
            assert_eq!(linear[i], plain[i] / 4.0);
            assert_eq!(factors[i], plain[i] / (1.0 + i as f64));
        }
    }

    #[test]
    fn llama3_keeps_short_and_divides_long_wavelengths() {
        let plain = rope(RopeScaling::None);
        let scaled = rope(RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        });
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 32.0);
        let ratios: Vec<f64> = scaled.iter().zip(&plain).map(|(s, p)| p / s).collect();
        assert!(ratios.windows(2).all(|w| w[0] <= w[1]), "the ramp rises: {ratios:?}");
        assert!(ratios.iter().any(|&r| r > 1.001 && r < 31.9), "and has a middle: {ratios:?}");
    }
}
