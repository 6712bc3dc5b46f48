//! Counting-Stars: numbers strewn evenly over a whole text, all of them asked for.
//!
//! Song, Zheng and Luo, "Counting-Stars: A Multi-evidence, Position-aware, and Scalable
//! Benchmark for Evaluating Long-Context Large Language Models" (COLING 2025; code under
//! the MIT licence). Because the evidence lies everywhere, a cache that forgets evenly
//! loses evenly here, and one that confuses what it keeps mistakes a number for the one
//! beside it.
//!
//! ```text
//! acquisition   prose ⏎ The little penguin counted 15 ★ ⏎ prose … ⏎⏎⏎⏎ question
//! reasoning     prose ⏎ … counted 16 ★, but found that a mistake … 15 ★ … ⏎ prose …
//! ```
//!
//! Of m stars, star i follows after (i + 1)·⌊j/m⌋ of the text's j words (Chinese:
//! characters), so the last one stands near the end. Acquisition scores the share of the
//! numbers listed. Reasoning scores, for each star, 1 if only the right number was listed,
//! 0.5 if both were, 0.25 if only the wrong one was, 0 if neither. Only the first m numbers
//! of an answer count, and each once.
//!
//! The original asks for JSON, in which models of some hundred million parameters cannot
//! answer; so by default a plain list is asked for, and JSON with [`StarsSpec::json`].
//! Prompts are cut to tokens and not to words, the answer's beginning is part of them, and
//! the question is put in words of our own: scores compare caches, not models of other
//! papers.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::{Haystack, Language, char_ends, word_ends};
use super::options::{at_least, at_most, counted, grid, named, not_empty, within};
use super::prose::Rng;
use super::question::Question;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Tokenizer};
use crate::rag::Document;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// What the stars say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StarsKind {
    /// One number each.
    #[default]
    Acquisition,
    /// A wrong number, and the right one after it.
    Reasoning,
}

impl FromStr for StarsKind {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        named("kind", name)
    }
}

/// Which prompts to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StarsSpec {
    /// The language of text and question.
    pub language: Language,
    /// What the stars say.
    pub kind: StarsKind,
    /// m, the number of stars.
    pub stars: usize,
    /// Whether JSON is asked for, as in the original.
    pub json: bool,
    /// Tokens of the whole prompts.
    pub lengths: Vec<usize>,
    /// Prompts for each length.
    pub seeds: usize,
    /// Which prompts: batches have none in common.
    pub batch: usize,
    /// The file with the text; without one it is generated, another for each seed.
    pub haystack: Option<PathBuf>,
}

impl Default for StarsSpec {
    fn default() -> Self {
        Self {
            language: Language::English,
            kind: StarsKind::Acquisition,
            stars: 8,
            json: false,
            lengths: vec![1024, 2048, 4096],
            seeds: 5,
            batch: 0,
            haystack: None,
        }
    }
}

impl StarsSpec {
    /// The task's name.
    pub fn name(&self) -> &'static str {
        match (self.language, self.kind) {
            (Language::English, StarsKind::Acquisition) => "counting-stars-en-acquisition",
            (Language::English, StarsKind::Reasoning) => "counting-stars-en-reasoning",
            (Language::Chinese, StarsKind::Acquisition) => "counting-stars-zh-acquisition",
            (Language::Chinese, StarsKind::Reasoning) => "counting-stars-zh-reasoning",
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        not_empty("lengths", self.lengths.is_empty())?;
        at_least("stars", self.stars, 1)?;
        at_most("stars", self.stars, 1000)?;
        counted(self.seeds, self.batch)
    }

    /// Checks that the text has no stars of its own.
    pub(super) fn check(&self, haystack: Option<&Document>) -> Result<()> {
        match haystack.filter(|text| text.text().contains('★')) {
            Some(text) => Err(Error::Document {
                path: text.source().into(),
                what: "holds a ★ of its own".into(),
                remedy: "name a haystack without any".into(),
            }),
            None => Ok(()),
        }
    }

