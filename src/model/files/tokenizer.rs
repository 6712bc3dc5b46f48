//! Text to token ids and back.
//!
//! The arithmetic of byte-pair encoding is the `tokenizers` crate's. What is
//! kvfold's own: bytes of every token, so that a stream can be decoded byte by
//! byte, and control over which text may become a control token. A document
//! that contains `<|im_end|>` must not end the user's turn, so untrusted text
//! goes through [`Tokenizer::encode_plain`], or through [`Tokenizer::guard`]
//! when it is to be rendered into a chat template first.

use std::path::Path;

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, Model, Normalizer, NormalizerWrapper, OffsetType, PreTokenizedString,
    PreTokenizer,
};

use super::complaint::{bad_file, one_line};
use super::json::read_json;
use super::tokenizer_json;
use crate::model::config::ModelConfig;
use crate::{Error, Result};

/// Marks the inside of a control token's text as ordinary. A Unicode
/// noncharacter: it is never part of text that is meant to be exchanged.
const GUARD: char = '\u{FDD0}';

/// A tokenizer with its special tokens. `Send + Sync`.
pub struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    /// The tokens that are matched before byte-pair encoding, without the special ones.
    ordinary: AddedVocabulary,
    /// Bytes of token i: `bytes[starts[i]..starts[i + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    special: Vec<u32>,
    unknown: Option<u32>,
    /// Texts of special tokens, which are matched before byte-pair encoding.
    added: Vec<String>,
    /// First bytes of `added`.
    added_starts: [bool; 256],
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    strips_leading_space: bool,
    bos: Option<u32>,
    eos: Vec<u32>,
}

