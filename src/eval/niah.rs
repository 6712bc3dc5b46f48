//! A needle in a haystack: a 7-digit number hidden in prose, asked for at the end.
//!
//! ```text
//! ⟨user⟩ instruction · prose … NEEDLE … prose · question ⟨assistant⟩ answer's beginning ▸ greedy
//! ```
//!
//! The answer's beginning is part of the prompt, so that a small model need not
//! guess the form of the answer. Prompts depend on the tokenizer, the template
//! and the options only, so any other runtime can be given the same ids.

use super::prose::{Rng, prose};
use super::{Memory, perplexity};
use crate::cache::SeqId;
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::model::{ChatTemplate, Message, Tokenizer};
use crate::rag::Document;
use crate::sample::{Sampler, SamplingParams};
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of an answer, at most.
pub const ANSWER_TOKENS: usize = 24;

const INSTRUCTION: &str = "Read the text and answer the question at its end.";
const QUESTION: &str = "What is the secret access code for the vault? Answer with the number only.";
const ANSWER: &str = "The secret access code for the vault is";

fn needle(key: &str) -> String {
    format!("The secret access code for the vault is {key}. Remember it.")
}

/// Which prompts to make.
#[derive(Clone, Debug)]
pub struct NiahOptions {
    /// Tokens of the whole prompts.
    pub lengths: Vec<usize>,
    /// Where the needle lies, in percent of the prose's tokens.
    pub depths: Vec<usize>,
    /// Prompts for each length and depth.
    pub seeds: usize,
    /// The prose; `None`: generated, another for each seed.
    pub haystack: Option<Document>,
}

impl NiahOptions {
    /// Checks the lists against a model's context.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self, context: usize) -> Result<()> {
        for (field, empty) in
            [("lengths", self.lengths.is_empty()), ("depths", self.depths.is_empty())]
        {
            if empty {
                return Err(Error::config(field, "the list is empty; name at least one"));
            }
        }
        if self.seeds == 0 {
            return Err(Error::config("seeds", "must be at least 1"));
        }
        if let Some(depth) = self.depths.iter().find(|&&depth| depth > 100) {
            return Err(Error::config("depths", format!("{depth} is more than 100 percent")));
        }
        let most = context.saturating_sub(ANSWER_TOKENS);
        if let Some(length) = self.lengths.iter().find(|&&length| length > most) {
            let what = format!(
                "{length} tokens and an answer of {ANSWER_TOKENS} exceed the model's context of \
                 {context}; ask for at most {most}"
            );
            return Err(Error::config("lengths", what));
        }
        Ok(())
    }
}

/// One prompt.
#[derive(Clone, Debug, Serialize)]
pub struct Prompt {
    /// Tokens asked for; `ids` has at most as many.
    pub length: usize,
    /// Percent of the prose before the needle, at most.
    pub depth: usize,
    /// Which of the prompts of this length and depth.
    pub seed: usize,
    /// The number to be found.
    pub key: String,
    /// The whole prompt, special tokens spelled out.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// Makes the prompts: every length, depth and seed, in this order.
///
/// # Errors
/// [`NiahOptions::validate`]'s; [`Error::Document`] if the haystack is too short
/// for a length; [`Error::Config`] if a length has no room for the question;
/// [`Error::ChatTemplate`], [`Error::Tokenizer`].
pub fn prompts(
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    context: usize,
    options: &NiahOptions,
) -> Result<Vec<Prompt>> {
    options.validate(context)?;
    let haystack = match &options.haystack {
        Some(text) => Some((text, tokenizer.encode_plain(text.text())?.len())),
        None => None,
    };
    let maker = Maker { tokenizer, template, haystack };
    let mut prompts = Vec::new();
    for &length in &options.lengths {
        for &depth in &options.depths {
            for seed in 0..options.seeds {
                prompts.push(maker.prompt(length, depth, seed)?);
            }
        }
    }
    Ok(prompts)
}

struct Maker<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    /// The supplied text and its tokens.
    haystack: Option<(&'a Document, usize)>,
}

impl Maker<'_> {
    fn prompt(&self, length: usize, depth: usize, seed: usize) -> Result<Prompt> {
        let key = self.key(length, depth, seed);
        let prompt = |(text, ids)| Prompt { length, depth, seed, key: key.clone(), text, ids };
        for hay in self.haystacks(length, seed) {
            let ends: Vec<usize> = word_ends(&hay).take(length).collect();
            // A needle at the very end is as long as one in the middle, almost.
            let fits = |words: usize| -> Result<bool> {
                let hay = cut(&hay, &ends, words);
                Ok(self.assemble(&hay, hay.len(), &key)?.1.len() <= length)
            };
            if !fits(0)? {
                let least = self.assemble("", 0, &key)?.1.len();
                let what = format!("{length} is too short: the question alone takes {least}");
                return Err(Error::config("lengths", what));
            }
            if fits(ends.len())? {
                continue;
            }
            let (mut words, mut too_many) = (0, ends.len());
            while words + 1 < too_many {
                let middle = words.midpoint(too_many);
                *if fits(middle)? { &mut words } else { &mut too_many } = middle;
            }
            for words in (0..=ends.len().min(words + 2)).rev() {
                let hay = cut(&hay, &ends, words);
                let built = self.assemble(&hay, self.place(&hay, depth)?, &key)?;
                if built.1.len() <= length {
                    return Ok(prompt(built));
                }
            }
        }
        // Only a supplied text can be too short.
        let (source, tokens) = self.haystack.map_or(("prose", 0), |(hay, n)| (hay.source(), n));
        Err(Error::Document {
            path: source.into(),
            what: format!("has {tokens} tokens, too few for a prompt of {length}"),
            remedy: "name a longer haystack, or ask for shorter --lengths".into(),
        })
    }

