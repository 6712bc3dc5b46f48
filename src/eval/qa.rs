//! Questions about long documents, from a file of the user's.
//!
//! One JSON object a line:
//!
//! ```text
//! {"context": "the text itself", "question": "Who came?", "answers": ["Anna", "Anna B."]}
//! {"document": "path/of/a/text.txt", "question": "…", "answers": ["…"], "kind": "summary"}
//! ```
//!
//! A path is relative to the file. `kind` says what is asked and how it is scored
//! ([`Kind`]); a classification also lists its `classes`. LongBench's own files can be
//! used as they are: `input`, `all_classes` and `dataset` are understood.
//!
//! A document that is too long loses its middle, as in LongBench; answers are greedy and
//! as long at most as LongBench lets them be.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::{char_ends, largest};
use super::longbench::{Kind, paragraph};
use super::options::at_least;
use super::question::Question;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Tokenizer};
use crate::rag::{Document, read_document};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    context: Option<String>,
    document: Option<PathBuf>,
    #[serde(alias = "input", default)]
    question: String,
    answers: Vec<String>,
    kind: Option<Kind>,
    #[serde(alias = "all_classes")]
    classes: Option<Vec<String>>,
    dataset: Option<String>,
    #[serde(rename = "language")]
    _language: Option<serde::de::IgnoredAny>,
    #[serde(rename = "length")]
    _length: Option<serde::de::IgnoredAny>,
    #[serde(rename = "_id")]
    _id: Option<serde::de::IgnoredAny>,
}

/// One question with its document.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its line in the file, from 1.
    line: usize,
    text: String,
    question: String,
    answers: Vec<String>,
    kind: Kind,
    classes: Vec<String>,
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
        let file = read_document(&self.file)?;
        let lines = file.text().lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .take(self.limit.unwrap_or(usize::MAX))
            .map(|(index, line)| {
                item(&self.file, index + 1, line).map_err(|what| Error::Document {
                    path: format!("{}:{}", file.source(), index + 1).into(),
                    what,
                    remedy: "mend the line or take it out".into(),
                })
            })
            .collect()
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
                        "{limit} is too short for the question of line {}, which takes {least}",
                        item.line
                    );
                    return Err(Error::config("length", what));
                }
                // No token is longer than this, so the search need not see the whole text.
                let end = ends.len().min(limit.saturating_mul(LONGEST_TOKEN));
                build(largest(end, |n| Ok(build(n)?.1.len() <= limit))?)?
            }
        };
        Ok(Question {
            id: item.line.to_string(),
            length: ids.len(),
            depth: None,
            seed: item.line,
            expected: item.answers.clone(),
            max_tokens,
            text,
            ids,
            grade: Grade::LongBench { kind: item.kind, classes: item.classes.clone() },
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

/// Reads a line; the error says what is wrong with it.
fn item(file: &Path, number: usize, line: &str) -> std::result::Result<Item, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        let what = text.split(" at line 1 ").next().unwrap_or(&text);
        format!("is no question: {what}, column {}", error.column())
    })?;
    let kind = match (line.kind, &line.dataset) {
        (Some(kind), _) => kind,
        (None, Some(name)) => Kind::of_dataset(name)
            .ok_or_else(|| format!("data set \"{name}\" is not known; name a \"kind\""))?,
        (None, None) => Kind::default(),
    };
    let text = match (line.context, line.document) {
        (Some(text), None) => Document::new("context", text).text().to_owned(),
        (None, Some(path)) => {
            let path = file.parent().unwrap_or(Path::new("")).join(path);
            read_document(&path).map_err(|error| error.to_string())?.text().to_owned()
        }
        _ => return Err("needs either \"context\" or \"document\"".into()),
    };
    let classes = line.classes.unwrap_or_default();
    if line.answers.is_empty() {
        return Err("\"answers\" is empty".into());
    }
    let needs_question = matches!(kind, Kind::Qa | Kind::QaZh | Kind::Classification);
    if needs_question && line.question.trim().is_empty() {
        return Err("\"question\" is missing".into());
    }
    if kind == Kind::Classification && !line.answers.iter().any(|a| classes.contains(a)) {
        return Err("no answer is among its \"classes\"".into());
    }
    if matches!(kind, Kind::Retrieval | Kind::Count)
        && line.answers.iter().any(|answer| paragraph(answer).is_empty())
    {
        return Err("an answer holds no number".into());
    }
    Ok(Item { line: number, text, question: line.question, answers: line.answers, kind, classes })
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

    #[test]
    fn lines_are_checked() {
        let read = |line: &str| item(Path::new("x/q.jsonl"), 1, line);
        let good = r#"{"context": "a", "question": "b?", "answers": ["c"]}"#;
        assert_eq!(read(good).unwrap().kind, Kind::Qa);
        let theirs = r#"{"input": "", "context": "a", "answers": ["c"], "length": 3,
            "dataset": "lcc", "language": "python", "all_classes": null, "_id": "1"}"#;
        assert_eq!(read(theirs).unwrap().kind, Kind::Code);
        for (line, part) in [
            ("{", "column 1"),
            (r#"{"context": "a", "question": "b"}"#, "answers"),
            (r#"{"context": "a", "question": "b", "answers": []}"#, "\"answers\" is empty"),
            (r#"{"context": "a", "answers": ["c"]}"#, "\"question\" is missing"),
            (r#"{"question": "b", "answers": ["c"]}"#, "either \"context\" or \"document\""),
            (r#"{"document": "none.txt", "question": "b", "answers": ["c"]}"#, "none.txt"),
            (r#"{"context": "a", "question": "b", "answers": ["c"], "kind": "qna"}"#, "qna"),
            (r#"{"context": "a", "question": "b", "answers": ["c"], "topic": 1}"#, "topic"),
            (r#"{"context": "a", "question": "b", "answers": ["c"], "dataset": "z"}"#, "\"z\""),
            (
                r#"{"context": "a", "question": "b", "answers": ["c"], "kind": "classification"}"#,
                "classes",
            ),
            (r#"{"context": "a", "answers": ["c"], "kind": "count"}"#, "no number"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }
}
