//! A writer of very small models, for tests of the readers: one layer, two
//! heads, sixteen tokens.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub const HIDDEN: u64 = 8;
pub const VOCAB: u64 = 16;
pub const INTERMEDIATE: u64 = 12;

/// Tokens by id; the last two are control tokens.
pub const TOKENS: [&str; 16] = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "Ġ",
    "Ċ",
    "ab",
    "abc",
    "Ġa",
    "he",
    "<|im_start|>",
    "<|im_end|>",
];
pub const MERGES: [&str; 4] = ["a b", "ab c", "Ġ a", "h e"];
pub const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}";

/// Names (Hugging Face, GGUF) and row-major shapes of all tensors.
pub fn tensors() -> Vec<(&'static str, &'static str, Vec<u64>)> {
    let (h, v, m) = (HIDDEN, VOCAB, INTERMEDIATE);
    vec![
        ("model.embed_tokens.weight", "token_embd.weight", vec![v, h]),
        ("model.norm.weight", "output_norm.weight", vec![h]),
        ("lm_head.weight", "output.weight", vec![v, h]),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", vec![h]),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", vec![h]),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", vec![8, h]),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", vec![4, h]),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", vec![4, h]),
        ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", vec![h, 8]),
        ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", vec![m, h]),
        ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", vec![m, h]),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", vec![h, m]),
    ]
}

/// F32 numbers that tell every element of every tensor apart.
pub fn numbers(tensor: usize, shape: &[u64]) -> Vec<u8> {
    let count = shape.iter().product::<u64>();
    (0..count).flat_map(|i| (tensor as f32 * 1000.0 + i as f32).to_le_bytes()).collect()
}

/// A GGUF file in the making.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Gguf {
    /// A file that holds nothing.
    pub fn empty() -> Self {
        Self { version: 3, metadata: Vec::new(), tensors: Vec::new() }
    }

    /// A whole model of architecture "llama".
    pub fn model() -> Self {
        let mut file = Self::empty();
        file.str("general.architecture", "llama");
        file.str("general.name", "Tiny");
        file.u32("general.alignment", 32);
        file.u32("llama.block_count", 1);
        file.u32("llama.context_length", 64);
        file.u32("llama.embedding_length", HIDDEN as u32);
        file.u32("llama.feed_forward_length", INTERMEDIATE as u32);
        file.u32("llama.attention.head_count", 2);
        file.u32("llama.attention.head_count_kv", 1);
        file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        file.f32("llama.rope.freq_base", 10_000.0);
        file.u32("llama.rope.dimension_count", 4);
        file.str("tokenizer.ggml.model", "gpt2");
        file.str("tokenizer.ggml.pre", "smollm");
        file.strs("tokenizer.ggml.tokens", &TOKENS);
        let types: Vec<i32> = (0..16).map(|id| if id < 14 { 1 } else { 3 }).collect();
        file.i32s("tokenizer.ggml.token_type", &types);
        file.strs("tokenizer.ggml.merges", &MERGES);
        file.u32("tokenizer.ggml.bos_token_id", 14);
        file.u32("tokenizer.ggml.eos_token_id", 15);
        file.str("tokenizer.chat_template", TEMPLATE);
        for (i, (_, name, shape)) in tensors().into_iter().enumerate() {
            let bytes = numbers(i, &shape);
            file.tensors.push((name.to_owned(), shape, 0, bytes));
        }
        file
    }

    /// Sets a value: `kind` is its type's number.
    pub fn set(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.remove(key);
        self.metadata.push((key.to_owned(), [&kind.to_le_bytes(), value].concat()));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(k, _)| k != key);
    }

    pub fn str(&mut self, key: &str, value: &str) {
        self.set(key, 8, &string(value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, &value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, &value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.set(key, 7, &[value.into()]);
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, bytes: &[u8]) {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), bytes].concat();
        self.set(key, 9, &head);
    }

    pub fn strs(&mut self, key: &str, values: &[&str]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| string(v)).collect();
        self.array(key, 8, values.len(), &bytes);
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &bytes);
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &bytes);
    }

    pub fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).expect("the tensor is there")
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|d| d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        [out, data].concat()
    }
}

/// The same model as the files of a Hugging Face folder, in two shards.
pub fn hf_files() -> HashMap<&'static str, Vec<u8>> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": INTERMEDIATE, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
        "bos_token_id": 14, "eos_token_id": 15,
    });
    let vocab: HashMap<&str, usize> = TOKENS[..14].iter().copied().zip(0..).collect();
    let added = |id: usize| {
        json!({"id": id, "content": TOKENS[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(14), added(15)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers":
            [{"type": "Digits", "individual_digits": true}, bytes]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|im_start|>":
                {"id": "<|im_start|>", "ids": [14], "tokens": ["<|im_start|>"]}}},
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": MERGES},
    });
    let tokenizer_config = json!({
        "bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    });
    let shard = |part: usize| {
        let all: Vec<_> =
            tensors().into_iter().enumerate().filter(|(i, _)| i % 2 == part).collect();
        let views = all.iter().map(|(i, (name, _, shape))| {
            (*name, shape.iter().map(|&d| d as usize).collect::<Vec<_>>(), numbers(*i, shape))
        });
        let owned: Vec<_> = views.collect();
        let views = owned.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a whole tensor");
            (*name, view)
        });
        safetensors::serialize(views, None).expect("serializes")
    };
    let map: HashMap<&str, &str> = tensors()
        .iter()
        .enumerate()
        .map(|(i, t)| (t.0, ["one.safetensors", "two.safetensors"][i % 2]))
        .collect();
    let text = |json: Value| json.to_string().into_bytes();
    HashMap::from([
        ("config.json", text(config)),
        ("generation_config.json", text(json!({"eos_token_id": [15]}))),
        ("tokenizer.json", text(tokenizer)),
        ("tokenizer_config.json", text(tokenizer_config)),
        ("model.safetensors.index.json", text(json!({"weight_map": map}))),
        ("one.safetensors", shard(0)),
        ("two.safetensors", shard(1)),
    ])
}

/// Writes a folder's files.
pub fn write_folder(folder: &Path, files: &HashMap<&'static str, Vec<u8>>) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("the temporary folder can be written");
    }
}
