//! From an answer to scores between 0 and 1.

use super::longbench;
use serde_json::Value;

/// How an answer is scored.
#[derive(Clone, Debug)]
pub enum Grade {
    /// 1 if the first number of exactly seven digits is the expected one.
    FirstNumber,
    /// RULER: each expected text counts that the answer contains.
    Contains,
    /// Counting-Stars: each star counts whose right number was listed.
    Stars {
        /// The name of the list in the answer.
        list: &'static str,
        /// The numbers that were counted first and wrong, in the order of the right ones;
        /// empty for the acquisition task.
        wrong: Vec<u64>,
    },
    /// LongBench: the best score over the expected answers.
    LongBench {
        /// What kind of question it is.
        kind: longbench::Kind,
        /// All classes, for a classification.
        classes: Vec<String>,
        /// Whether only the first line of the answer counts.
        first_line: bool,
    },
}

impl Grade {
    /// The scores of the things asked for; the answer's score is their mean.
    pub fn parts(&self, answer: &str, expected: &[String]) -> Vec<f64> {
        let score = |yes: bool| if yes { 1.0 } else { 0.0 };
        match self {
            Self::FirstNumber => {
                let first = first_number(answer);
                vec![score(first.is_some() && first == expected.first().map(String::as_str))]
            }
            Self::Contains => contained(answer, expected).into_iter().map(score).collect(),
            Self::Stars { list, wrong } => {
                let listed = read_counts(answer, list, expected.len());
                let holds = |number: Option<u64>| number.is_some_and(|n| listed.contains(&n));
                (expected.iter().enumerate())
                    .map(|(i, right)| {
                        match (holds(right.parse().ok()), holds(wrong.get(i).copied())) {
                            (true, false) => 1.0,
                            (true, true) => 0.5,
                            (false, true) => 0.25,
                            (false, false) => 0.0,
                        }
                    })
                    .collect()
            }
            Self::LongBench { kind, classes, first_line } => {
                let line = || answer.trim_start_matches('\n').split('\n').next().unwrap_or("");
                let counted = if *first_line { line() } else { answer };
                vec![kind.score(counted, expected, classes)]
            }
        }
    }
}

/// RULER's match (Hsieh et al. 2024): which of the expected texts the answer contains,
/// whatever their case; control characters become line breaks first.
pub fn contained(answer: &str, expected: &[String]) -> Vec<bool> {
    let answer: String = answer.chars().map(|c| if c < ' ' { '\n' } else { c }).collect();
    let answer = answer.trim().to_lowercase();
    expected.iter().map(|text| answer.contains(&text.to_lowercase())).collect()
}

/// The first number of exactly seven digits.
fn first_number(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 7)
}

/// The numbers that an answer lists, at most the first `most`: of the list called `name`
/// if there is JSON, else of the list in brackets, open or begun, else all.
fn read_counts(answer: &str, name: &str, most: usize) -> Vec<u64> {
    let json = answer.find('{').and_then(|at| {
        let mut values = serde_json::Deserializer::from_str(&answer[at..]).into_iter::<Value>();
        values.next()?.ok()?.get(name)?.as_array().cloned()
    });
    let mut counts: Vec<u64> = match json {
        Some(list) => list.iter().filter_map(count).collect(),
        None => {
            let close = answer.find(']').unwrap_or(answer.len());
            let open = answer[..close].find('[').map_or(0, |at| at + 1);
            numbers(&answer[open..close])
        }
    };
    counts.truncate(most);
    counts
}

/// The numbers of a text but for those that number a list, as "1. " and "2) " before a
/// number do.
fn numbers(text: &str) -> Vec<u64> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = &rest[at..];
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let (number, after) = digits.split_at(end);
        let follows = after.strip_prefix(". ").or_else(|| after.strip_prefix(") "));
        let marker = follows.is_some_and(|f| f.starts_with(|c: char| c.is_ascii_digit()));
        found.extend(number.parse::<u64>().ok().filter(|_| !marker));
        rest = after;
    }
    found
}

fn count(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_number_has_exactly_seven_digits() {
        assert_eq!(first_number("12345678 and 1234567."), Some("1234567"));
        assert_eq!(first_number("1234567890"), None);
        assert_eq!(first_number("is 7654321, not 1234567"), Some("7654321"));
        let grade = |answer| Grade::FirstNumber.parts(answer, &texts(&["1234567"]));
        assert_eq!((grade(" 1234567."), grade("7654321 1234567")), (vec![1.0], vec![0.0]));
        assert_eq!(Grade::FirstNumber.parts("none", &[]), [0.0]);
    }

    #[test]
    fn ruler_counts_what_is_contained() {
        let expected = texts(&["Apple", "river", "1234567"]);
        assert_eq!(Grade::Contains.parts("1. APPLE\u{1}2. rivers", &expected), [1.0, 1.0, 0.0]);
        assert_eq!(contained("x\u{0}12345\u{7}67", &expected), [false; 3]);
    }

    #[test]
    fn answers_are_read_tolerantly() {
        let read = |answer| read_counts(answer, "little_penguin", 4);
        // As the prompt begins the list, as JSON of its own, in a fence, cut off, as text.
        for answer in [
            "3, 14, 15]} and [9]",
            "{\"little_penguin\": [3, \"14\", 15]}",
            "```json\n{\"little_penguin\": [3,14,15]}\n```",
            "{\"little_penguin\": [3, 14, 15",
            "3, 14 and 15 ★",
            ":\n1. 3 ★\n2. 14 ★\n3. 15 ★",
            "1) 3, 2) 14, 3) 15.",
            "I see: [3, 14, 15",
        ] {
            assert_eq!(read(answer), [3, 14, 15], "{answer}");
        }
        assert_eq!(read("1, 1, 2, 3, 4, 5]"), [1, 1, 2, 3]);
        assert_eq!(read_counts("{\"小企鹅\":[7]}", "小企鹅", 9), [7]);
        assert!(read("none").is_empty() && read("99999999999999999999999").is_empty());
    }

    #[test]
    fn stars_score_as_published() {
        let expected = texts(&["15", "20", "30", "40"]);
        let grade = |wrong: &[u64], answer: &str| {
            Grade::Stars { list: "little_penguin", wrong: wrong.into() }.parts(answer, &expected)
        };
        let answer = "{\"little_penguin\": [20, 16, 30, 29]}";
        assert_eq!(grade(&[], answer), [0.0, 1.0, 1.0, 0.0]);
        // 16 is the wrong count of the first; of the third both are there.
        assert_eq!(grade(&[16, 21, 29, 41], answer), [0.25, 1.0, 0.5, 0.0]);
        // Only the first four count, repetitions included.
        assert_eq!(grade(&[], "[15, 15, 15, 15, 20]"), [1.0, 0.0, 0.0, 0.0]);
    }
}
