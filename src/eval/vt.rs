//! RULER's variable tracking: a chain of assignments hidden in a text, all names asked for.
//!
//! Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language
//! Models?" (2024). One chain of h hops: `VAR A = 12345`, `VAR B = VAR A`, …, in this order
//! and anywhere in the text; the answer names all h + 1 variables. The score is the share
//! of names contained. A worked example with names of three letters comes first, as in the
//! original; it can be left out.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::{Haystack, Language, insert, place, sentence_ends};
use super::options::{at_least, at_most, counted, grid, not_empty, within};
use super::prose::{Rng, prose};
use super::question::Question;
use crate::error::Result;
use crate::model::{ChatTemplate, Tokenizer};
use crate::rag::Document;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Tokens of an answer, at most; more if the right one needs more.
pub const ANSWER_TOKENS: usize = 30;

/// Words of the example's text. With question and answer it has some 430 tokens (SmolLM2's);
/// the original's has at most 500.
const EXAMPLE_WORDS: usize = 220;

/// Letters of a name.
const LETTERS: usize = 5;

/// Letters of a name in the example.
const EXAMPLE_LETTERS: usize = 3;

const INSTRUCTION: &str =
    "Memorize and track the chain of variable assignments that is hidden in the text.";

/// Which prompts to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VtSpec {
    /// Assignments of a variable to another.
    pub hops: usize,
    /// Leaves the worked example out.
    pub zero_shot: bool,
    /// Tokens of the whole prompts.
    pub lengths: Vec<usize>,
    /// Prompts for each length.
    pub seeds: usize,
    /// Which prompts: batches have none in common.
    pub batch: usize,
    /// The file with the text; without one it is generated, another for each seed.
    pub haystack: Option<PathBuf>,
}

impl Default for VtSpec {
    fn default() -> Self {
        let lengths = vec![1024, 2048, 4096];
        Self { hops: 4, zero_shot: false, lengths, seeds: 5, batch: 0, haystack: None }
    }
}

impl VtSpec {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the option.
    pub fn validate(&self) -> Result<()> {
        not_empty("lengths", self.lengths.is_empty())?;
        at_least("hops", self.hops, 1)?;
        at_most("hops", self.hops, 1000)?;
        counted(self.seeds, self.batch)
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
        within(context, &self.lengths, ANSWER_TOKENS)?;
        let prompter = Prompter { tokenizer, template };
        let haystack = Haystack::new(prompter, haystack, Language::English)?;
        let mut list = Vec::new();
        for (length, seed) in grid(&self.lengths, self.seeds, self.batch) {
            list.push(self.question(prompter, &haystack, length, seed)?);
            let max_tokens = list.last().map_or(0, |question| question.max_tokens);
            within(context, &[length], max_tokens)?;
        }
        Ok(Questions::new("vt", list))
    }

    fn question(
        &self,
        prompter: Prompter<'_>,
        haystack: &Haystack<'_>,
        length: usize,
        seed: usize,
    ) -> Result<Question> {
        let mut rng = Rng::new(seed as u64);
        rng = Rng::new(rng.bits() ^ length as u64);
        let chain = Chain::new(&mut rng, self.hops, LETTERS, &|name| haystack.contains(name));
        let mut depths: Vec<usize> = (0..=self.hops).map(|_| rng.below(101)).collect();
        depths.sort_unstable();
        let example = match self.zero_shot {
            true => String::new(),
            false => example(&mut rng, self.hops, &chain.value),
        };
        let (text, ids) = haystack.fit(length, seed, |hay, exact| {
            let mut placed = Vec::new();
            for (statement, &depth) in chain.statements.iter().zip(&depths) {
                let at = if exact { place(prompter, hay, depth)? } else { hay.len() };
                placed.push((at, statement));
            }
            let content = example.clone() + &chain.question(&insert(hay, &placed));
            prompter.build(&content, &chain.answer())
        })?;
        let right = prompter.count(&format!(" {}", chain.names.join(", VAR ")))?;
        Ok(Question {
            id: format!("{length}/{seed}"),
            length,
            depth: None,
            seed,
            max_tokens: ANSWER_TOKENS.max(right + 4),
            expected: chain.names,
            text,
            ids,
            grade: Grade::Contains,
        })
    }
}

/// A question with its answer, about a text and a value of its own.
fn example(rng: &mut Rng, hops: usize, other_value: &str) -> String {
    let chain = Chain::new(rng, hops.min(10), EXAMPLE_LETTERS, &|text| text == other_value);
    let text = prose(rng.bits(), EXAMPLE_WORDS);
    let ends: Vec<usize> = sentence_ends(&text).collect();
    let mut places: Vec<usize> = chain.names.iter().map(|_| ends[rng.below(ends.len())]).collect();
    places.sort_unstable();
    let placed: Vec<_> = places.into_iter().zip(&chain.statements).collect();
    let names = chain.names.join(", VAR ");
    format!("{}\n{} {names}.\n\n", chain.question(&insert(&text, &placed)), chain.answer())
}

/// Variables that all have one value.
struct Chain {
    value: String,
    names: Vec<String>,
    statements: Vec<String>,
}

impl Chain {
    /// A value of five digits and names of so many capitals, none of which is `taken`.
    fn new(rng: &mut Rng, hops: usize, letters: usize, taken: &dyn Fn(&str) -> bool) -> Self {
        let value = loop {
            let value = (10_000 + rng.below(90_000)).to_string();
            if !taken(&value) {
                break value;
            }
        };
        let mut names: Vec<String> = Vec::new();
        while names.len() <= hops {
            let name: String =
                (0..letters).map(|_| char::from(b'A' + rng.below(26) as u8)).collect();
            if !names.contains(&name) && !taken(&name) {
                names.push(name);
            }
        }
        let mut statements = vec![format!("VAR {} = {value}.", names[0])];
        statements.extend(names.windows(2).map(|two| format!("VAR {} = VAR {}.", two[1], two[0])));
        Self { value, names, statements }
    }

    /// Asks for the names, after a text with the statements in it.
    fn question(&self, text: &str) -> String {
        format!(
            "{INSTRUCTION}\n\n{text}\n\nQuestion: Find all variables that are assigned the \
             value {} in the text above.",
            self.value
        )
    }

    /// The answer up to the first name.
    fn answer(&self) -> String {
        format!(
            "Answer: In the chain of variable assignments in the text above, {} variables are \
             assigned the value {}. They are: VAR",
            self.names.len(),
            self.value
        )
    }
}
