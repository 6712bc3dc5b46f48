//! The metadata of a GGUF file: a model's numbers.

use super::gguf::Gguf;
use super::{complaint, tokenizer_gguf};
use crate::Result;
use crate::backend::Activation;
use crate::codec::WeightType;
use crate::model::config::{Arch, ModelConfig, check_layers};
use crate::model::rope::{RopeConfig, RopeScaling, Yarn};

/// Tokens that end a turn under the names that models use; llama.cpp stops at
/// them too, whatever `eos_token_id` says.
const END_TOKENS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
    "<end_of_turn>",
];

/// The numbers of a decoder of the common kind, whose file calls it `name`.
pub(in crate::model) fn decoder(
    gguf: &Gguf,
    arch: &'static Arch,
    name: &str,
) -> Result<ModelConfig> {
    let key = |field: &str| format!("{name}.{field}");
    let uint = |field: &str| size(gguf, &key(field));
    let required =
        |field: &str| uint(field)?.ok_or_else(|| gguf.bad(format!("{} is missing", key(field))));
    if uint("expert_count")?.is_some_and(|n| n > 0) {
        return Err(complaint::unsupported(gguf.path(), "a mixture of experts"));
    }

    let hidden = required("embedding_length")?;
    let layers = check_layers(gguf.path(), required("block_count")?)?;
    let heads = required("attention.head_count")?;
    let head_dim = match uint("attention.key_length")? {
        Some(dim) => dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if uint("attention.value_length")?.is_some_and(|dim| dim != head_dim) {
        return Err(complaint::unsupported(
            gguf.path(),
            "a value length that differs from the key length",
        ));
    }
    let rope_dim = uint("rope.dimension_count")?.unwrap_or(head_dim);
    if rope_dim != head_dim {
        return Err(complaint::unsupported(
            gguf.path(),
            "a partial rotary embedding (rope.dimension_count)",
        ));
    }
    let sliding_window = uint("attention.sliding_window")?.filter(|&w| w > 0);
    let vocab = match gguf.tensor("token_embd.weight")? {
        Some((_, &[rows, _], _)) => rows,
        _ => return Err(gguf.bad("tensor \"token_embd.weight\" is missing or not a matrix")),
    };
    let norm_eps = gguf.float(&key("attention.layer_norm_rms_epsilon"))?.ok_or_else(|| {
        gguf.bad(format!("{} is missing", key("attention.layer_norm_rms_epsilon")))
    })?;
    let has = |name: &str| gguf.tensor_names().any(|n| n == name);
    if has("blk.0.attn_output.bias") || has("blk.0.ffn_up.bias") {
        return Err(complaint::unsupported(gguf.path(), "a bias on the output or MLP projections"));
    }

    let rope = RopeConfig {
        theta: gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0) as f32,
        scaling: read_scaling(gguf, name, head_dim)?,
        dim: head_dim,
    };

    Ok(ModelConfig {
        arch,
        vocab,
        hidden,
        layers,
        heads,
        kv_heads: uint("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: required("feed_forward_length")?,
        norm_eps: norm_eps as f32,
        activation: Activation::Silu,
        attention_scale: rope.attention_scale(head_dim),
        context: rope.stretched_context(required("context_length")?),
        rope,
        sliding_rope: None,
        embedding_scale: 1.0,
        sliding_window,
        sliding_layers: vec![sliding_window.is_some(); layers],
        tied: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        qk_norm: false,
        post_norms: false,
        bos: token(gguf, "tokenizer.ggml.bos_token_id")?,
        eos: read_eos(gguf)?,
    })
}

fn read_scaling(gguf: &Gguf, arch: &str, head_dim: usize) -> Result<RopeScaling> {
    let key = |field: &str| format!("{arch}.rope.{field}");
    if let Some((dtype, shape, bytes)) = gguf.tensor("rope_freqs.weight")? {
        if dtype != WeightType::F32 || shape != [head_dim / 2] {
            return Err(gguf.bad(format!(
                "tensor \"rope_freqs.weight\" is {dtype} {shape:?}, not F32 [{}]",
                head_dim / 2
            )));
        }
        let factors = bytes.as_chunks::<4>().0.iter().map(|&w| f32::from_le_bytes(w)).collect();
        return Ok(RopeScaling::Factors(factors));
    }
    // Files of 2023 have the factor alone.
    let old = gguf.float(&key("scale_linear"))?;
    let factor = gguf.float(&key("scaling.factor"))?.or(old);
    match gguf.str(&key("scaling.type"))? {
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") => Ok(match factor {
            Some(factor) if factor != 0.0 && factor != 1.0 => {
                RopeScaling::Linear { factor: factor as f32 }
            }
            _ => RopeScaling::None,
        }),
        Some("yarn") => {
            let factor = factor.unwrap_or(1.0) as f32;
            read_yarn(gguf, arch, factor).map(RopeScaling::Yarn)
        }
        Some(other) => {
            Err(complaint::unsupported(gguf.path(), format!("the RoPE scaling \"{other}\"")))
        }
    }
}

/// As llama.cpp: its attention factor multiplies what the paper says.
fn read_yarn(gguf: &Gguf, arch: &str, factor: f32) -> Result<Yarn> {
    let key = |field: &str| format!("{arch}.rope.scaling.{field}");
    let float = |field: &str| Ok::<_, crate::Error>(gguf.float(&key(field))?.map(|x| x as f32));
    if float("yarn_log_multiplier")?.is_some_and(|x| x != 0.0) {
        let what = "a RoPE scaling \"yarn\" with a multiplier of its logarithm";
        return Err(complaint::unsupported(gguf.path(), what));
    }
    let original = match size(gguf, &key("original_context_length"))? {
        Some(original) => original,
        None => size(gguf, &format!("{arch}.context_length"))?.unwrap_or(0),
    };
    let defaults = Yarn::new(factor, original);
    let times = float("yarn_attn_factor")?.or(float("attn_factor")?).unwrap_or(1.0);
    Ok(Yarn {
        beta_fast: float("yarn_beta_fast")?.unwrap_or(defaults.beta_fast),
        beta_slow: float("yarn_beta_slow")?.unwrap_or(defaults.beta_slow),
        attention_factor: times * defaults.attention_factor,
        ..defaults
    })
}

fn read_eos(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(token(gguf, &format!("tokenizer.ggml.{key}"))?);
    }
    if let Some(types) = gguf.ints("tokenizer.ggml.token_type")? {
        let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        for (id, (text, &kind)) in tokens.iter().zip(&types).enumerate() {
            if kind == tokenizer_gguf::CONTROL && END_TOKENS.contains(text) {
                ids.push(id as u32);
            }
        }
    }
    let mut eos = Vec::new();
    for id in ids {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    Ok(eos)
}

fn token(gguf: &Gguf, key: &str) -> Result<Option<u32>> {
    match gguf.uint(key)? {
        None => Ok(None),
        Some(id) => match u32::try_from(id) {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(gguf.bad(format!("{key} is {id}, which is no token id"))),
        },
    }
}

fn size(gguf: &Gguf, key: &str) -> Result<Option<usize>> {
    match gguf.uint(key)? {
        None => Ok(None),
        Some(n) => match usize::try_from(n) {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(gguf.bad(format!("{key} is {n}"))),
        },
    }
}
