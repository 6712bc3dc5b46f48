//! Another context than a file says, and how rope is stretched to it.

use super::config::ModelConfig;
use super::rope::{RopeScaling, Yarn, stretched};
use crate::error::{Error, Result};
use std::str::FromStr;

/// What is done to rope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RopeStretch {
    /// Nothing, whatever the file says.
    None,
    /// All frequencies are divided by the factor (position interpolation, Chen et al. 2023).
    Linear,
    /// YaRN (Peng et al. 2023).
    Yarn,
}

impl RopeStretch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Linear, Self::Yarn];

    /// As llama.cpp calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Linear => "linear",
            Self::Yarn => "yarn",
        }
    }
}

impl FromStr for RopeStretch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|stretch| stretch.name() == name);
        let names = Self::ALL.map(Self::name).join(", ");
        known.ok_or_else(|| Error::config("rope-scaling", format!("{name} is not one of: {names}")))
    }
}

/// How long a context a model is to hold. The default is what its file says.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ContextOptions {
    /// Tokens; `None`: all that rope allows.
    pub context: Option<usize>,
    /// What is done to rope; `None`: what the file says.
    pub stretch: Option<RopeStretch>,
    /// How many times the original context the model is to hold; `None`: `context` by it.
    pub factor: Option<f32>,
    /// Tokens that the model was trained for before anything was done to its rope; `None`:
    /// what the file says.
    pub original: Option<usize>,
}

impl ContextOptions {
    /// The numbers of a model with such a context.
    ///
    /// # Errors
    /// [`Error::Config`], which names the option: for a context that is longer than the
    /// model was trained for and its rope is stretched to, for numbers out of range;
    /// [`Error::Unsupported`] for a rope that cannot be stretched so.
    pub fn apply(&self, config: &ModelConfig) -> Result<ModelConfig> {
        let mut config = config.clone();
        match self.stretch {
            None if self.factor.is_some() || self.original.is_some() => {
                let what = "it says how far, not how: give --rope-scaling yarn or linear, too";
                return Err(Error::config(option(self.factor.is_some()), what));
            }
            None => {}
            Some(stretch) => self.stretch(&mut config, stretch)?,
        }
        if let Some(context) = self.context {
            self.check(context, &config)?;
            config.context = context;
        }
        config.validate().map_err(|what| Error::config("context", what))?;
        Ok(config)
    }

    fn stretch(&self, config: &mut ModelConfig, stretch: RopeStretch) -> Result<()> {
        let old = config.rope.scaling.clone();
        let original = match (self.original, &old) {
            (Some(original), _) => original,
            (None, RopeScaling::Yarn(yarn)) => yarn.original_context,
            (None, RopeScaling::Llama3 { original_context, .. })
                if stretch == RopeStretch::None =>
            {
                *original_context
            }
            (None, _) => config.context,
        };
        let own = match &old {
            RopeScaling::Llama3 { .. } => Some("llama3"),
            RopeScaling::Factors(_) => Some("a factor for each frequency"),
            _ => None,
        };
        if let (Some(own), true) = (own, stretch != RopeStretch::None) {
            return Err(Error::Unsupported {
                what: format!("--rope-scaling {} of a rope that has {own}", stretch.name()),
                remedy: "leave it out: the model's context is stretched already".into(),
            });
        }
        let before = config.rope.attention_factor();
        config.rope.scaling = match stretch {
            RopeStretch::None => RopeScaling::None,
            RopeStretch::Linear => RopeScaling::Linear { factor: self.factor_of(original)? },
            RopeStretch::Yarn if config.sliding_rope.is_some() => {
                return Err(Error::Unsupported {
                    what: "--rope-scaling yarn of a model whose sliding layers have another rope"
                        .into(),
                    remedy: "use linear".into(),
                });
            }
            RopeStretch::Yarn => {
                let new = Yarn::new(self.factor_of(original)?, original);
                RopeScaling::Yarn(match old {
                    // How the file's ramp runs does not depend on how far it stretches.
                    RopeScaling::Yarn(Yarn { beta_fast, beta_slow, truncate, .. }) => {
                        Yarn { beta_fast, beta_slow, truncate, ..new }
                    }
                    _ => new,
                })
            }
        };
        config.attention_scale *= (config.rope.attention_factor() / before).powi(2);
        config.context = match stretch {
            RopeStretch::None => original,
            _ => stretched(original, self.factor_of(original)?),
        };
        Ok(())
    }

    /// How far to stretch.
    fn factor_of(&self, original: usize) -> Result<f32> {
        let factor = match (self.factor, self.context) {
            (Some(factor), _) => factor,
            (None, Some(context)) => (context as f32 / original as f32).max(1.0),
            (None, None) => {
                let what = "say how far: --rope-factor 4, or the --context that is wanted";
                return Err(Error::config("rope-scaling", what));
            }
        };
        match factor.is_finite() && factor >= 1.0 && original > 0 {
            true => Ok(factor),
            false => {
                let what = format!("{factor} times {original} tokens are no longer context");
                Err(Error::config("rope-factor", what))
            }
        }
    }

