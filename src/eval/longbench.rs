//! LongBench's scores of an answer.
//!
//! Bai et al., "LongBench: A Bilingual, Multitask Benchmark for Long Context
//! Understanding" (ACL 2024), by its `metrics.py`: the best score over all reference
//! answers counts. Two things differ: Chinese is split into characters, not by jieba's
//! dictionary into words; and the similarity of code is that of `python-Levenshtein`
//! (twice the longest common subsequence over both lengths), which the original's library
//! uses where it is installed.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// What kind of question it is, and so how its answer is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A question: F1 of words.
    #[default]
    Qa,
    /// A question in Chinese: F1 of characters.
    QaZh,
    /// A summary: ROUGE-L of words.
    Summary,
    /// A summary in Chinese: ROUGE-L of characters.
    SummaryZh,
    /// One of several classes: whether it is named, and no other.
    Classification,
    /// The number of a paragraph: its share of the numbers in the answer.
    Retrieval,
    /// A count, scored likewise.
    Count,
    /// The next line of code: edit similarity.
    Code,
    /// One of several choices, by its letter, as in LongBench v2: right or wrong.
    Choice,
}

impl Kind {
    /// The best score over `expected`, between 0 and 1; `classes` are all classes of a
    /// [`Classification`](Self::Classification).
    pub fn score(self, answer: &str, expected: &[String], classes: &[String]) -> f64 {
        let one = |reference: &String| match self {
            Self::Qa => f1(&english_words(answer), &english_words(reference)),
            Self::QaZh => f1(&chinese_characters(answer), &chinese_characters(reference)),
            Self::Summary => rouge_l(answer, reference),
            Self::SummaryZh => rouge_l(&spaced(answer), &spaced(reference)),
            Self::Classification => classification(answer, reference, classes),
            Self::Retrieval => number_share(answer, paragraph(reference)),
            Self::Count => number_share(answer, reference.trim()),
            Self::Code => similarity(code_line(answer), reference),
            Self::Choice => f64::from(u8::from(choice(answer) == reference.chars().next())),
        };
        expected.iter().map(one).fold(0.0, f64::max)
    }
}

/// Lower case, without ASCII punctuation, without the words "a", "an" and "the".
fn english_words(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace(|c: char| c.is_ascii_punctuation(), "");
    // An article may border on a sign that is not ASCII, such as a dash.
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let word = first.is_alphanumeric();
        let end = rest.find(|c: char| c.is_alphanumeric() != word).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        kept += if ["a", "an", "the"].contains(&part) { " " } else { part };
        rest = after;
    }
    kept.split_whitespace().map(str::to_owned).collect()
}

/// Characters in lower case, without punctuation and white space.
fn chinese_characters(text: &str) -> Vec<char> {
    const PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕\
        〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏《";
    let dropped =
        |c: &char| c.is_ascii_punctuation() || c.is_whitespace() || PUNCTUATION.contains(*c);
    text.to_lowercase().chars().filter(|c| !dropped(c)).collect()
}

/// The harmonic mean of precision and recall of two bags of tokens.
fn f1<T: Eq + Hash>(answer: &[T], reference: &[T]) -> f64 {
    let mut left: HashMap<&T, usize> = HashMap::new();
    for token in reference {
        *left.entry(token).or_default() += 1;
    }
    let mut same = 0;
    for token in answer {
        if let Some(count) = left.get_mut(token).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) =
        (f64::from(same) / answer.len() as f64, f64::from(same) / reference.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Characters with a space between, without white space of their own.
fn spaced(text: &str) -> String {
    let characters = text.chars().filter(|c| !c.is_whitespace()).map(String::from);
    characters.collect::<Vec<_>>().join(" ")
}

/// ROUGE-L as the package `rouge` computes it: over sentences, which end at full stops, and
/// over sets of words. What counts is the union of the longest common subsequences of each
/// reference sentence with each sentence of the answer.
fn rouge_l(answer: &str, reference: &str) -> f64 {
    fn sentences(text: &str) -> Vec<Vec<&str>> {
        let parts = text.split('.').filter(|part| !part.is_empty());
        parts.map(|part| part.split_whitespace().collect()).collect()
    }
    let (answer, reference) = (sentences(answer), sentences(reference));
    let words = |all: &[Vec<&str>]| all.iter().flatten().copied().collect::<HashSet<_>>().len();
    let mut union: HashSet<&str> = HashSet::new();
    for wanted in &reference {
        for said in &answer {
            union.extend(common_subsequence(wanted, said));
        }
    }
    if union.is_empty() {
        return 0.0;
    }
    let recall = union.len() as f64 / words(&reference) as f64;
    let precision = union.len() as f64 / words(&answer) as f64;
    2.0 * precision * recall / (precision + recall + 1e-8)
}

/// Lengths of the longest common subsequences of all beginnings: `[i · (b + 1) + j]` is of
/// the first i of `a` and the first j of `b`.
fn subsequence_lengths<T: PartialEq>(a: &[T], b: &[T]) -> Vec<u32> {
    let width = b.len() + 1;
    let mut lengths = vec![0; (a.len() + 1) * width];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            lengths[(i + 1) * width + j + 1] = match x == y {
                true => lengths[i * width + j] + 1,
                false => lengths[i * width + j + 1].max(lengths[(i + 1) * width + j]),
            };
        }
    }
    lengths
}

