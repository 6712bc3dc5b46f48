//! RULER's aggregation tasks: which words of a long list are most frequent.
//!
//! Hsieh et al., "RULER" (2024). *Common words*: a numbered list of words in random order,
//! ten of which are there 30 times and the others 3 times (6 and 1 below 4,096 tokens);
//! the ten are asked for, after a worked example. *Frequent words*: made-up words whose
//! frequencies fall with the square of their rank (zeta distribution, α = 2), the first
//! being dots, which are noise; the three after it are asked for. The score is the share
//! of the words that the answer contains.

use super::ask::{Prompter, Questions};
use super::grade::Grade;
use super::haystack::largest;
use super::options::{counted, grid, not_empty, within};
use super::prose::Rng;
use super::question::Question;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Tokenizer};
use serde::{Deserialize, Serialize};

/// Tokens of an answer of the common words, at most.
pub const COMMON_ANSWER_TOKENS: usize = 120;
/// Tokens of an answer of the frequent words, at most.
pub const FREQUENT_ANSWER_TOKENS: usize = 50;
/// Common words in a list.
pub const COMMON: usize = 10;
/// Frequent words that are asked for.
pub const FREQUENT: usize = 3;

/// Which lists of words to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WordsSpec {
    /// Tokens of the whole prompts.
    pub lengths: Vec<usize>,
    /// Prompts for each length.
    pub seeds: usize,
    /// Which prompts: batches have none in common.
    pub batch: usize,
}

impl Default for WordsSpec {
    fn default() -> Self {
        Self { lengths: vec![1024, 2048, 4096], seeds: 5, batch: 0 }
    }
}

/// Makes the prompt of a length and a seed.
type Make = fn(Prompter<'_>, usize, usize) -> Result<Question>;

impl WordsSpec {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        not_empty("lengths", self.lengths.is_empty())?;
        counted(self.seeds, self.batch)
    }

    /// Makes the prompts about common words: every length and seed, in this order.
    ///
    /// # Errors
    /// [`Error::Config`] if a length has no room for the words or exceeds the context;
    /// [`Error::ChatTemplate`], [`Error::Tokenizer`].
    pub fn common(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
    ) -> Result<Questions> {
        let list = self.questions(tokenizer, template, context, COMMON_ANSWER_TOKENS, common)?;
        Ok(Questions::new("cwe", list))
    }

    /// Makes the prompts about frequent words, likewise.
    ///
    /// # Errors
    /// As [`common`](Self::common).
    pub fn frequent(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
    ) -> Result<Questions> {
        let list =
            self.questions(tokenizer, template, context, FREQUENT_ANSWER_TOKENS, frequent)?;
        Ok(Questions::new("fwe", list))
    }

    fn questions(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        context: usize,
        answer_tokens: usize,
        make: Make,
    ) -> Result<Vec<Question>> {
        self.validate()?;
        within(context, &self.lengths, answer_tokens)?;
        let prompter = Prompter { tokenizer, template };
        grid(&self.lengths, self.seeds, self.batch)
            .map(|(length, seed)| make(prompter, length, seed))
            .collect()
    }
}

/// One list of common and other words.
fn common(prompter: Prompter<'_>, length: usize, seed: usize) -> Result<Question> {
    const QUESTION: &str = "Question: What are the 10 most common words in the above list?";
    const ANSWER: &str = "Answer: The 10 words that appear most often in the list are:";
    const INSTRUCTION: &str = "Below is a numbered list of words, some of which appear more often \
        than others. Memorize the ones that appear most often.";
    let mut rng = Rng::new(seed as u64);
    rng = Rng::new(rng.bits() ^ length as u64);
    // The example has words of its own, so that it answers nothing.
    let pool = pool(&mut rng, length);
    let (example, pool) = pool.split_at(2 * COMMON);
    let (mine, others) = pool.split_at(COMMON);
    let order = rng.bits();
    let shown = format!(
        "{INSTRUCTION}\n{}\n{QUESTION}\n{ANSWER} {}",
        numbered(&example[..COMMON], 3, &example[COMMON..], 1, order),
        enumerated(&example[..COMMON])
    );
    let (many, few) = if length < 4096 { (6, 1) } else { (30, 3) };
    let build = |n: usize| {
        let list = numbered(mine, many, &others[..n], few, order);
        prompter.build(&format!("{shown}\n\n{INSTRUCTION}\n{list}\n{QUESTION}"), ANSWER)
    };
    let (text, ids) = longest(length, others.len(), build)?;
    Ok(Question {
        id: format!("{length}/{seed}"),
        length,
        depth: None,
        seed,
        expected: mine.to_vec(),
        max_tokens: COMMON_ANSWER_TOKENS,
        text,
        ids,
        grade: Grade::Contains,
    })
}

