//! What a GGUF file of the Llama family means: configuration, tensor names,
//! and the row order of Q and K.
//!
//! llama.cpp rotates neighbouring channels (2i, 2i + 1) for the architecture
//! "llama" and therefore stores the rows of its Q and K projections permuted
//! per head. [`GgufModel::tensor`] permutes whole rows back, so that above
//! this file channel i is rotated with channel i + dim/2, as in transformers.
//! Files of Qwen are not permuted.

use std::borrow::Cow;
use std::path::Path;

use super::chat::ChatTemplate;
use super::config::{Family, ModelConfig, RopeConfig, RopeScaling, Yarn};
use super::gguf::Gguf;
use super::tokenizer::Tokenizer;
use super::weights::{RawTensor, Stored};
use super::{checkpoint, complaint, tokenizer_gguf};
use crate::Result;
use crate::codec::WeightType;

/// Tokens that end a turn under the names that models use; llama.cpp stops at
/// them too, whatever `eos_token_id` says.
const END_TOKENS: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];

/// A GGUF file of a known architecture.
#[derive(Debug)]
pub(crate) struct GgufModel {
    gguf: Gguf,
    pub(crate) config: ModelConfig,
}

impl GgufModel {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = read_config(&gguf)?;
        Ok(Self { gguf, config })
    }

    pub(crate) fn path(&self) -> &Path {
        self.gguf.path()
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.gguf.file_bytes()
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.gguf.str("general.name").ok().flatten().map(str::to_owned)
    }

    /// Type, shape and bytes, in the file's row order, by Hugging Face name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Stored<'_>>> {
        match gguf_name(name) {
            Some(file_name) => self.gguf.tensor(&file_name),
            None => Ok(None),
        }
    }

    /// A tensor in the model's row order. Its shape has been checked.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some((dtype, shape, bytes)) = self.find(name)? else { return Ok(None) };
        let bytes = match self.permuted_heads(name) {
            Some(heads) => Cow::Owned(unpermute(bytes, heads, self.config.head_dim)),
            None => Cow::Borrowed(bytes),
        };
        Ok(Some(RawTensor { dtype, shape: shape.to_vec(), bytes }))
    }

    /// Heads of a tensor whose rows llama.cpp has permuted.
    fn permuted_heads(&self, name: &str) -> Option<usize> {
        let permuted = matches!(self.config.family, Family::Llama | Family::Mistral);
        match name.rsplit('.').nth(1)? {
            "q_proj" if permuted => Some(self.config.heads),
            "k_proj" if permuted => Some(self.config.kv_heads),
            _ => None,
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer_gguf::read(&self.gguf, &self.config)
    }

    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(template) = self.gguf.str("tokenizer.chat_template")? else { return Ok(None) };
        let tokens = self.gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let text =
            |id: Option<u64>| id.and_then(|id| tokens.get(usize::try_from(id).ok()?)).copied();
        let bos = text(self.gguf.uint("tokenizer.ggml.bos_token_id")?);
        let eos = text(self.gguf.uint("tokenizer.ggml.eos_token_id")?);
        ChatTemplate::new(template, bos, eos).map(Some)
    }
}

/// The file's name of a tensor.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, end) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{end}"))
}

/// Puts rows back in order: within a head, row 2i + j of the file is row
/// j · dim/2 + i of the model. Rows are moved whole, whatever their type.
fn unpermute(bytes: &[u8], heads: usize, head_dim: usize) -> Vec<u8> {
    let row = bytes.len() / (heads * head_dim);
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * head_dim) {
        for j in 0..2 {
            for i in 0..head_dim / 2 {
                let from = (2 * i + j) * row;
                ordered.extend_from_slice(&head[from..from + row]);
            }
        }
    }
    ordered
}

fn read_config(gguf: &Gguf) -> Result<ModelConfig> {
    let arch = gguf
        .str("general.architecture")?
        .ok_or_else(|| gguf.bad("general.architecture is missing"))?;
    let mut family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        name => {
            let supported = "llama (also Mistral), qwen2, qwen3";
            return Err(complaint::unknown_architecture(gguf.path(), name, supported));
        }
    };
    let key = |field: &str| format!("{arch}.{field}");
    let uint = |field: &str| size(gguf, &key(field));
    let required =
        |field: &str| uint(field)?.ok_or_else(|| gguf.bad(format!("{} is missing", key(field))));
    if size(gguf, "split.count")?.is_some_and(|n| n > 1) {
        let what = "a GGUF file split into several (join them with llama.cpp's llama-gguf-split)";
        return Err(complaint::unsupported(gguf.path(), what));
    }
    if uint("expert_count")?.is_some_and(|n| n > 0) {
        return Err(complaint::unsupported(gguf.path(), "a mixture of experts"));
    }

    let hidden = required("embedding_length")?;
    let layers = checkpoint::check_layers(gguf.path(), required("block_count")?)?;
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
    if sliding_window.is_some() && family == Family::Llama {
        family = Family::Mistral;
    }
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

    Ok(ModelConfig {
        family,
        vocab,
        hidden,
        layers,
        heads,
        kv_heads: uint("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: required("feed_forward_length")?,
        norm_eps: norm_eps as f32,
        rope: RopeConfig {
            theta: gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0) as f32,
            scaling: read_scaling(gguf, arch, head_dim)?,
            dim: head_dim,
        },
        context: required("context_length")?,
        sliding_window,
        sliding_layers: vec![sliding_window.is_some(); layers],
        tied: !has("output.weight"),
        qkv_bias: family == Family::Qwen2 || has("blk.0.attn_q.bias"),
        qk_norm: family == Family::Qwen3,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_return_to_their_heads() {
        // transformers' permute, as llama.cpp's converter writes it.
        let (heads, dim, row) = (3, 8, 2);
        let original: Vec<u8> = (0..(heads * dim * row) as u8).collect();
        let mut permuted = vec![0; original.len()];
        for h in 0..heads {
            for j in 0..2 {
                for i in 0..dim / 2 {
                    let from = (h * dim + j * dim / 2 + i) * row;
                    let to = (h * dim + 2 * i + j) * row;
                    permuted[to..to + row].copy_from_slice(&original[from..from + row]);
                }
            }
        }
        assert_ne!(permuted, original);
        assert_eq!(unpermute(&permuted, heads, dim), original);
    }

    #[test]
    fn names() {
        let name = |n| gguf_name(n).unwrap_or_default();
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(name("model.layers.0.input_layernorm.weight"), "blk.0.attn_norm.weight");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(gguf_name("model.layers.0.self_attn.rotary.weight"), None);
    }
}
