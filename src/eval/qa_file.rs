//! Reading a file of questions: one JSON object a line, or a list of them.

use super::longbench::{Kind, paragraph};
use super::longbench_sets::{DataSet, data_set};
use crate::error::{Error, Result};
use crate::rag::{Document, read_document};
use serde_json::{Deserializer, Map, Value};
use std::path::Path;

/// One question with its document.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its line in the file or its place in the list, from 1.
    pub(super) number: usize,
    /// The same in words.
    pub(super) place: String,
    pub(super) text: String,
    pub(super) question: String,
    pub(super) answers: Vec<String>,
    pub(super) kind: Kind,
    pub(super) classes: Vec<String>,
    /// Of the data set that it says it is from.
    pub(super) set: Option<DataSet>,
}

/// The first `limit` questions of a file, and their documents.
///
/// # Errors
/// [`Error::Document`] naming the file, the line and what is wrong there.
pub(super) fn read(file: &Path, limit: usize) -> Result<Vec<Item>> {
    let document = read_document(file)?;
    let text = document.text();
    let wrong = |line: usize, what: String| Error::Document {
        path: format!("{}:{line}", document.source()).into(),
        what,
        remedy: "mend it or take it out".into(),
    };
    if text.trim_start().starts_with('[') {
        let items = List::new(text).take(limit).map(|found| {
            let (line, number, value) = found.map_err(|(line, what)| wrong(line, what))?;
            let place = format!("question {number}");
            item(file, number, place.clone(), value)
                .map_err(|what| wrong(line, format!("{place} of the list {what}")))
        });
        return items.collect();
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let items = lines.take(limit).map(|(index, line)| {
        let number = index + 1;
        serde_json::from_str(line)
            .map_err(|error| match error.is_eof() {
                true => "ends within a question; write it on one line, or all as a list".into(),
                false => format!("is no question: {}", json_error(&error)),
            })
            .and_then(|value| item(file, number, format!("line {number}"), value))
            .map_err(|what| wrong(number, what))
    });
    items.collect()
}

/// What serde_json says, without its line.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what}, column {}", error.column())
}

/// The values of a JSON list, one after the other, so that a fault has its line and what
/// lies behind the last question is not read.
struct List<'t> {
    text: &'t str,
    at: usize,
    taken: usize,
    ended: bool,
}

/// Line, place in the list and value, or line and fault.
type Listed = std::result::Result<(usize, usize, Value), (usize, String)>;

impl<'t> List<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, at: 0, taken: 0, ended: false }
    }

    /// What comes next but white space.
    fn rest(&mut self) -> &'t str {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    fn line(&self) -> usize {
        1 + self.text[..self.at].matches('\n').count()
    }

    fn missing(&self, what: &str) -> Listed {
        let found = self.text[self.at..].chars().next();
        let found = found.map_or("the end".to_owned(), |c| format!("{c:?}"));
        Err((self.line(), format!("is no list of questions: {what}, not {found}")))
    }

    /// The value that comes next, or `None` at the end of the list.
    fn value(&mut self) -> Option<Listed> {
        let rest = self.rest();
        if self.taken > 0 && rest.starts_with(']') {
            self.at += 1;
            let ended = self.rest().is_empty();
            return (!ended).then(|| self.missing("it should end here"));
        }
        if !rest.starts_with(if self.taken == 0 { '[' } else { ',' }) {
            return Some(self.missing("a comma should follow"));
        }
        self.at += 1;
        let rest = self.rest();
        let line = self.line();
        let mut values = Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next().filter(|_| !rest.starts_with(']'));
        let Some(value) = value else { return Some(self.missing("a question should follow")) };
        self.at += values.byte_offset();
        self.taken += 1;
        Some(value.map(|value| (line, self.taken, value)).map_err(|error| {
            let what = format!("question {} is none: {}", self.taken, json_error(&error));
            (line + error.line().saturating_sub(1), what)
        }))
    }
}