    /// Makes the prompts: every length and seed, in this order.
    ///
    /// # Errors
    /// As [`NeedleSpec::questions`](super::NeedleSpec::questions).
    pub fn questions(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
        haystack: Option<&Document>,
    ) -> Result<Questions> {
        self.validate()?;
        self.check(haystack)?;
        let prompter = Prompter { tokenizer, template };
        // A line of a list each, and room for what a model says before it.
        let longest = prompter.count(&format!("\n{}. {} ★", self.stars, self.greatest()))?;
        let max_tokens = (longest + 1) * self.stars + 16;
        within(context, &self.lengths, max_tokens)?;
        let haystack = Haystack::new(prompter, haystack, self.language)?;
        let list: Result<Vec<Question>> = grid(&self.lengths, self.seeds, self.batch)
            .map(|(length, seed)| self.question(prompter, &haystack, max_tokens, length, seed))
            .collect();
        Ok(Questions::new(self.name(), list?))
    }

    fn question(
        &self,
        prompter: Prompter<'_>,
        haystack: &Haystack<'_>,
        max_tokens: usize,
        length: usize,
        seed: usize,
    ) -> Result<Question> {
        let (right, wrong) = self.counts(length, seed);
        let lines: Vec<String> = right.iter().zip(&wrong).map(|(&a, &r)| self.line(a, r)).collect();
        let (text, ids) = haystack.fit(length, seed, |hay, exact| {
            let ends: Vec<usize> = match self.language {
                Language::English => word_ends(hay).collect(),
                Language::Chinese => char_ends(hay).collect(),
            };
            if exact && ends.len() < self.stars {
                let what = format!("{length} is too short for {} stars", self.stars);
                return Err(Error::config("lengths", what));
            }
            let (request, answer) = self.request();
            prompter.build(&(strew(hay, &ends, &lines) + "\n\n\n\n" + request), answer)
        })?;
        let reasoning = self.kind == StarsKind::Reasoning;
        Ok(Question {
            id: format!("{length}/{seed}"),
            length,
            depth: None,
            seed,
            expected: right.iter().map(u64::to_string).collect(),
            max_tokens,
            text,
            ids,
            grade: Grade::Stars {
                list: self.list(),
                wrong: if reasoning { wrong } else { Vec::new() },
            },
        })
    }

    /// The greatest number that is counted.
    fn greatest(&self) -> usize {
        (6 * self.stars).max(126) + 2
    }

    /// Right numbers and, beside each, a wrong one; all different, none below 3.
    fn counts(&self, length: usize, seed: usize) -> (Vec<u64>, Vec<u64>) {
        let mut rng = Rng::new(seed as u64);
        rng = Rng::new(rng.bits() ^ length as u64);
        let (mut right, mut wrong): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        while right.len() < self.stars {
            let a = 4 + rng.below(self.greatest() - 4) as u64;
            let r = if rng.below(2) == 0 { a - 1 } else { a + 1 };
            if ![a, r].iter().any(|n| right.contains(n) || wrong.contains(n)) {
                right.push(a);
                wrong.push(r);
            }
        }
        (right, wrong)
    }

    fn line(&self, a: u64, r: u64) -> String {
        match (self.language, self.kind) {
            (Language::English, StarsKind::Acquisition) => {
                format!("The little penguin counted {a} ★")
            }
            (Language::English, StarsKind::Reasoning) => format!(
                "The little penguin counted {r} ★, but found that this was a mistake, counted \
                 again, and this time {a} ★ was right"
            ),
            (Language::Chinese, StarsKind::Acquisition) => format!("小企鹅数了{a}颗★"),
            (Language::Chinese, StarsKind::Reasoning) => {
                format!("小企鹅数了{r}颗★，但发现数错了，于是重新数了一遍，这次对了，是{a}颗★")
            }
        }
    }

