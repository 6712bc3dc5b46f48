//! The numbers of a model, in one form for every file format.

use super::arch::Arch;
use super::part::{Part, TensorSpec};
use super::spec::LayerSpec;
use super::{complaint, hf_config};
use crate::backend::Activation;
use crate::error::Result;
use std::path::Path;

/// Bounds far above any real model: a damaged number is refused by name
/// before anything is computed from it.
pub(super) const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 4096;
const MAX_HEAD_DIM: usize = 4096;
const MAX_WIDTH: usize = 1 << 28;
const MAX_CONTEXT: usize = 1 << 31;

/// Canonical numbers of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The architecture.
    pub arch: &'static Arch,
    /// Rows of the embedding (the tokenizer may know fewer).
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads per layer; a multiple of `kv_heads`.
    pub heads: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Channels per head; even. Not always `hidden / heads`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// f of the MLP.
    pub activation: Activation,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// That of sliding layers, where it is another.
    pub sliding_rope: Option<RopeConfig>,
    /// Factor on q·k, what YaRN multiplies cos and sin with included.
    pub attention_scale: f32,
    /// What embedded tokens are multiplied with.
    pub embedding_scale: f32,
    /// Trained context in tokens.
    pub context: usize,
    /// Window W of the layers marked in `sliding_layers`: the query at
    /// position i sees keys j with i − W < j ≤ i.
    pub sliding_window: Option<usize>,
    /// One flag per layer; all false when `sliding_window` is `None`.
    pub sliding_layers: Vec<bool>,
    /// The output layer is the embedding itself.
    pub tied: bool,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Queries and keys are normalised per head before RoPE.
    pub qk_norm: bool,
    /// What attention and MLP give is normalised before it joins the residual stream.
    pub post_norms: bool,
    /// Beginning-of-sequence token, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a generation, without repeats; may be empty.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// The numbers in the text of a `config.json` of transformers, checked.
    ///
    /// # Errors
    /// As for such a file: `Error::BadFile`, `Error::UnknownArchitecture` or
    /// `Error::Unsupported`.
    pub fn from_json(text: &str) -> Result<Self> {
        let path = Path::new("config.json");
        let bad = |what: String| complaint::bad_file(path, what);
        let json = serde_json::from_str(text).map_err(|e| bad(format!("it is not JSON: {e}")))?;
        let config = hf_config::read(path, &json, None)?;
        config.validate().map_err(bad)?;
        Ok(config)
    }

    /// Checks every number; says what is wrong.
    pub(super) fn validate(&self) -> std::result::Result<(), String> {
        let bounds = [
            ("hidden size", self.hidden, MAX_WIDTH),
            ("intermediate size", self.intermediate, MAX_WIDTH),
            ("vocabulary", self.vocab, MAX_WIDTH),
            ("number of layers", self.layers, MAX_LAYERS),
            ("number of heads", self.heads, MAX_HEADS),
            ("number of KV heads", self.kv_heads, MAX_HEADS),
            ("head dimension", self.head_dim, MAX_HEAD_DIM),
            ("context length", self.context, MAX_CONTEXT),
        ];
        for (what, value, max) in bounds {
            if value == 0 || value > max {
                return Err(format!("the {what} is {value}, not 1 to {max}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!("{heads} heads cannot be shared among {kv_heads} KV heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head dimension {} is odd", self.head_dim));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(format!("the norm epsilon is {}", self.norm_eps));
        }
        for rope in [Some(&self.rope), self.sliding_rope.as_ref()].into_iter().flatten() {
            if !rope.is_sane() {
                let RopeConfig { theta, scaling, .. } = rope;
                return Err(format!(
                    "the RoPE parameters are out of range (theta {theta}, {scaling:?})"
                ));
            }
        }
        for (what, factor) in
            [("attention scale", self.attention_scale), ("embedding scale", self.embedding_scale)]
        {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(format!("the {what} is {factor}"));
            }
        }
        match self.bos.iter().chain(&self.eos).find(|&&id| id as usize >= self.vocab) {
            Some(id) => Err(format!(
                "the special token id {id} is outside of the vocabulary of {}",
                self.vocab
            )),
            None => Ok(()),
        }
    }

    /// The layers that the architecture makes of it.
    pub fn specs(&self) -> Vec<LayerSpec> {
        self.arch.layers(self)
    }

    /// All tensors that such a model uses.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let table = vec![self.vocab, self.hidden];
        let mut all = vec![
            (Part::Embedding, None, table.clone()),
            (Part::FinalNorm, None, vec![self.hidden]),
        ];
        if !self.tied {
            all.push((Part::Head, None, table));
        }
        for (layer, spec) in self.specs().iter().enumerate() {
            let parts = spec.parts(self.hidden).into_iter();
            all.extend(parts.map(|(part, shape)| (part, Some(layer), shape)));
        }
        let spec = |(part, layer, shape)| {
            let name = self.arch.names.hf(part, layer)?;
            Some(TensorSpec { part, layer, name, shape })
        };
        all.into_iter().filter_map(spec).collect()
    }

    /// Width of all query heads together: rows of `q_proj`, columns of `o_proj`.
    pub const fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all KV heads together: rows of `k_proj` and `v_proj`.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

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
    fn is_sane(&self) -> bool {
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

    #[test]
    fn a_config_is_read_from_text_and_checked() {
        let text = |heads: usize, vocab: &str| {
            format!(
                r#"{{"model_type": "llama", "vocab_size": {vocab}, "hidden_size": 64,
                "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": {heads}, "num_key_value_heads": 2}}"#
            )
        };
        let config = ModelConfig::from_json(&text(4, "97")).unwrap();
        assert_eq!((config.head_dim, config.kv_width()), (16, 32));
        let tensors = config.tensors();
        assert_eq!(tensors.len(), 3 + 2 * 9);
        let shape = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| &t.shape[..]);
        assert_eq!(shape("lm_head.weight"), Some(&[97, 64][..]));
        assert_eq!(shape("model.layers.1.self_attn.k_proj.weight"), Some(&[32, 64][..]));
        for (bad, why) in [
            (text(3, "97"), "cannot be shared"),
            (text(4, "0"), "vocabulary is 0"),
            ("{".to_owned(), "not JSON"),
        ] {
            let error = ModelConfig::from_json(&bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
