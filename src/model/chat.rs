//! Chat templates (contract; bodies follow).
use crate::Result;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    /// The text.
    pub content: String,
}

/// A Jinja chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of those tokens.
    pub fn new(_template: &str, _bos: Option<&str>, _eos: Option<&str>) -> Result<Self> {
        Ok(Self {})
    }
    /// The conversation as the model expects it.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        Ok(String::new())
    }
}