/// One of the longest common subsequences, backwards: the one that `rouge` finds.
fn common_subsequence<'t>(a: &[&'t str], b: &[&str]) -> Vec<&'t str> {
    let (lengths, width) = (subsequence_lengths(a, b), b.len() + 1);
    let (mut i, mut j, mut found) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            found.push(a[i]);
        } else if lengths[(i - 1) * width + j] > lengths[i * width + j - 1] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    found
}

/// 1 over the number of classes that the answer names, if the right one is among them.
/// Names that are part of the right one's do not count.
fn classification(answer: &str, reference: &str, classes: &[String]) -> f64 {
    let mut named: Vec<&str> =
        classes.iter().map(String::as_str).filter(|class| answer.contains(class)).collect();
    // The original removes from the list that it walks along, and so skips the one after.
    let mut i = 0;
    while i < named.len() {
        if named[i] != reference && reference.contains(named[i]) {
            let first = named.iter().position(|name| *name == named[i]).unwrap_or(i);
            named.remove(first);
        }
        i += 1;
    }
    if named.contains(&reference) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// The number in "Paragraph 7" or "段落7", or the first there is.
pub(super) fn paragraph(reference: &str) -> &str {
    let after = ["Paragraph ", "段落"].iter().find_map(|word| {
        let at = reference.find(word)? + word.len();
        reference[at..].starts_with(|c: char| c.is_ascii_digit()).then_some(&reference[at..])
    });
    numbers(after.unwrap_or(reference)).next().unwrap_or("")
}

/// The share of the answer's numbers that are the right one.
fn number_share(answer: &str, right: &str) -> f64 {
    let all = numbers(answer).count();
    if all == 0 {
        return 0.0;
    }
    numbers(answer).filter(|&number| number == right).count() as f64 / all as f64
}

fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty())
}

/// The letter that an answer names: in LongBench v2's sentence, else at its beginning,
/// since the prompt begins the sentence.
fn choice(answer: &str) -> Option<char> {
    const SENTENCE: &str = "The correct answer is";
    let answer = answer.replace('*', "");
    let letter = |text: &str| {
        let text = text.trim_start().trim_start_matches('(');
        let mut rest = text.chars();
        let first = rest.next().filter(char::is_ascii_uppercase)?;
        (!rest.next().is_some_and(char::is_alphanumeric)).then_some(first)
    };
    let said =
        answer.match_indices(SENTENCE).find_map(|(at, _)| letter(&answer[at + SENTENCE.len()..]));
    said.or_else(|| letter(&answer))
}

/// The first line that is neither a comment nor a fence.
fn code_line(answer: &str) -> &str {
    let code = |line: &&str| !line.contains('`') && !line.contains('#') && !line.contains("//");
    answer.trim_start_matches('\n').split('\n').find(code).unwrap_or("")
}

