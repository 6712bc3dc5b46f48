//! The tokenizer inside a GGUF file, written as a `tokenizer.json`.
//!
//! `tokenizer.ggml.model` says which kind: "gpt2" is byte-level byte-pair
//! encoding, whose splitting expressions are known by `tokenizer.ggml.pre`;
//! "llama" is SentencePiece, whose merges follow from the scores, as
//! transformers' converter of Llama tokenizers derives them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::complaint::unsupported;
use super::gguf::Gguf;
use super::tokenizer::{Known, Tokenizer};
use crate::Result;
use crate::model::config::ModelConfig;

/// `tokenizer.ggml.token_type`: an ordinary token.
const NORMAL: i32 = 1;
/// Stands for what has no token.
const UNKNOWN: i32 = 2;
/// Never made from ordinary text.
pub(crate) const CONTROL: i32 = 3;
/// Matched as text, but ordinary.
const USER_DEFINED: i32 = 4;

/// Longer tokens are never the product of a merge in SentencePiece models.
const MAX_MERGED: usize = 512;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the tokenizer of a GGUF file.
pub(crate) fn read(gguf: &Gguf, config: &ModelConfig) -> Result<Tokenizer> {
    let kind = gguf
        .str("tokenizer.ggml.model")?
        .ok_or_else(|| gguf.bad("the file has no tokenizer (tokenizer.ggml.model is missing)"))?;
    let vocab = Vocab::read(gguf, config)?;
    let parts = match kind {
        "gpt2" => byte_level(gguf, &vocab)?,
        "llama" => sentence_piece(gguf, &vocab)?,
        other => return Err(unsupported(gguf.path(), format!("the tokenizer \"{other}\""))),
    };
    let adds = |what: &str, default: bool| -> Result<bool> {
        Ok(gguf.bool(&format!("tokenizer.ggml.add_{what}_token"))?.unwrap_or(default))
    };
    let (adds_bos, adds_eos) = (adds("bos", parts.adds_bos)?, adds("eos", false)?);
    let prefix = config.bos.filter(|_| adds_bos).into_iter().collect();
    let suffix = config.eos.first().copied().filter(|_| adds_eos).into_iter().collect();
    let known = Known {
        vocab: Some(config.vocab),
        bos: config.bos,
        eos: config.eos.clone(),
        affixes: Some((prefix, suffix)),
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": vocab.added(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "decoder": parts.decoder,
        "model": parts.model,
    });
    Tokenizer::build(gguf.path(), json, known)
}

/// The parts of a `tokenizer.json` that depend on the kind of tokenizer.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Where the file does not say.
    adds_bos: bool,
}

/// Tokens and their types; the index is the id.
struct Vocab<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

impl<'a> Vocab<'a> {
    fn read(gguf: &'a Gguf, config: &ModelConfig) -> Result<Self> {
        let tokens = gguf
            .strings("tokenizer.ggml.tokens")?
            .ok_or_else(|| gguf.bad("tokenizer.ggml.tokens is missing"))?;
        if tokens.len() > config.vocab {
            return Err(gguf.bad(format!(
                "tokenizer.ggml.tokens has {} entries for a vocabulary of {}",
                tokens.len(),
                config.vocab
            )));
        }
        let types = gguf.ints("tokenizer.ggml.token_type")?;
        let types = types.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(gguf.bad("tokenizer.ggml.token_type does not fit tokenizer.ggml.tokens"));
        }
        Ok(Self { tokens, types })
    }

    /// Ids by text; of equal texts the first counts.
    fn map(&self) -> Map<String, Value> {
        let mut map = Map::with_capacity(self.tokens.len());
        for (id, &token) in self.tokens.iter().enumerate() {
            map.entry(token).or_insert_with(|| id.into());
        }
        map
    }

    fn added(&self) -> Vec<Value> {
        let mut seen = std::collections::HashSet::new();
        let tokens = self.tokens.iter().zip(&self.types).enumerate();
        tokens
            .filter(|(_, (token, kind))| {
                [UNKNOWN, CONTROL, USER_DEFINED].contains(kind)
                    && !token.is_empty()
                    && seen.insert(**token)
            })
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "special": *kind != USER_DEFINED,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect()
    }
}

fn byte_level(gguf: &Gguf, vocab: &Vocab<'_>) -> Result<Parts> {
    // llama.cpp, too, takes a missing name for "default".
    let pre = gguf.str("tokenizer.ggml.pre")?.unwrap_or("default");
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = || json!({"type": "Digits", "individual_digits": true});
    let (splits, nfc, ignore_merges, adds_bos) = match pre {
        "gpt-2" => (vec![split(GPT2)], false, false, false),
        "smollm" | "starcoder" | "refact" | "codeshell" => {
            (vec![digits(), split(GPT2)], false, false, false)
        }
        "llama3" | "llama-v3" | "llama-bpe" => (vec![split(LLAMA3)], false, true, true),
        "smaug-bpe" => (vec![split(LLAMA3)], false, false, false),
        "qwen2" | "deepseek-r1-qwen" => (vec![split(QWEN2)], true, false, false),
        "tekken" => (vec![split(TEKKEN)], false, true, true),
        "default" => {
            let splits = [
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                r"[0-9][0-9][0-9]",
            ];
            (splits.map(split).to_vec(), false, false, false)
        }
        other => {
            let what = format!("the pre-tokenizer \"{other}\" (tokenizer.ggml.pre)");
            return Err(unsupported(gguf.path(), what));
        }
    };
    let merges = gguf
        .strings("tokenizer.ggml.merges")?
        .ok_or_else(|| gguf.bad("tokenizer.ggml.merges is missing"))?;
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let steps = [splits, vec![bytes.clone()]].concat();
    Ok(Parts {
        normalizer: if nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        decoder: bytes,
        model: json!({
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": vocab.map(),
            "merges": merges,
        }),
        adds_bos,
    })
}

fn sentence_piece(gguf: &Gguf, vocab: &Vocab<'_>) -> Result<Parts> {
    let scores = gguf
        .floats("tokenizer.ggml.scores")?
        .ok_or_else(|| gguf.bad("tokenizer.ggml.scores is missing"))?;
    if scores.len() != vocab.tokens.len() {
        return Err(gguf.bad("tokenizer.ggml.scores does not fit tokenizer.ggml.tokens"));
    }
    let unknown = gguf.uint("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    let unknown = usize::try_from(unknown).ok().and_then(|id| vocab.tokens.get(id));
    let add_space = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    if add_space {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let mut decoders = vec![json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if add_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": true,
            "byte_fallback": true,
            "vocab": vocab.map(),
            "merges": merges_from_scores(vocab, &scores),
        }),
        adds_bos: true,
    })
}

/// All ways to make a token from two others, best score first; among equals
/// by the ids of the token and of its parts. Only ordinary tokens are made.
fn merges_from_scores(vocab: &Vocab<'_>, scores: &[f32]) -> Vec<Value> {
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(vocab.tokens.len());
    for (id, &token) in vocab.tokens.iter().enumerate() {
        ids.entry(token).or_insert(id);
    }
    let mut merges = Vec::new();
    for (id, &token) in vocab.tokens.iter().enumerate() {
        if ![NORMAL, USER_DEFINED].contains(&vocab.types[id]) || token.len() > MAX_MERGED {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], id, l, r));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|(_, _, l, r)| json!([vocab.tokens[l], vocab.tokens[r]])).collect()
}
