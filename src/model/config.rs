//! The numbers of a model, in one form for every file format, and what an architecture
//! makes of them.

use super::arch::names::Names;
use super::files::complaint;
use super::files::gguf::Gguf;
use super::files::json::Fields;
use super::files::tensor::Change;
use super::part::{Part, TensorSpec};
use super::rope::RopeConfig;
use super::spec::LayerSpec;
use crate::backend::Activation;
use crate::error::Result;
use std::fmt;
use std::path::Path;

/// Bounds far above any real model: a damaged number is refused by name
/// before anything is computed from it.
const MAX_LAYERS: usize = 4096;
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

/// An architecture.
pub struct Arch {
    /// `model_type` in `config.json`, and kvfold's name.
    pub name: &'static str,
    /// `general.architecture` in GGUF, if such files have one of its own.
    pub(super) gguf: Option<&'static str>,
    /// Reads `config.json`.
    pub(super) from_json: fn(&Fields<'_>) -> Result<ModelConfig>,
    /// Reads the metadata of a GGUF file.
    pub(super) from_gguf: fn(&Gguf) -> Result<ModelConfig>,
    /// The layers of a model.
    pub(super) layers: fn(&ModelConfig) -> Vec<LayerSpec>,
    /// What tensors are called.
    pub(super) names: &'static Names,
    /// What llama.cpp has changed of a tensor.
    pub(super) gguf_change: fn(&ModelConfig, Part) -> Change,
    /// What transformers does to a tensor before it computes with it.
    pub(super) json_change: fn(Part) -> Change,
}

impl Arch {
    /// The same with other layers.
    #[cfg(test)]
    pub(super) fn with_layers(&self, layers: fn(&ModelConfig) -> Vec<LayerSpec>) -> Self {
        Self { layers, ..*self }
    }

    /// The layers of a model.
    pub fn layers(&self, config: &ModelConfig) -> Vec<LayerSpec> {
        (self.layers)(config)
    }
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Refuses a layer count that no model has, before anything of that length is
/// made.
pub(super) fn check_layers(path: &Path, layers: usize) -> Result<usize> {
    match layers {
        1..=MAX_LAYERS => Ok(layers),
        n => Err(complaint::bad_file(
            path,
            format!("the number of layers is {n}, not 1 to {MAX_LAYERS}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