/// One text of made-up words.
fn frequent(prompter: Prompter<'_>, length: usize, seed: usize) -> Result<Question> {
    const INSTRUCTION: &str = "Read the following coded text and keep track of how often each \
        coded word appears. Find the three most frequent coded words.";
    const QUESTION: &str = "Question: Without any explanation, and leaving the dots '...' aside: \
        what are the three most frequent words in the coded text above?";
    const ANSWER: &str = "Answer: The three most frequent words in the coded text above are:";
    let mut rng = Rng::new(seed as u64);
    rng = Rng::new(rng.bits() ^ length as u64);
    let mut words = vec!["...".to_owned()];
    while words.len() < VOCABULARY {
        let word: String = (0..6).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let order = rng.bits();
    let build = |n: usize| {
        let mut text = Vec::new();
        for (word, count) in words.iter().zip(zeta_counts(n)) {
            text.extend(std::iter::repeat_n(word.as_str(), count));
        }
        shuffle(&mut text, &mut Rng::new(order));
        prompter.build(&format!("{INSTRUCTION}\n{}\n{QUESTION}", text.join(" ")), ANSWER)
    };
    // No word is less than a token; with fewer words the three are not told apart.
    let (text, ids) = longest(length, length, |n| build(n + LEAST_WORDS))?;
    Ok(Question {
        id: format!("{length}/{seed}"),
        length,
        depth: None,
        seed,
        expected: words[1..=FREQUENT].to_vec(),
        max_tokens: FREQUENT_ANSWER_TOKENS,
        text,
        ids,
        grade: Grade::Contains,
    })
}

/// Different words in a coded text, at most.
const VOCABULARY: usize = 2000;
/// Words of a coded text, at least: the ranks 2 to 5 are then there 15, 6, 3 and 2 times.
const LEAST_WORDS: usize = 100;

/// How often the words of rank 1, 2, … are there among `n`: ⌊n · k⁻² / ζ(2)⌋ times.
fn zeta_counts(n: usize) -> impl Iterator<Item = usize> {
    let zeta = std::f64::consts::PI.powi(2) / 6.0;
    (1..).map(move |k: usize| (n as f64 / (k * k) as f64 / zeta) as usize).take_while(|&c| c > 0)
}

/// The longest prompt of at most `length` tokens, of 0 … `end` things.
fn longest(
    length: usize,
    end: usize,
    build: impl Fn(usize) -> Result<(String, Vec<u32>)>,
) -> Result<(String, Vec<u32>)> {
    let least = build(0)?;
    if least.1.len() > length {
        let what =
            format!("{length} is too short: the shortest list takes {} tokens", least.1.len());
        return Err(Error::config("lengths", what));
    }
    let n = largest(end + 1, |n| Ok(build(n)?.1.len() <= length))?;
    // Another order of the words may take a few tokens more or less.
    for n in (0..=n).rev() {
        let built = build(n)?;
        if built.1.len() <= length {
            return Ok(built);
        }
    }
    Ok(least)
}

/// `1. word 2. word …`, in an order that depends on `order`.
fn numbered(often: &[String], many: usize, seldom: &[String], few: usize, order: u64) -> String {
    let repeat = |words: &[String], times: usize| -> Vec<String> {
        words.iter().flat_map(|word| std::iter::repeat_n(word.clone(), times)).collect()
    };
    let mut list = [repeat(often, many), repeat(seldom, few)].concat();
    shuffle(&mut list, &mut Rng::new(order));
    enumerated(&list)
}

fn enumerated(words: &[String]) -> String {
    let entry = |(i, word): (usize, &String)| format!("{}. {word}", i + 1);
    words.iter().enumerate().map(entry).collect::<Vec<_>>().join(" ")
}

/// Fisher and Yates.
fn shuffle<T>(list: &mut [T], rng: &mut Rng) {
    for i in (1..list.len()).rev() {
        list.swap(i, rng.below(i + 1));
    }
}

/// Different words for a list of `tokens`: nouns in random order, then, for long lists,
/// made-up words. None of the first 30, which are asked for or shown, is part of another.
fn pool(rng: &mut Rng, tokens: usize) -> Vec<String> {
    let mut nouns: Vec<&str> = NOUNS.split_whitespace().collect();
    shuffle(&mut nouns, rng);
    let mut pool: Vec<String> = Vec::new();
    let fits = |pool: &[String], word: &str| {
        let alike = |other: &String| other.contains(word) || word.contains(other.as_str());
        !pool.iter().take(3 * COMMON).any(alike) && !pool.iter().any(|other| other == word)
    };
    for noun in nouns {
        if fits(&pool, noun) {
            pool.push(noun.to_owned());
        }
    }
    // At least four tokens an entry, three entries a word.
    while pool.len() < tokens / 12 {
        let syllable = |rng: &mut Rng| {
            let (consonants, vowels) = ("bdfgklmnprstvz".as_bytes(), "aeiou".as_bytes());
            [consonants[rng.below(14)], vowels[rng.below(5)]].map(char::from)
        };
        let word: String = (0..4).flat_map(|_| syllable(rng)).collect();
        if fits(&pool, &word) {
            pool.push(word);
        }
    }
    pool
}

/// Everyday words.
const NOUNS: &str = "\
    apple arrow autumn basket bell bench bird blanket boat bone book bottle bowl branch bread \
    bridge broom brush bucket butter button cabin camel camera candle canvas carpet carrot castle \
    ceiling cellar chain chair cheese cherry chicken chimney church circle clock cloud coat coffee \
    collar copper corner cotton couch cradle cream crown curtain cushion dancer desert diamond \
    dinner doctor dollar donkey door dragon drawer dress drum eagle engine envelope evening \
    fabric falcon farmer feather fence ferry field finger flag flame flower flute forest fork \
    fountain fox frame friend frost fruit garden garlic gate ghost giant ginger glass glove goat \
    gold goose grain grape grass guitar hammer harbor hat hedge helmet honey horse hotel hunter \
    island ivory jacket jewel judge juice jungle kettle kitchen kitten knife ladder lamp lantern \
    lawyer leather lemon letter library lion lizard lobster lock magnet market mask meadow medal \
    melon mirror monkey morning mountain mouse museum mushroom music nail needle nest noodle nose \
    oak ocean olive onion orange orchard oven owl oyster painter palace panda paper parrot pasture \
    peach pearl pencil pepper piano picture pigeon pillow pilot pirate planet plate pocket poet \
    pond potato powder prince puppet purse puzzle queen rabbit radio rain raven ribbon rice river \
    robin rocket roof rope rose saddle sailor salad salmon salt sandal scarf school scissors \
    screen shadow sheep shelf shirt shoe shovel silver singer sister sketch soap sofa soldier \
    spider spoon spring square squirrel stable statue stone stool storm stove street sugar summer \
    swan sweater sword table tailor teacher temple tent theater thread throne thunder tiger timber \
    toast tomato tower train treasure trumpet tulip tunnel turtle umbrella uncle valley velvet \
    village vinegar violin wagon wallet walnut water weaver whale wheat wheel whistle widow willow \
    window winter wizard wolf wool yard zebra";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_rulers() {
        let counts: Vec<usize> = zeta_counts(1000).collect();
        // 1000 · 6/π² = 607.9; a quarter, a ninth, a sixteenth of it, …
        assert_eq!(counts[..4], [607, 151, 67, 37]);
        assert_eq!((counts.len(), counts[23]), (24, 1));
        let least: Vec<usize> = zeta_counts(LEAST_WORDS).take(5).collect();
        assert_eq!(least, [60, 15, 6, 3, 2]);
    }

    #[test]
    fn lists_hold_what_they_should() {
        let words: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let list = numbered(&words[..1], 3, &words[1..], 2, 5);
        assert_eq!(list.matches(" a").count(), 3);
        assert_eq!((list.matches(" b").count(), list.matches(" c").count()), (2, 2));
        assert!(list.starts_with("1. ") && list.contains(" 7. "));
        assert_ne!(list, numbered(&words[..1], 3, &words[1..], 2, 6));
    }

    #[test]
    fn words_are_told_apart() {
        let words = pool(&mut Rng::new(1), 20_000);
        assert!(words.len() >= 20_000 / 12);
        for (i, word) in words.iter().take(30).enumerate() {
            let alike = |(j, other): (usize, &String)| i != j && other.contains(word.as_str());
            assert!(!words.iter().enumerate().any(alike), "{word}");
        }
        let mut sorted = words.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), words.len());
    }
}