    fn check(&self, context: usize, config: &ModelConfig) -> Result<()> {
        let limit = config.context;
        if context == 0 {
            return Err(Error::config("context", "must be at least 1"));
        }
        if context <= limit {
            return Ok(());
        }
        let what = match (self.stretch, self.factor) {
            (Some(RopeStretch::Linear | RopeStretch::Yarn), Some(factor)) => {
                let needed = (context as f64 / limit as f64 * f64::from(factor)).ceil();
                format!(
                    "{context} is more than the {limit} tokens that --rope-factor {factor} gives; \
                     raise it to {needed}"
                )
            }
            _ => format!(
                "{context} is more than the {limit} tokens that the model was trained for; stretch \
                 its rope with --rope-scaling yarn, or lower --context"
            ),
        };
        Err(Error::config("context", what))
    }
}

fn option(factor: bool) -> &'static str {
    if factor { "rope-factor" } else { "rope-original-context" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(rope: &str) -> ModelConfig {
        let text = format!(
            r#"{{"model_type": "llama", "vocab_size": 97, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 512, "rope_scaling": {rope}}}"#
        );
        ModelConfig::from_json(&text).unwrap()
    }

    const YARN: &str = r#"{"type": "yarn", "factor": 4, "original_max_position_embeddings": 512, "beta_fast": 16}"#;
    const LLAMA3: &str = r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}"#;

    fn options(
        context: Option<usize>,
        stretch: Option<RopeStretch>,
        factor: Option<f32>,
    ) -> ContextOptions {
        ContextOptions { context, stretch, factor, original: None }
    }

    #[test]
    fn a_context_is_as_long_as_rope_allows() {
        use RopeStretch::{Linear, None as No, Yarn as Y};
        let (plain, yarn, llama3) = (model("null"), model(YARN), model(LLAMA3));
        let cases = [
            (&plain, options(None, None, None), 512, 1.0),
            (&plain, options(Some(100), None, None), 100, 1.0),
            (&plain, options(None, Some(Y), Some(4.0)), 2048, 4.0),
            (&plain, options(Some(2000), Some(Y), Some(4.0)), 2000, 4.0),
            (&plain, options(Some(1536), Some(Linear), None), 1536, 3.0),
            (&plain, options(Some(100), Some(Linear), None), 100, 1.0),
            (&yarn, options(None, None, None), 2048, 4.0),
            (&yarn, options(None, Some(No), None), 512, 1.0),
            (&yarn, options(None, Some(Y), Some(8.0)), 4096, 8.0),
            (&llama3, options(None, None, None), 512, 8.0),
            (&llama3, options(None, Some(No), None), 64, 1.0),
        ];
        for (config, options, context, factor) in cases {
            let got = options.apply(config).unwrap();
            let stretched = match &got.rope.scaling {
                RopeScaling::None => 1.0,
                RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => *factor,
                RopeScaling::Yarn(yarn) => yarn.factor,
                RopeScaling::Factors(_) => 0.0,
            };
            assert_eq!((got.context, stretched), (context, factor), "{options:?}");
            let want = 0.25 * got.rope.attention_factor().powi(2);
            assert!((got.attention_scale - want).abs() < 1e-6, "{options:?}");
        }
        let far = options(None, Some(Y), Some(8.0)).apply(&yarn).unwrap();
        let RopeScaling::Yarn(far) = far.rope.scaling else { panic!() };
        assert_eq!((far.beta_fast, far.original_context), (16.0, 512));
        let other = ContextOptions { original: Some(128), ..options(None, Some(Y), Some(2.0)) };
        assert_eq!(other.apply(&plain).unwrap().context, 256);
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_flag_that_mends_it() {
        use RopeStretch::{Linear, Yarn as Y};
        let (plain, llama3) = (model("null"), model(LLAMA3));
        let original = ContextOptions { original: Some(9), ..ContextOptions::default() };
        for (config, options, named) in [
            (&plain, options(Some(513), None, None), "--rope-scaling yarn"),
            (&plain, options(Some(3000), Some(Y), Some(4.0)), "raise it to 6"),
            (&plain, options(Some(0), None, None), "at least 1"),
            (&plain, options(None, None, Some(4.0)), "--rope-scaling"),
            (&plain, original, "rope-original-context"),
            (&plain, options(None, Some(Y), None), "--rope-factor"),
            (&plain, options(None, Some(Y), Some(0.5)), "rope-factor"),
            (&plain, options(None, Some(Y), Some(f32::NAN)), "rope-factor"),
            (&plain, options(None, Some(Linear), Some(1e30)), "context length"),
            (&llama3, options(None, Some(Y), Some(2.0)), "llama3"),
        ] {
            let error = options.apply(config).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
        assert!("dynamic".parse::<RopeStretch>().unwrap_err().to_string().contains("yarn"));
    }
}