/// How alike two texts are, in whole percent.
fn similarity(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let common = subsequence_lengths(&a, &b).last().copied().unwrap_or(0);
    (200.0 * f64::from(common) / (a.len() + b.len()) as f64).round_ties_even() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(kind: Kind, answer: &str, expected: &[&str]) -> f64 {
        let expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
        let classes = ["NUM", "NUMBER", "DATE", "PLACE"].map(String::from);
        kind.score(answer, &expected, &classes)
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn words_are_normalised() {
        assert_eq!(
            english_words("The U.S. Army—a big, BIG one! An 'a'"),
            ["us", "army—", "big", "big", "one"]
        );
        assert_eq!(english_words("Theatre another \t thea"), ["theatre", "another", "thea"]);
        assert_eq!(chinese_characters("《红楼梦》， A b。"), ['红', '楼', '梦', 'a', 'b']);
    }

    #[test]
    fn questions_by_hand() {
        // {old, man, and, sea} against {old, man}: precision 1/2, recall 1.
        near(score(Kind::Qa, "The old man and the sea.", &["An Old Man"]), 2.0 / 3.0);
        near(score(Kind::Qa, "cat cat cat", &["cat cat dog"]), 2.0 / 3.0);
        near(score(Kind::Qa, "Paris", &["London", "paris!"]), 1.0);
        assert_eq!((score(Kind::Qa, "", &["x"]), score(Kind::Qa, "the", &["the"])), (0.0, 0.0));
        // 北京, 的 against 北京市: two of three, two of three.
        near(score(Kind::QaZh, "北京的。", &["北京市"]), 2.0 / 3.0);
    }

    #[test]
    fn summaries_by_hand() {
        // Lin's example: r = w1 … w5; with c1 in common w1 w2, with c2 w1 w3 w5; the union
        // has 4 words. The reference has 5 different words, the answer 8.
        let (r, c) = ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8. w1 w3 w8 w9 w5.");
        let (precision, recall) = (4.0 / 8.0, 4.0 / 5.0);
        near(score(Kind::Summary, c, &[r]), 2.0 * precision * recall / (precision + recall));
        near(score(Kind::Summary, "the cat", &["the cat"]), 1.0);
        // By the package itself, version 1.0.1.
        for (answer, reference, figure) in [
            (
                "The report finds that costs rose. Costs rose by ten percent. It says no more.",
                "Costs rose by ten percent in 1912. The report says that costs rose again.",
                0.740740736,
            ),
            ("a b c a b c", "c b a. a b c.", 0.999999995),
            ("the cat sat on the mat", "the mat sat on the cat. the cat.", 0.799999995),
            ("one. two. three.", "three two one.", 0.999999995),
            ("no words in common here", "something else entirely", 0.0),
        ] {
            assert!((score(Kind::Summary, answer, &[reference]) - figure).abs() < 2e-9, "{answer}");
        }
        near(score(Kind::Summary, "cat the", &["the cat"]), 0.5);
        assert_eq!(score(Kind::Summary, "...", &["a"]), 0.0);
        near(
            score(Kind::SummaryZh, "天气 好", &["天气很好"]),
            2.0 * (3.0 / 3.0) * (3.0 / 4.0) / (7.0 / 4.0),
        );
    }

    #[test]
    fn classes_by_hand() {
        near(score(Kind::Classification, "It is DATE", &["DATE"]), 1.0);
        near(score(Kind::Classification, "DATE or PLACE", &["DATE"]), 0.5);
        // "NUM" is named with "NUMBER" and does not count against it.
        near(score(Kind::Classification, "NUMBER", &["NUMBER"]), 1.0);
        near(score(Kind::Classification, "NUMBER", &["NUM"]), 0.5);
        assert_eq!(score(Kind::Classification, "date", &["DATE"]), 0.0);
    }

    #[test]
    fn numbers_by_hand() {
        near(score(Kind::Retrieval, "Paragraph 7, not 17", &["Paragraph 7"]), 0.5);
        near(score(Kind::Retrieval, "段落12", &["段落12"]), 1.0);
        near(score(Kind::Retrieval, "12", &["3 is in Paragraph 12"]), 1.0);
        near(score(Kind::Count, "5 5 6 7", &["5"]), 0.5);
        assert_eq!(
            (score(Kind::Count, "five", &["5"]), score(Kind::Count, "05", &["5"])),
            (0.0, 0.0)
        );
    }

    #[test]
    fn code_by_hand() {
        // "return x" and "return y": 7 of 8 letters in common.
        near(score(Kind::Code, "\n```python\n# so\nreturn x\nmore", &["return y"]), 0.88);
        near(score(Kind::Code, "return y", &["return y"]), 1.0);
        assert_eq!(score(Kind::Code, "// none", &["x"]), 0.0);
        // 100 · 2 · 1 / 3 is 66.7.
        near(score(Kind::Code, "ab", &["a"]), 0.67);
    }

    #[test]
    fn choices_by_hand() {
        for (answer, want) in [
            ("B)", 1.0),
            ("B) because A is wrong", 1.0),
            (" (B)", 1.0),
            ("A. The correct answer is (B).", 1.0),
            ("**The correct answer is B**", 1.0),
            ("A)", 0.0),
            ("But A", 0.0),
            ("b)", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(score(Kind::Choice, answer, &["B"]), want, "{answer}");
        }
    }
}