/// What the model says about its tokenizer.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Ids that the embedding has rows for; `None` if not known.
    pub(crate) vocab: Option<usize>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Vec<u32>,
    /// Tokens before and after a text; `None` for those of the file.
    pub(crate) affixes: Option<(Vec<u32>, Vec<u32>)>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` alone: `bos` is then what it puts before a
    /// text, and no token is known to end a generation.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::Unsupported`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut tokenizer = Self::build(path, read_json(path)?, Known::default())?;
        tokenizer.bos = tokenizer.prefix.first().copied();
        Ok(tokenizer)
    }

    /// Reads the `tokenizer.json` of a model.
    pub(crate) fn read(path: &Path, config: &ModelConfig) -> Result<Self> {
        let known = Known {
            vocab: Some(config.vocab),
            bos: config.bos,
            eos: config.eos.clone(),
            affixes: None,
        };
        Self::build(path, read_json(path)?, known)
    }

    /// Builds from the content of a `tokenizer.json`; `path` is for messages.
    pub(crate) fn build(path: &Path, mut json: Value, known: Known) -> Result<Self> {
        let facts = tokenizer_json::prepare(path, &mut json)?;
        let bpe: tokenizers::Tokenizer = serde_json::from_value(json)
            .map_err(|e| bad_file(path, format!("the tokenizer: {e}")))?;
        for token in &facts.added {
            if bpe.token_to_id(&token.text) != Some(token.id) {
                return Err(bad_file(
                    path,
                    format!("added token \"{}\" does not have its id {}", token.text, token.id),
                ));
            }
        }
        let limit = known.vocab.unwrap_or(facts.ids).min(facts.ids);
        let (bytes, starts) = facts.spelling.table(&bpe, &facts.added, limit);
        let mut special: Vec<u32> =
            facts.added.iter().filter(|t| t.special).map(|t| t.id).collect();
        special.sort_unstable();
        let mut added_starts = [false; 256];
        for token in facts.added.iter().filter(|token| token.special) {
            added_starts[usize::from(token.text.as_bytes()[0])] = true;
        }
        let (prefix, suffix) = known.affixes.unwrap_or(facts.affixes);
        if let Some(id) = prefix.iter().chain(&suffix).find(|&&id| id as usize >= limit) {
            let what = format!("the tokenizer adds token {id}, the vocabulary has {limit}");
            return Err(bad_file(path, what));
        }
        let mut ordinary = bpe.get_added_vocabulary().clone();
        ordinary.set_encode_special_tokens(true);
        Ok(Self {
            bpe,
            ordinary,
            bytes,
            starts,
            special,
            unknown: facts.unknown,
            added: facts.added.into_iter().filter(|t| t.special).map(|t| t.text).collect(),
            added_starts,
            prefix,
            suffix,
            strips_leading_space: facts.strips_leading_space,
            bos: known.bos,
            eos: known.eos,
        })
    }

    /// As transformers' `tokenizer(text, add_special_tokens=…)`: texts of
    /// special tokens become those tokens. Only for text that is trusted.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a token is beyond the model's vocabulary.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = self.ids(self.split_added(text), false)?;
        if !add_special {
            return Ok(ids);
        }
        Ok([self.prefix.as_slice(), &ids, &self.suffix].concat())
    }

    /// A rendered chat: texts of special tokens become those tokens, except
    /// where [`Tokenizer::guard`] has marked them. Nothing is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.ids(self.split_added(rendered), rendered.contains(GUARD))
    }

    /// Untrusted text: nothing in it becomes a special token, nothing is added. Tokens that
    /// are no part of the byte-pair encoding but ordinary all the same, such as Gemma's runs
    /// of line breaks, are found in it as in any text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let none: Option<&NormalizerWrapper> = None;
        self.ids(self.ordinary.extract_and_normalize(none, text), false)
    }

    /// Untrusted text as a prompt of its own: [`encode_plain`](Self::encode_plain) behind
    /// what the tokenizer puts before a text, such as a beginning-of-sequence token. What it
    /// puts behind one is left out, because the text is to be continued.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok([self.prefix.as_slice(), &self.encode_plain(text)?].concat())
    }

    /// Marks the texts of special tokens in untrusted `text`, so that
    /// [`Tokenizer::encode_chat`] takes them for ordinary text after it has
    /// been rendered into a template. The marks (U+FDD0) vanish there.
    pub fn guard(&self, text: &str) -> String {
        let mut guarded = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            guarded.push(c);
            let rest = &text[at..];
            if self.added_starts[usize::from(rest.as_bytes()[0])]
                && self.added.iter().any(|token| rest.starts_with(token.as_str()))
            {
                guarded.push(GUARD);
            }
        }
        guarded
    }

    /// The text of `ids`: special tokens left out, invalid UTF-8 replaced.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        let text = match self.strips_leading_space {
            true => bytes.strip_prefix(b" ").unwrap_or(&bytes),
            false => &bytes,
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// The bytes that a token stands for; none for special and unknown ids.
    /// A token may hold part of a character.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.token_bytes_with_special(id) }
    }

    /// The bytes that a token stands for, special tokens as their text.
    pub fn token_bytes_with_special(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start..end],
            _ => &[],
        }
    }

    /// Whether a decoded text begins with a space that is not part of it
    /// (SentencePiece); [`Tokenizer::decode`] removes it, a stream must too.
    pub fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    /// The id of a token by its exact spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.bpe.token_to_id(token)
    }

    /// Number of ids that the tokenizer can produce for this model.
    pub fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// All special (control) tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special
    }

    /// Whether `id` is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Cuts out the texts of added tokens.
    fn split_added(&self, text: &str) -> PreTokenizedString {
        let none: Option<&NormalizerWrapper> = None;
        self.bpe.get_added_vocabulary().extract_and_normalize(none, text)
    }

    /// Encodes what has no token yet.
    fn ids(&self, mut text: PreTokenizedString, guarded: bool) -> Result<Vec<u32>> {
        let encoding = (|| {
            text.normalize(|piece| {
                if guarded {
                    piece.filter(|c| c != GUARD);
                }
                self.bpe.get_normalizer().map_or(Ok(()), |n| n.normalize(piece))
            })?;
            if let Some(pre) = self.bpe.get_pre_tokenizer() {
                pre.pre_tokenize(&mut text)?;
            }
            text.tokenize(|piece| self.ordinary_tokens(piece.get()))?;
            text.into_encoding(None, 0, OffsetType::None)
        })();
        let encoding = encoding.map_err(|e| Error::Tokenizer(one_line(&e.to_string())))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size()) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(Error::Tokenizer(format!(
                "token id {id} is outside of the model's vocabulary of {}",
                self.vocab_size()
            ))),
        }
    }

    /// Byte-pair encoding of a piece of text that is not a special token. Some
    /// vocabularies can spell a special token by merges: then it is taken
    /// apart again into its characters.
    fn ordinary_tokens(&self, piece: &str) -> tokenizers::Result<Vec<tokenizers::Token>> {
        let model = self.bpe.get_model();
        let tokens = model.tokenize(piece)?;
        let forbidden = |id: u32| self.is_special(id) && Some(id) != self.unknown;
        if !tokens.iter().any(|t| forbidden(t.id)) {
            return Ok(tokens);
        }
        let mut ordinary = Vec::new();
        for token in tokens {
            if !forbidden(token.id) {
                ordinary.push(token);
                continue;
            }
            for c in token.value.chars() {
                let parts = model.tokenize(c.encode_utf8(&mut [0; 4]))?;
                ordinary.extend(parts.into_iter().filter(|t| !forbidden(t.id)));
            }
        }
        Ok(ordinary)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("special", &self.special)
            .field("prefix", &self.prefix)
            .field("suffix", &self.suffix)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}
