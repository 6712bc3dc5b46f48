//! What the decoders of this family tree have in common: a token embedding, layers of
//! attention and a gated MLP between RMS norms, an output layer.

use super::Change;
use crate::backend::LayerIndex;
use crate::model::Part;
use crate::model::config::ModelConfig;
use crate::model::spec::{AttentionSpec, GatedSpec, LayerSpec, Mixer, Mlp};

/// What tensors are called, in Hugging Face's and in llama.cpp's files: part, name, name.
/// Those of layers follow the layer's prefix.
pub(in crate::model) struct Names(pub &'static [(Part, &'static str, &'static str)]);

const HF_LAYER: &str = "model.layers.";
const GGUF_LAYER: &str = "blk.";

impl Names {
    /// Hugging Face's name of a tensor; none if the architecture has no such part.
    pub fn hf(&self, part: Part, layer: Option<usize>) -> Option<String> {
        let (_, name, _) = self.0.iter().find(|(of, ..)| *of == part)?;
        Some(match layer {
            Some(layer) => format!("{HF_LAYER}{layer}.{name}"),
            None => (*name).to_owned(),
        })
    }

    /// The part that Hugging Face's name stands for.
    pub fn part(&self, name: &str) -> Option<Part> {
        self.to_gguf(name).map(|(part, _)| part)
    }

    /// The part that Hugging Face's name stands for, and llama.cpp's name of it.
    pub fn to_gguf(&self, name: &str) -> Option<(Part, String)> {
        let found = |name: &str, of_layers: bool| {
            let known =
                self.0.iter().find(|(part, hf, _)| part.of_layers() == of_layers && *hf == name);
            known.map(|(part, _, gguf)| (*part, *gguf))
        };
        match name.strip_prefix(HF_LAYER) {
            None => found(name, false).map(|(part, gguf)| (part, gguf.to_owned())),
            Some(rest) => {
                let (layer, rest) = rest.split_once('.')?;
                let (part, gguf) = found(rest, true)?;
                Some((part, format!("{GGUF_LAYER}{layer}.{gguf}")))
            }
        }
    }
}

/// The names of Llama and its closest relatives.
pub(super) static NAMES: Names = Names(&[
    (Part::Embedding, "model.embed_tokens.weight", "token_embd.weight"),
    (Part::FinalNorm, "model.norm.weight", "output_norm.weight"),
    (Part::Head, "lm_head.weight", "output.weight"),
    (Part::AttentionNorm, "input_layernorm.weight", "attn_norm.weight"),
    (Part::Query, "self_attn.q_proj.weight", "attn_q.weight"),
    (Part::Key, "self_attn.k_proj.weight", "attn_k.weight"),
    (Part::Value, "self_attn.v_proj.weight", "attn_v.weight"),
    (Part::QueryBias, "self_attn.q_proj.bias", "attn_q.bias"),
    (Part::KeyBias, "self_attn.k_proj.bias", "attn_k.bias"),
    (Part::ValueBias, "self_attn.v_proj.bias", "attn_v.bias"),
    (Part::QueryNorm, "self_attn.q_norm.weight", "attn_q_norm.weight"),
    (Part::KeyNorm, "self_attn.k_norm.weight", "attn_k_norm.weight"),
    (Part::Output, "self_attn.o_proj.weight", "attn_output.weight"),
    (Part::MlpNorm, "post_attention_layernorm.weight", "ffn_norm.weight"),
    (Part::Gate, "mlp.gate_proj.weight", "ffn_gate.weight"),
    (Part::Up, "mlp.up_proj.weight", "ffn_up.weight"),
    (Part::Down, "mlp.down_proj.weight", "ffn_down.weight"),
]);

/// Layers of which some may slide. Full and sliding layers form KV groups of their own
/// where a model has both.
pub(super) fn layers(config: &ModelConfig) -> Vec<LayerSpec> {
    let sliding = &config.sliding_layers;
    let mixed = sliding.iter().any(|slides| *slides != sliding[0]);
    let mut sizes = [0, 0];
    let layer = |slides: &bool| {
        let group = usize::from(mixed && *slides);
        sizes[group] += 1;
        let kv = LayerIndex { group, layer: sizes[group] - 1 };
        let sliding_rope = config.sliding_rope.as_ref().filter(|_| *slides);
        let attention = AttentionSpec {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            own_kv: true,
            bias: config.qkv_bias,
            head_norm: config.qk_norm,
            post_norm: config.post_norms,
            window: config.sliding_window.filter(|_| *slides),
            scale: config.attention_scale,
            rope: sliding_rope.unwrap_or(&config.rope).clone(),
        };
        let mlp = GatedSpec {
            width: config.intermediate,
            activation: config.activation,
            post_norm: config.post_norms,
        };
        LayerSpec { mixer: Mixer::Attention(attention), mlp: Mlp::Gated(mlp), kv }
    };
    sliding.iter().map(layer).collect()
}

/// Files that hold tensors as the model has them.
pub(super) fn unchanged(_: &ModelConfig, _: Part) -> Change {
    Change::None
}

/// Folders of Hugging Face that do.
pub(super) fn plain(_: Part) -> Change {
    Change::None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |n| NAMES.to_gguf(n).map_or_else(String::new, |(_, name)| name);
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(name("model.layers.0.input_layernorm.weight"), "blk.0.attn_norm.weight");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(NAMES.to_gguf("model.layers.0.self_attn.rotary.weight"), None);
        assert_eq!(NAMES.to_gguf("model.layers.0.lm_head.weight"), None);
        let hf = NAMES.hf(Part::Query, Some(3));
        assert_eq!(hf.as_deref(), Some("model.layers.3.self_attn.q_proj.weight"));
    }
}
