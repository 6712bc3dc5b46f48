//! Questions about long documents, from a file of the user's.
//!
//! One JSON object a line, or a list of them:
//!
//! ```text
//! {"context": "the text itself", "question": "Who came?", "answers": ["Anna", "Anna B."]}
//! {"document": "path/of/a/text.txt", "question": "…", "answers": ["…"], "kind": "summary"}
//! ```
//!
//! A path is relative to the file. `kind` says what is asked and how it is scored
//! ([`Kind`]); a classification also lists its `classes`. LongBench's own files can be
//! used as they are: `input`, `all_classes` and `dataset` are understood; LongBench v2's too
//! (`choice_A` to `choice_D`, and the letter as `answer`).
//!
//! A document that is too long loses its middle, as in LongBench; answers are greedy and
//! as long at most as LongBench lets them be, and half of the context.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::{char_ends, largest};
use super::longbench::Kind;
use super::options::at_least;
use super::qa_file::read;
use super::question::Question;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Tokenizer};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use super::qa_file::Item;

/// Which questions to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QaSpec {
    /// The file with the questions.
    pub file: PathBuf,
    /// Tokens of a prompt, at most; `None`: what the model's context holds.
    #[serde(default)]
    pub length: Option<usize>,
    /// Questions from the beginning of the file; `None`: all.
    #[serde(default)]
    pub limit: Option<usize>,
}

impl QaSpec {
    /// All questions of `file`, in prompts of the whole context.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), length: None, limit: None }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        at_least("limit", self.limit.unwrap_or(1), 1)?;
        at_least("length", self.length.unwrap_or(1), 1)
    }

    /// Reads the questions and their documents.
    ///
    /// # Errors
    /// [`Error::Document`] naming the file and the line.
    pub fn read(&self) -> Result<Vec<Item>> {
        read(&self.file, self.limit.unwrap_or(usize::MAX))
    }

    /// Makes the prompts, in the file's order.
    ///
    /// # Errors
    /// [`Error::Config`] if the length exceeds the context or has no room for a question;
    /// [`Error::ChatTemplate`], [`Error::Tokenizer`].
    pub fn questions(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
        items: &[Item],
    ) -> Result<Questions> {
        let prompter = Prompter { tokenizer, template };
        let list: Result<Vec<Question>> =
            items.iter().map(|item| self.question(prompter, context, item)).collect();
        Ok(Questions::new("qa", list?))
    }

    fn question(&self, prompter: Prompter<'_>, context: usize, item: &Item) -> Result<Question> {
        let Form { max_tokens, instruction, question, answer } = Form::of(item);
        let max_tokens = item.set.map_or(max_tokens, |set| set.max_tokens).min(context / 2).max(1);
        let most = context.saturating_sub(max_tokens);
        let limit = self.length.unwrap_or(most);
        if limit > most {
            let what = format!(
                "{limit} tokens and an answer of {max_tokens} exceed the model's context of \
                 {context}; ask for at most {most}"
            );
            return Err(Error::config("length", what));
        }
        let ends: Vec<usize> = char_ends(&item.text).collect();
        let build = |characters: usize| {
            let text = without_middle(&item.text, &ends, characters);
            let parts = [instruction.as_str(), &text, &question];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            prompter.build(&parts.join("\n\n"), answer)
        };
        let whole = build(ends.len())?;
        let (text, ids) = match whole.1.len() <= limit {
            true => whole,
            false => {
                let least = build(0)?.1.len();
                if least > limit {
                    let what = format!(
                        "{limit} is too short for the question of {}, which takes {least}",
                        item.place
                    );
                    return Err(Error::config("length", what));
                }
                // No token is longer than this, so the search need not see the whole text.
                let end = ends.len().min(limit.saturating_mul(LONGEST_TOKEN));
                build(largest(end, |n| Ok(build(n)?.1.len() <= limit))?)?
            }
        };
        Ok(Question {
            id: item.number.to_string(),
            length: ids.len(),
            depth: None,
            seed: item.number,
            expected: item.answers.clone(),
            max_tokens,
            text,
            ids,
            grade: Grade::LongBench {
                kind: item.kind,
                classes: item.classes.clone(),
                first_line: item.set.is_some_and(|set| set.first_line),
            },
        })
    }
}

/// Characters of a token, at most, where documents are text and not one letter repeated.
const LONGEST_TOKEN: usize = 32;

/// The first and the last half of `characters` characters.
fn without_middle(text: &str, ends: &[usize], characters: usize) -> String {
    if characters >= ends.len() {
        return text.to_owned();
    }
    let at = |n: usize| n.checked_sub(1).map_or(0, |last| ends[last]);
    let tail = characters / 2;
    text[..at(characters - tail)].to_owned() + &text[at(ends.len() - tail)..]
}

/// How a question is put.
struct Form {
    instruction: String,
    question: String,
    answer: &'static str,
    max_tokens: usize,
}

impl Form {
    fn of(item: &Item) -> Self {
        let asked = item.question.trim();
        let or =
            |otherwise: &str| if asked.is_empty() { otherwise.into() } else { asked.to_owned() };
        let form = |instruction: &str, question: String, answer, max_tokens| Self {
            instruction: instruction.into(),
            question,
            answer,
            max_tokens,
        };
        match item.kind {
            Kind::Qa => form(
                "Read the text and answer the question at its end briefly.",
                format!("Answer with a few words of the text only. Question: {asked}"),
                "Answer:",
                64,
            ),
            Kind::QaZh => form(
                "阅读以下文字，并简短回答最后的问题。",
                format!("只用文中的几个词回答。问题：{asked}"),
                "回答：",
                64,
            ),
            Kind::Summary => {
                form("Read the text.", or("Write a summary of the text."), "Summary:", 512)
            }
            Kind::SummaryZh => form("阅读以下文字。", or("请写一段总结。"), "总结：", 512),
            Kind::Classification => form(
                "Read the text and name the class that is asked for at its end.",
                format!("{asked}\nAnswer with the name of the class only."),
                "The class is",
                64,
            ),
            Kind::Retrieval => form(
                "Read the numbered paragraphs.",
                or("Which paragraph is it?") + "\nAnswer with the number of the paragraph only.",
                "The number of the paragraph is",
                32,
            ),
            Kind::Count => form(
                "Read the paragraphs.",
                or("How many different paragraphs are there?") + "\nAnswer with the number only.",
                "The number is",
                32,
            ),
            Kind::Choice => form(
                "Read the text and answer the question at its end.",
                format!("{asked}\nAnswer with the letter of the right choice only."),
                "The correct answer is (",
                16,
            ),
            Kind::Code => {
                form("Complete the code.", or("Write the next line of code only."), "", 64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle() {
        let text = "abcdéfgh";
        let ends: Vec<usize> = char_ends(text).collect();
        let cut = |n| without_middle(text, &ends, n);
        assert_eq!((cut(0), cut(1), cut(3)), ("".into(), "a".into(), "abh".into()));
        assert_eq!((cut(6), cut(8), cut(9)), ("abcfgh".into(), text.into(), text.into()));
    }
}
