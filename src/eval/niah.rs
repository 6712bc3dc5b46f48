//! Needles in a haystack: 7-digit numbers hidden in prose, asked for at the end.
//!
//! ```text
//! ⟨user⟩ instruction · prose … NEEDLE … prose · question ⟨assistant⟩ answer's beginning ▸ greedy
//! ```
//!
//! Besides the single needle there are RULER's harder kinds (Hsieh et al. 2024): one of
//! four asked for, four of one key, and four keys at once. There the score is RULER's:
//! the share of the numbers that the answer holds. A single needle is found only if the
//! first 7-digit number of the answer is it.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::{Haystack, Language, insert, place};
use super::options::{counted, grid, named, not_empty, within};
use super::prose::Rng;
use super::question::Question;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Tokenizer};
use crate::rag::Document;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// Tokens of an answer that names one number, at most.
pub const ANSWER_TOKENS: usize = 24;
/// Needles of the kinds that have several.
pub const NEEDLES: usize = 4;
/// Tokens of an answer that names [`NEEDLES`] numbers, at most.
pub const LONG_ANSWER_TOKENS: usize = 96;

const INSTRUCTION: &str = "Read the text and answer the question at its end.";

/// What has a secret access code.
const KEYS: [&str; 16] = [
    "vault",
    "library",
    "tower",
    "garden",
    "museum",
    "cellar",
    "harbour",
    "theatre",
    "hospital",
    "castle",
    "laboratory",
    "garage",
    "station",
    "bakery",
    "school",
    "bank",
];

/// How many needles there are, and how many are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeedleKind {
    /// One number.
    #[default]
    Single,
    /// Four numbers of four keys; one is asked for.
    MultiKey,
    /// Four numbers of one key; all are asked for.
    MultiValue,
    /// Four numbers of four keys; all are asked for.
    MultiQuery,
}

impl FromStr for NeedleKind {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        named("kind", name)
    }
}

impl NeedleKind {
    /// The task's name.
    pub fn task(self) -> &'static str {
        match self {
            Self::Single => "niah",
            Self::MultiKey => "niah-multi-key",
            Self::MultiValue => "niah-multi-value",
            Self::MultiQuery => "niah-multi-query",
        }
    }

    fn answer_tokens(self) -> usize {
        match self {
            Self::Single | Self::MultiKey => ANSWER_TOKENS,
            Self::MultiValue | Self::MultiQuery => LONG_ANSWER_TOKENS,
        }
    }
}

/// Which prompts to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeedleSpec {
    /// How many needles.
    pub kind: NeedleKind,
    /// Tokens of the whole prompts.
    pub lengths: Vec<usize>,
    /// Where the (first) needle lies, in percent of the prose's tokens. With several, each
    /// further one lies a quarter of the text on, from the end back to the beginning.
    pub depths: Vec<usize>,
    /// Prompts for each length and depth.
    pub seeds: usize,
    /// Which prompts: batches have none in common.
    pub batch: usize,
    /// The file with the prose; without one it is generated, another for each seed.
    pub haystack: Option<PathBuf>,
}

impl Default for NeedleSpec {
    fn default() -> Self {
        Self {
            kind: NeedleKind::Single,
            lengths: vec![1024, 2048, 4096],
            depths: vec![10, 50, 90],
            seeds: 5,
            batch: 0,
            haystack: None,
        }
    }
}

impl NeedleSpec {
    /// Checks the lists.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        not_empty("lengths", self.lengths.is_empty())?;
        not_empty("depths", self.depths.is_empty())?;
        counted(self.seeds, self.batch)?;
        match self.depths.iter().find(|&&depth| depth > 100) {
            Some(depth) => {
                Err(Error::config("depths", format!("{depth} is more than 100 percent")))
            }
            None => Ok(()),
        }
    }

    /// Makes the prompts: every length, depth and seed, in this order, in `haystack`'s text
    /// or in generated prose.
    ///
    /// # Errors
    /// [`validate`](Self::validate)'s; [`Error::Document`] if the haystack is too short
    /// for a length; [`Error::Config`] if a length has no room for the question or
    /// exceeds the context; [`Error::ChatTemplate`], [`Error::Tokenizer`].
    pub fn questions(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
        haystack: Option<&Document>,
    ) -> Result<Questions> {
        self.validate()?;
        within(context, &self.lengths, self.kind.answer_tokens())?;
        let prompter = Prompter { tokenizer, template };
        let haystack = Haystack::new(prompter, haystack, Language::English)?;
        let maker = Maker { prompter, haystack, kind: self.kind };
        let mut list = Vec::new();
        for &length in &self.lengths {
            for &depth in &self.depths {
                for (_, seed) in grid(&[length], self.seeds, self.batch) {
                    list.push(maker.question(length, depth, seed)?);
                }
            }
        }
        Ok(Questions::new(self.kind.task(), list))
    }
}