    /// The question and the beginning of its answer.
    fn request(&self) -> (&'static str, &'static str) {
        use {Language::*, StarsKind::*};
        match (self.json, self.language, self.kind) {
            (false, English, Acquisition) => (
                "What numbers of ★ did the little penguin count in the text? List all of them.",
                "The numbers of ★ that the little penguin counted in the text are",
            ),
            (false, English, Reasoning) => (
                "What correct numbers of ★ did the little penguin count in the text? List all of \
                 them.",
                "The correct numbers of ★ that the little penguin counted in the text are",
            ),
            (false, Chinese, Acquisition) => {
                ("小企鹅在文中每次数了多少颗★？请全部列出。", "小企鹅在文中数到的★的颗数是：")
            }
            (false, Chinese, Reasoning) => {
                ("小企鹅在文中每次数对的★是多少颗？请全部列出。", "小企鹅在文中数对的★的颗数是：")
            }
            (true, English, Acquisition) => (
                "On this moonlit and misty night the little penguin looks up at the sky and counts \
                 ★. Please help it to collect the numbers of ★ that it counted, as \
                 {\"little_penguin\": [x, x, x, ...]}, where each x is one number of ★ that the \
                 little penguin counted. Do not add them up. Answer with the JSON only, without \
                 any explanation.",
                "{\"little_penguin\": [",
            ),
            (true, English, Reasoning) => (
                "On this moonlit and misty night the little penguin looks up at the sky and counts \
                 ★. Please help it to collect the correct numbers of ★, as \
                 {\"little_penguin\": [x, x, x, ...]}, where each x is one number of ★ that the \
                 little penguin counted correctly. Do not add them up. Answer with the JSON only, \
                 without any explanation.",
                "{\"little_penguin\": [",
            ),
            (true, Chinese, Acquisition) => (
                "在这个月色朦胧的夜晚，小企鹅望着天空，专心地数★。请帮小企鹅收集它数过的★的颗数，\
                 格式为{\"小企鹅\":[x,x,x,...]}，其中每个x是小企鹅一次数到的★的颗数。不要求和，\
                 只用JSON回答，不要任何解释。",
                "{\"小企鹅\":[",
            ),
            (true, Chinese, Reasoning) => (
                "在这个月色朦胧的夜晚，小企鹅望着天空，专心地数★。请帮小企鹅收集★的正确颗数，\
                 格式为{\"小企鹅\":[x,x,x,...]}，其中每个x是小企鹅一次数对的★的颗数。不要求和，\
                 只用JSON回答，不要任何解释。",
                "{\"小企鹅\":[",
            ),
        }
    }

    /// The list's name in JSON.
    fn list(&self) -> &'static str {
        match self.language {
            Language::English => "little_penguin",
            Language::Chinese => "小企鹅",
        }
    }
}

/// `hay` with line i after (i + 1)·⌊units / lines⌋ units, which end at `ends`.
fn strew(hay: &str, ends: &[usize], lines: &[String]) -> String {
    let stride = ends.len() / lines.len().max(1);
    let (mut text, mut from) = (String::new(), 0);
    for (i, line) in lines.iter().enumerate() {
        let to = ((i + 1) * stride).checked_sub(1).map_or(0, |unit| ends[unit]);
        text += hay[from..to].trim_matches(' ');
        text += &format!("\n{line}\n");
        from = to;
    }
    text + hay[from..].trim_start_matches(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_are_strewn_evenly() {
        let lines: Vec<String> = ["X", "Y", "Z"].map(String::from).into();
        let put = |hay: &str| strew(hay, &word_ends(hay).collect::<Vec<_>>(), &lines);
        assert_eq!(put("a b c d e f g."), "a b\nX\nc d\nY\ne f\nZ\ng.");
        assert_eq!(put("a b c"), "a\nX\nb\nY\nc\nZ\n");
        assert_eq!(put("a b"), "\nX\n\nY\n\nZ\na b");
    }

    #[test]
    fn counts_are_all_different() {
        for stars in [1, 8, 32, 100] {
            let spec = StarsSpec { stars, ..StarsSpec::default() };
            let (right, wrong) = spec.counts(1024, 3);
            let mut all = [right.clone(), wrong.clone()].concat();
            assert!(right.iter().zip(&wrong).all(|(a, r)| a.abs_diff(*r) == 1));
            assert!(all.iter().all(|&n| n >= 3));
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 2 * stars);
        }
    }
}
