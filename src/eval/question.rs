//! A prompt, and what its answer is compared with.

use super::grade::Grade;
use serde::Serialize;

/// One prompt with what its answer is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Question {
    /// Unique within the task.
    pub id: String,
    /// Tokens asked for; `ids` has at most as many.
    pub length: usize,
    /// Where in the text what is asked for lies, in percent, if that is one place.
    pub depth: Option<usize>,
    /// Which of the prompts of this length and depth; in a file, which line.
    pub seed: usize,
    /// What the answer is compared with.
    pub expected: Vec<String>,
    /// Tokens of the answer, at most.
    pub max_tokens: usize,
    /// The whole prompt, special tokens spelled out. It ends with the answer's beginning,
    /// so that a small model need not guess the form of the answer.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// How answers are scored.
    #[serde(skip)]
    pub grade: Grade,
}