struct Maker<'a> {
    prompter: Prompter<'a>,
    haystack: Haystack<'a>,
    kind: NeedleKind,
}

impl Maker<'_> {
    fn question(&self, length: usize, depth: usize, seed: usize) -> Result<Question> {
        let mut rng = Rng::new(seed as u64);
        for part in [length, depth] {
            rng = Rng::new(rng.bits() ^ part as u64);
        }
        let needles = self.needles(&mut rng, depth);
        let wording = Wording::new(self.kind, &needles);
        let (text, ids) = self.haystack.fit(length, seed, |hay, exact| {
            let mut placed = Vec::new();
            for needle in &needles {
                // A needle at the very end is as long as one in the middle, almost.
                let at = if exact { place(self.prompter, hay, needle.depth)? } else { hay.len() };
                placed.push((at, &needle.sentence));
            }
            placed.sort_by_key(|&(at, _)| at);
            let hay = insert(hay, &placed);
            let content = format!("{INSTRUCTION}\n\n{hay}\n\n{}", wording.question);
            self.prompter.build(&content, &wording.answer)
        })?;
        let several = matches!(self.kind, NeedleKind::MultiValue | NeedleKind::MultiQuery);
        let mut asked: Vec<&Needle> = needles.iter().collect();
        if several {
            asked.sort_by_key(|needle| needle.depth);
        } else {
            asked.truncate(1);
        }
        Ok(Question {
            id: format!("{length}/{depth}/{seed}"),
            length,
            depth: (!several).then_some(depth),
            seed,
            expected: asked.into_iter().map(|needle| needle.number.clone()).collect(),
            max_tokens: self.kind.answer_tokens(),
            text,
            ids,
            grade: match self.kind {
                NeedleKind::Single => Grade::FirstNumber,
                _ => Grade::Contains,
            },
        })
    }

    /// The needles; the one that is asked for, if it is one, comes first.
    fn needles(&self, rng: &mut Rng, depth: usize) -> Vec<Needle> {
        let count = if self.kind == NeedleKind::Single { 1 } else { NEEDLES };
        let mut keys: Vec<&str> = KEYS.to_vec();
        let mut needles: Vec<Needle> = Vec::new();
        while needles.len() < count {
            let number = (1_000_000 + rng.below(9_000_000)).to_string();
            if self.haystack.contains(&number) || needles.iter().any(|n| n.number == number) {
                continue;
            }
            let key = match (self.kind, needles.first()) {
                (NeedleKind::Single, _) => KEYS[0],
                (NeedleKind::MultiValue, Some(first)) => first.key,
                _ => keys.swap_remove(rng.below(keys.len())),
            };
            let sentence = match self.kind {
                NeedleKind::MultiValue => {
                    format!(
                        "One of the secret access codes for the {key} is {number}. Remember it."
                    )
                }
                _ => format!("The secret access code for the {key} is {number}. Remember it."),
            };
            // 100 percent itself is the text's end, not its beginning.
            let depth = match (depth + needles.len() * 100 / NEEDLES, depth) {
                (far, _) if far > 100 => far - 100,
                (near, _) => near,
            };
            needles.push(Needle { key, number, sentence, depth });
        }
        needles
    }
}

struct Needle {
    key: &'static str,
    number: String,
    sentence: String,
    /// Percent of the prose before it, at most.
    depth: usize,
}

/// The question and the beginning of its answer.
struct Wording {
    question: String,
    answer: String,
}

impl Wording {
    fn new(kind: NeedleKind, needles: &[Needle]) -> Self {
        let key = needles.first().map_or("", |needle| needle.key);
        let all = || {
            let keys: Vec<String> = needles.iter().map(|n| format!("the {}", n.key)).collect();
            match keys.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
                _ => keys.concat(),
            }
        };
        let (question, answer) = match kind {
            NeedleKind::Single | NeedleKind::MultiKey => (
                format!(
                    "What is the secret access code for the {key}? Answer with the number only."
                ),
                format!("The secret access code for the {key} is"),
            ),
            NeedleKind::MultiValue => (
                format!(
                    "What are all the secret access codes for the {key}? Answer with the {} numbers only.",
                    needles.len()
                ),
                format!("The secret access codes for the {key} are"),
            ),
            NeedleKind::MultiQuery => (
                format!(
                    "What are the secret access codes for {}? Answer with the {} numbers only.",
                    all(),
                    needles.len()
                ),
                format!("The secret access codes for {} are", all()),
            ),
        };
        Self { question, answer }
    }
}