    /// A number that the supplied text does not hold.
    fn key(&self, length: usize, depth: usize, seed: usize) -> String {
        let mut rng = Rng::new(seed as u64);
        for part in [length, depth] {
            rng = Rng::new(rng.bits() ^ part as u64);
        }
        loop {
            let key = (1_000_000 + rng.below(9_000_000)).to_string();
            if !self.haystack.is_some_and(|(hay, _)| hay.text().contains(&key)) {
                return key;
            }
        }
    }

    /// The prose to cut from, by preference. A supplied text begins at some
    /// sentence, another for each seed, if enough is left after it.
    fn haystacks(&self, length: usize, seed: usize) -> Vec<String> {
        let Some((document, tokens)) = self.haystack else {
            // No word is less than a token.
            return vec![prose(seed as u64, length)];
        };
        let text = document.text();
        let needed = 1.1 * length as f64 / tokens.max(1) as f64;
        let spare = (text.len() as f64 * (1.0 - needed)) as usize;
        let mut starts = vec![0];
        starts.extend(sentence_ends(text).take_while(|&end| end <= spare));
        let start = match seed {
            0 => 0,
            _ => starts[Rng::new(seed as u64).below(starts.len())],
        };
        vec![text[start..].trim_start().to_owned(), text.to_owned()]
    }

    /// Where the needle goes: the last sentence end at or before `depth` percent
    /// of the tokens, or the beginning.
    fn place(&self, hay: &str, depth: usize) -> Result<usize> {
        let tokens =
            |end: usize| -> Result<usize> { Ok(self.tokenizer.encode_plain(&hay[..end])?.len()) };
        let limit = tokens(hay.len())? * depth;
        let ends: Vec<usize> = [0].into_iter().chain(sentence_ends(hay)).collect();
        let (mut before, mut beyond) = (0, ends.len());
        while before + 1 < beyond {
            let middle = before.midpoint(beyond);
            let within = tokens(ends[middle])? * 100 <= limit;
            *if within { &mut before } else { &mut beyond } = middle;
        }
        Ok(ends[before])
    }

    /// Text and ids of the prompt with the needle at byte `at` of the prose.
    fn assemble(&self, hay: &str, at: usize, key: &str) -> Result<(String, Vec<u32>)> {
        let (before, after) = hay.split_at(at);
        let hay = [before, &needle(key), after.trim_start()];
        let hay: Vec<&str> = hay.into_iter().filter(|part| !part.is_empty()).collect();
        let content = format!("{INSTRUCTION}\n\n{}\n\n{QUESTION}", hay.join(" "));
        let Some(template) = self.template else {
            let text = format!("{content}\n{ANSWER}");
            let mut ids: Vec<u32> = perplexity::leading_bos(self.tokenizer)?.into_iter().collect();
            ids.extend(self.tokenizer.encode_plain(&text)?);
            return Ok((text, ids));
        };
        let turn = |content: &str| template.render(&[Message::new("user", content)], true);
        let guarded = turn(&self.tokenizer.guard(&content))? + ANSWER;
        Ok((turn(&content)? + ANSWER, self.tokenizer.encode_chat(&guarded)?))
    }
}

/// Byte offsets of the ends of words.
fn word_ends(text: &str) -> impl Iterator<Item = usize> {
    let space = |at: usize| text[at..].chars().next().is_none_or(char::is_whitespace);
    let letters = text.char_indices().filter(|(_, c)| !c.is_whitespace());
    letters.map(|(at, c)| at + c.len_utf8()).filter(move |&end| space(end))
}

/// The first `words` words, closed as a sentence.
fn cut(text: &str, ends: &[usize], words: usize) -> String {
    let Some(last) = words.checked_sub(1) else { return String::new() };
    let text = &text[..ends[last]];
    if sentence_ends(text).last() == Some(text.len()) {
        return text.to_owned();
    }
    let open = |c: char| !c.is_alphanumeric();
    text.trim_end_matches(open).to_owned() + "."
}

