//! Text to token ids and back (contract; bodies follow).
use std::path::Path;

use crate::{Error, Result};

/// A tokenizer with its special tokens. `Send + Sync`.
#[derive(Debug)]
pub struct Tokenizer {
    eos: Vec<u32>,
    special: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(_path: impl AsRef<Path>) -> Result<Self> {
        Err(Error::Tokenizer("contract only".into()))
    }
    /// As transformers' `tokenizer(text, add_special_tokens=...)`: texts of
    /// special tokens become those tokens. For text that the user trusts.
    pub fn encode(&self, _text: &str, _add_special: bool) -> Result<Vec<u32>> {
        Err(Error::Tokenizer("contract only".into()))
    }
    /// A rendered chat: special-token texts are parsed, except where
    /// [`Tokenizer::guard`] has marked them; nothing is added.
    pub fn encode_chat(&self, rendered: &str) -> Result<Vec<u32>> {
        self.encode(rendered, false)
    }
    /// Untrusted text: no text ever becomes a special token; nothing is added.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, false)
    }
    /// Marks special-token texts inside untrusted `text` so that, once rendered
    /// into a chat template, [`Tokenizer::encode_chat`] reads them as ordinary
    /// text and drops the marks.
    pub fn guard(&self, text: &str) -> String {
        text.into()
    }
    /// The text of `ids`, special tokens left out, invalid UTF-8 replaced.
    pub fn decode(&self, _ids: &[u32]) -> String {
        String::new()
    }
    /// The bytes that a token stands for: nothing for special tokens.
    pub fn token_bytes(&self, _id: u32) -> &[u8] {
        &[]
    }
    /// The bytes that a token stands for, special tokens as their text.
    pub fn token_bytes_with_special(&self, _id: u32) -> &[u8] {
        &[]
    }
    /// Whether the first token of a text carries a space that is not in it.
    pub fn strips_leading_space(&self) -> bool {
        false
    }
    /// The id of a token by its exact text.
    pub fn token_id(&self, _token: &str) -> Option<u32> {
        None
    }
    /// Number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        0
    }
    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        None
    }
    /// Tokens that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }
    /// All special (control) tokens, ascending.
    pub fn special_ids(&self) -> &[u32] {
        &self.special
    }
}