impl Iterator for List<'_> {
    type Item = Listed;

    /// Nothing comes after a fault.
    fn next(&mut self) -> Option<Listed> {
        let next = if self.ended { None } else { self.value() };
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Fields that say nothing about the question.
const IGNORED: [&str; 7] =
    ["_id", "id", "language", "length", "domain", "sub_domain", "difficulty"];

/// Reads a question; the error says what is wrong with it.
fn item(
    file: &Path,
    number: usize,
    place: String,
    value: Value,
) -> std::result::Result<Item, String> {
    let Value::Object(fields) = value else {
        return Err(format!("is no question but {}", kind_of_value(&value)));
    };
    let mut fields = Fields(fields);
    let dataset = fields.text(&["dataset"])?;
    let kind = fields.0.remove("kind").filter(|kind| !kind.is_null());
    let choices = fields.choices()?;
    let (context, document) = (fields.text(&["context"])?, fields.text(&["document"])?);
    let mut question = fields.text(&["question", "input"])?.unwrap_or_default();
    let answers = fields.texts(&["answers", "answer"])?;
    let classes = fields.texts(&["classes", "all_classes"])?.unwrap_or_default();
    if let Some(name) = fields.0.keys().find(|name| !IGNORED.contains(&name.as_str())) {
        return Err(format!("has a field that is not known, \"{name}\""));
    }
    let answers = answers.ok_or("lacks \"answers\"")?;
    let set = dataset.as_deref().and_then(data_set);
    let kind = match (kind, set, dataset) {
        (Some(kind), ..) => serde_json::from_value(kind)
            .map_err(|error| format!("has a wrong \"kind\": {error}"))?,
        (None, Some(set), _) => set.kind,
        _ if !choices.is_empty() => Kind::Choice,
        (None, None, Some(name)) => {
            return Err(format!("data set \"{name}\" is not known; name a \"kind\""));
        }
        (None, None, None) => Kind::default(),
    };
    let text = match (context, document) {
        (Some(text), None) => Document::new("context", text).text().to_owned(),
        (None, Some(path)) => {
            let path = file.parent().unwrap_or(Path::new("")).join(path);
            read_document(&path).map_err(|error| error.to_string())?.text().to_owned()
        }
        _ => return Err("needs either \"context\" or \"document\"".into()),
    };
    check(kind, &question, &answers, &classes, &choices)?;
    for (letter, choice) in ('A'..).zip(&choices) {
        question += &format!("\n({letter}) {choice}");
    }
    Ok(Item { number, place, text, question, answers, kind, classes, set })
}

/// Whether a question of this kind can be asked and scored.
fn check(
    kind: Kind,
    question: &str,
    answers: &[String],
    classes: &[String],
    choices: &[String],
) -> std::result::Result<(), String> {
    if answers.iter().all(|answer| answer.trim().is_empty()) {
        return Err("\"answers\" is empty".into());
    }
    let asks = matches!(kind, Kind::Qa | Kind::QaZh | Kind::Classification | Kind::Choice);
    if asks && question.trim().is_empty() {
        return Err("\"question\" is missing".into());
    }
    if kind == Kind::Classification && !answers.iter().any(|a| classes.contains(a)) {
        return Err("no answer is among its \"classes\"".into());
    }
    let letters = || ('A'..='Z').take(choices.len()).map(String::from);
    if kind == Kind::Choice && !answers.iter().all(|a| letters().any(|letter| letter == *a)) {
        let what = "\"answer\" is not the letter of one of its \"choice_A\", \"choice_B\", …";
        return Err(what.into());
    }
    if matches!(kind, Kind::Retrieval | Kind::Count)
        && answers.iter().any(|answer| paragraph(answer).is_empty())
    {
        return Err("an answer holds no number".into());
    }
    Ok(())
}

/// The fields of a question that nobody has taken yet; null is like none.
struct Fields(Map<String, Value>);

impl Fields {
    /// The one of `names` that is there.
    fn take(
        &mut self,
        names: &[&'static str],
    ) -> std::result::Result<Option<(&'static str, Value)>, String> {
        let mut found = None;
        for &name in names {
            let Some(value) = self.0.remove(name).filter(|value| !value.is_null()) else {
                continue;
            };
            if let Some((other, _)) = found.replace((name, value)) {
                return Err(format!("has both \"{other}\" and \"{name}\""));
            }
        }
        Ok(found)
    }

    fn text(&mut self, names: &[&'static str]) -> std::result::Result<Option<String>, String> {
        match self.take(names)? {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((name, value)) => {
                Err(format!("has {} as \"{name}\", not a text", kind_of_value(&value)))
            }
        }
    }

    /// A list of texts and whole numbers, or one of them.
    fn texts(
        &mut self,
        names: &[&'static str],
    ) -> std::result::Result<Option<Vec<String>>, String> {
        let Some((name, value)) = self.take(names)? else { return Ok(None) };
        let list = if let Value::Array(list) = value { list } else { vec![value] };
        let text = |value| match value {
            Value::String(text) => Ok(text),
            Value::Number(n) if n.is_i64() || n.is_u64() => Ok(n.to_string()),
            Value::Number(_) => Err(format!(
                "has a number in \"{name}\" that is not whole or too large; put it into quotes"
            )),
            other => Err(format!("has {} in \"{name}\", not a text", kind_of_value(&other))),
        };
        list.into_iter().map(text).collect::<std::result::Result<_, _>>().map(Some)
    }

    /// LongBench v2's choices, in order.
    fn choices(&mut self) -> std::result::Result<Vec<String>, String> {
        let names = ["choice_A", "choice_B", "choice_C", "choice_D"];
        let found: Vec<Option<String>> =
            names.iter().map(|&name| self.text(&[name])).collect::<std::result::Result<_, _>>()?;
        let choices: Vec<String> = found.iter().cloned().map_while(|choice| choice).collect();
        match found.iter().flatten().count() == choices.len() {
            true => Ok(choices),
            false => Err(format!("lacks \"{}\"", names[choices.len()])),
        }
    }
}

fn kind_of_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> std::result::Result<Item, String> {
        let value = serde_json::from_str(line).map_err(|error| json_error(&error))?;
        item(Path::new("x/q.jsonl"), 1, "line 1".into(), value)
    }

    #[test]
    fn lines_are_checked() {
        let read = read_line;
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
            (r#"{"context": 5, "question": "b", "answers": ["c"]}"#, "number as \"context\""),
            (r#"{"context": "a", "question": "b", "answers": [{}]}"#, "object in \"answers\""),
            (r#"{"context": "a", "question": "b", "answers": [1e99]}"#, "quotes"),
            (r#"{"context": "a", "question": "b", "answers": [1e999]}"#, "out of range"),
            (
                r#"{"context": "a", "question": "b", "answers": [99999999999999999999]}"#,
                "number in \"answers\"",
            ),
            (r#"{"context": "a", "question": "b", "answers": ["", " "]}"#, "\"answers\" is empty"),
            (r#"{"context": "a", "question": "b", "input": "b", "answers": "c"}"#, "both"),
            (r#"{"context": "a", "question": "b", "choice_B": "c", "answer": "B"}"#, "choice_A"),
            (
                r#"{"context": "a", "question": "b", "choice_A": "c", "answer": "B"}"#,
                "not the letter",
            ),
            ("7", "but a number"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn answers_may_be_one_text_or_numbers() {
        let answers = |answers: &str| {
            let line = format!(r#"{{"context": "a", "question": "b", "answers": {answers}}}"#);
            read_line(&line).unwrap().answers
        };
        assert_eq!(answers(r#""c""#), ["c"]);
        assert_eq!(answers("[1912, \"c\", -3]"), ["1912", "c", "-3"]);
    }

    #[test]
    fn choices_are_read_as_long_bench_v2_has_them() {
        let line = r#"{"_id": "6", "domain": "x", "sub_domain": "y", "difficulty": "easy",
            "length": "short", "question": "Who?", "choice_A": "Anna", "choice_B": "Bert",
            "choice_C": "Carl", "choice_D": "Dora", "answer": "C", "context": "Text."}"#;
        let read = read_line(line).unwrap();
        assert_eq!((read.kind, read.answers), (Kind::Choice, vec!["C".to_owned()]));
        assert_eq!(read.question, "Who?\n(A) Anna\n(B) Bert\n(C) Carl\n(D) Dora");
    }

    #[test]
    fn a_list_is_read_like_lines() {
        let values = |text: &str| List::new(text).collect::<Vec<_>>();
        let good = values(" [\n{\"a\": \"],\"},\n [1] , 2\n]\n");
        let places: Vec<_> = good.into_iter().map(|v| v.map(|(line, n, _)| (line, n))).collect();
        assert_eq!(places, [Ok((2, 1)), Ok((3, 2)), Ok((3, 3))]);
        for (text, line, part) in [
            ("[", 1, "a question should follow, not the end"),
            ("[]", 1, "a question should follow"),
            ("[1\n2]", 2, "a comma should follow, not '2'"),
            ("[1,\n]", 2, "a question should follow"),
            ("[1]\nx", 2, "it should end here"),
            ("[1,\n{\n\"a\": }]", 3, "question 2 is none"),
            ("[1", 1, "a comma should follow, not the end"),
        ] {
            let (at, what) = values(text).pop().unwrap().unwrap_err();
            assert!(at == line && what.contains(part), "{text}: {at} {what}");
        }
    }
}