/// Byte offsets of the ends of sentences: after a full stop, exclamation or
/// question mark and closing quotes or brackets, where white space or nothing
/// follows.
fn sentence_ends(text: &str) -> impl Iterator<Item = usize> {
    let mut ended = false;
    let mut letters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        loop {
            let (at, c) = letters.next()?;
            ended = match c {
                '.' | '!' | '?' | '。' | '！' | '？' => true,
                '"' | '\'' | ')' | ']' | '”' | '’' | '»' => ended,
                _ => false,
            };
            if ended && letters.peek().is_none_or(|(_, next)| next.is_whitespace()) {
                return Some(at + c.len_utf8());
            }
        }
    })
}

/// What the model said.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// As [`Prompt::length`].
    pub length: usize,
    /// As [`Prompt::depth`].
    pub depth: usize,
    /// As [`Prompt::seed`].
    pub seed: usize,
    /// The number to be found.
    pub key: String,
    /// The generated text.
    pub answer: String,
    /// Whether the first 7-digit number in it is the key.
    pub hit: bool,
}

/// Answers to a list of prompts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Needles {
    /// Needles found.
    pub hits: usize,
    /// Prompts asked.
    pub prompts: usize,
    /// The cache after the answer that left most in it.
    #[serde(flatten)]
    pub memory: Memory,
    /// Each answer.
    pub answers: Vec<Answer>,
}

/// Asks every prompt in the session's configuration; `progress` is told the
/// prompts done so far.
///
/// # Errors
/// [`Error::ContextTooLong`], [`Error::KvBudget`], [`Error::Cancelled`].
pub fn niah(
    session: &mut Session,
    prompts: &[Prompt],
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Needles> {
    let mut result = Needles::default();
    for prompt in prompts {
        session.admit(prompt.ids.len(), ANSWER_TOKENS)?;
        let seq = session.create();
        let answered = greedy(session, seq, &prompt.ids, cancel);
        let (kv_bytes, tokens) = (session.cache().held_bytes(), session.cache().len(seq)?);
        session.free(seq)?;
        let answer = session.model().tokenizer.decode(&answered?);
        if kv_bytes > result.memory.kv_bytes {
            result.memory = Memory { kv_bytes, kv_bytes_16_bit: session.bytes_16_bit(tokens) };
        }
        let hit = first_number(&answer) == Some(prompt.key.as_str());
        let Prompt { length, depth, seed, .. } = *prompt;
        let key = prompt.key.clone();
        result.hits += usize::from(hit);
        result.prompts += 1;
        result.answers.push(Answer { length, depth, seed, key, answer, hit });
        progress(result.prompts);
    }
    Ok(result)
}

/// The most probable continuation, token by token.
fn greedy(
    session: &mut Session,
    seq: SeqId,
    prompt: &[u32],
    cancel: &AtomicBool,
) -> Result<Vec<u32>> {
    let mut sampler = Sampler::new(SamplingParams::default())?;
    let mut ids = Vec::new();
    session.prefill(seq, prompt, cancel)?;
    loop {
        let mut next = 0;
        session.logits(0..1, |_, logits| {
            next = sampler.sample(logits, &[])?;
            Ok(())
        })?;
        if session.model().tokenizer.eos_ids().contains(&next) {
            return Ok(ids);
        }
        ids.push(next);
        if ids.len() == ANSWER_TOKENS {
            return Ok(ids);
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        session.step(seq, &[next], &[0])?;
    }
}

/// The first number of exactly seven digits.
pub fn first_number(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_and_words_end_where_readers_think() {
        let text = "One v1.2 here. \"Two?\" Three";
        let parts = |ends: Vec<usize>| -> Vec<&str> { ends.iter().map(|&e| &text[..e]).collect() };
        assert_eq!(
            parts(sentence_ends(text).collect()),
            ["One v1.2 here.", "One v1.2 here. \"Two?\""]
        );
        let ends: Vec<usize> = word_ends(text).collect();
        assert_eq!(parts(ends.clone())[..2], ["One", "One v1.2"]);
        assert_eq!(cut(text, &ends, 0), "");
        assert_eq!(cut(text, &ends, 3), "One v1.2 here.");
        assert_eq!(cut(text, &ends, 4), "One v1.2 here. \"Two?\"");
        assert_eq!(cut(text, &ends, 5), "One v1.2 here. \"Two?\" Three.");
    }

    #[test]
    fn a_number_has_exactly_seven_digits() {
        assert_eq!(first_number("12345678 and 1234567."), Some("1234567"));
        assert_eq!(first_number("1234567890"), None);
        assert_eq!(first_number("is 7654321, not 1234567"), Some("7654321"));
    }
}
