//! The text that things are hidden in: a document of the user's, or generated prose.

use super::ask::Prompter;
use super::options::named;
use super::prose::{Rng, prose};
use super::prose_zh::prose_zh;
use crate::error::{Error, Result};
use crate::rag::Document;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The language of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Language {
    /// English: texts are cut between words.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Chinese: texts are cut between characters.
    #[serde(rename = "zh")]
    Chinese,
}

impl FromStr for Language {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        named("language", name)
    }
}

/// Text to cut from.
pub(super) struct Haystack<'a> {
    /// The supplied text and its tokens.
    document: Option<(&'a Document, usize)>,
    language: Language,
}

impl<'a> Haystack<'a> {
    /// `document`, or prose in `language`, another for each seed.
    pub fn new(
        prompter: Prompter<'_>,
        document: Option<&'a Document>,
        language: Language,
    ) -> Result<Self> {
        let document = match document {
            Some(document) => Some((document, prompter.count(document.text())?)),
            None => None,
        };
        Ok(Self { document, language })
    }

    /// Whether the supplied text holds `text`; generated prose holds no digits, no
    /// capitals within words and no signs.
    pub fn contains(&self, text: &str) -> bool {
        self.document.is_some_and(|(document, _)| document.text().contains(text))
    }

    /// The longest beginning of the text with which a prompt has at most `length` tokens.
    ///
    /// `build` makes the prompt; its second argument is false while the length is
    /// searched for, when what is hidden may lie anywhere, and true at the end.
    ///
    /// # Errors
    /// [`Error::Config`] if nothing fits, [`Error::Document`] if the text is too short.
    pub fn fit(
        &self,
        length: usize,
        seed: usize,
        mut build: impl FnMut(&str, bool) -> Result<(String, Vec<u32>)>,
    ) -> Result<(String, Vec<u32>)> {
        for text in self.candidates(length, seed) {
            let ends: Vec<usize> = self.unit_ends(&text).take(self.units(length)).collect();
            let mut fits = |units: usize| -> Result<bool> {
                Ok(build(&cut(&text, &ends, units), false)?.1.len() <= length)
            };
            if !fits(0)? {
                let least = build("", false)?.1.len();
                let what = format!("{length} is too short: the question alone takes {least}");
                return Err(Error::config("lengths", what));
            }
            if fits(ends.len())? {
                continue;
            }
            let units = largest(ends.len(), fits)?;
            // What is hidden may take a token more in one place than in another.
            for units in (0..=ends.len().min(units + 2)).rev() {
                let built = build(&cut(&text, &ends, units), true)?;
                if built.1.len() <= length {
                    return Ok(built);
                }
            }
        }
        // Only a supplied text can be too short.
        let (source, tokens) = self.document.map_or(("prose", 0), |(text, n)| (text.source(), n));
        Err(Error::Document {
            path: source.into(),
            what: format!("has {tokens} tokens, too few for a prompt of {length}"),
            remedy: "name a longer haystack, or ask for shorter --lengths".into(),
        })
    }

    /// The texts to cut from, by preference. A supplied text begins at some sentence,
    /// another for each seed, if enough is left after it.
    fn candidates(&self, length: usize, seed: usize) -> Vec<String> {
        let Some((document, tokens)) = self.document else {
            return vec![match self.language {
                Language::English => prose(seed as u64, self.units(length)),
                Language::Chinese => prose_zh(seed as u64, self.units(length)),
            }];
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

    /// Words or characters that take `tokens` at least.
    fn units(&self, tokens: usize) -> usize {
        match self.language {
            // No word is less than a token.
            Language::English => tokens,
            // Tokens of several characters are common, longer ones than three are not.
            Language::Chinese => 3 * tokens,
        }
    }

    fn unit_ends<'t>(&self, text: &'t str) -> Box<dyn Iterator<Item = usize> + 't> {
        match self.language {
            Language::English => Box::new(word_ends(text)),
            Language::Chinese => Box::new(char_ends(text)),
        }
    }
}

/// The largest n for which `fits` holds, if it holds for 0, not for `end`, and never
/// again once it has failed.
pub(super) fn largest(end: usize, mut fits: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    let (mut most, mut too_many) = (0, end);
    while most + 1 < too_many {
        let middle = most.midpoint(too_many);
        *if fits(middle)? { &mut most } else { &mut too_many } = middle;
    }
    Ok(most)
}

/// Where a thing goes: the last sentence end at or before `depth` percent of the
/// tokens, or the beginning.
pub(super) fn place(prompter: Prompter<'_>, hay: &str, depth: usize) -> Result<usize> {
    let limit = prompter.count(hay)? * depth;
    let ends: Vec<usize> = [0].into_iter().chain(sentence_ends(hay)).collect();
    let within = |index: usize| Ok(prompter.count(&hay[..ends[index]])? * 100 <= limit);
    Ok(ends[largest(ends.len(), within)?])
}

/// `hay` with sentences of their own put in at byte offsets, which ascend.
pub(super) fn insert(hay: &str, things: &[(usize, impl fmt::Display)]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = hay;
    for (index, (at, thing)) in things.iter().enumerate() {
        let (before, after) = rest.split_at(at - (hay.len() - rest.len()));
        parts.push(if index > 0 { before.trim_start() } else { before }.to_owned());
        parts.push(thing.to_string());
        rest = after;
    }
    parts.push(if things.is_empty() { rest } else { rest.trim_start() }.to_owned());
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

/// Byte offsets of the ends of words.
pub(super) fn word_ends(text: &str) -> impl Iterator<Item = usize> {
    let space = |at: usize| text[at..].chars().next().is_none_or(char::is_whitespace);
    let letters = text.char_indices().filter(|(_, c)| !c.is_whitespace());
    letters.map(|(at, c)| at + c.len_utf8()).filter(move |&end| space(end))
}

/// Byte offsets of the ends of characters.
pub(super) fn char_ends(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, c)| at + c.len_utf8())
}

/// The first `units` words or characters, closed as a sentence.
fn cut(text: &str, ends: &[usize], units: usize) -> String {
    let Some(last) = units.checked_sub(1) else { return String::new() };
    let text = &text[..ends[last]];
    if sentence_ends(text).last() == Some(text.len()) {
        return text.to_owned();
    }
    let text = text.trim_end_matches(|c: char| !c.is_alphanumeric());
    let stop = if text.ends_with(|c: char| c >= '\u{3400}') { "。" } else { "." };
    text.to_owned() + stop
}

/// Byte offsets of the ends of sentences: after a full stop, exclamation or
/// question mark and closing quotes or brackets, where white space or nothing
/// follows; after those of Chinese whatever follows.
pub(super) fn sentence_ends(text: &str) -> impl Iterator<Item = usize> {
    let (mut ended, mut wide) = (false, false);
    let mut letters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        loop {
            let (at, c) = letters.next()?;
            (ended, wide) = match c {
                '.' | '!' | '?' => (true, false),
                '。' | '！' | '？' => (true, true),
                _ if closes(c) => (ended, wide),
                _ => (false, false),
            };
            let over = letters.peek().is_none_or(|&(_, next)| {
                next.is_whitespace() || (wide && !closes(next) && !"。！？".contains(next))
            });
            if ended && over {
                return Some(at + c.len_utf8());
            }
        }
    })
}

fn closes(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '”' | '’' | '»' | '」' | '』' | '）' | '》')
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
    fn chinese_needs_no_spaces() {
        let text = "他说：“走吧！”我们走了。天黑";
        let ends: Vec<&str> = sentence_ends(text).map(|end| &text[..end]).collect();
        assert_eq!(ends, ["他说：“走吧！”", "他说：“走吧！”我们走了。"]);
        let ends: Vec<usize> = char_ends(text).collect();
        assert_eq!(cut(text, &ends, 2), "他说。");
        assert_eq!(cut(text, &ends, 4), "他说。");
        assert_eq!(cut(text, &ends, 12), "他说：“走吧！”我们走了。");
    }

    #[test]
    fn things_are_put_between_sentences() {
        let hay = "One. Two. Three.";
        assert_eq!(insert(hay, &[(4, "X."), (9, "Y.")]), "One. X. Two. Y. Three.");
        assert_eq!(insert(hay, &[(0, "X."), (0, "Y.")]), "X. Y. One. Two. Three.");
        assert_eq!(insert(hay, &[(16, "X.")]), "One. Two. Three. X.");
        assert_eq!(insert("", &[(0, "X.")]), "X.");
        assert_eq!(insert(hay, &[] as &[(usize, &str)]), hay);
    }

    #[test]
    fn the_largest_number_that_fits_is_found() {
        for want in 0..10 {
            assert_eq!(largest(10, |n| Ok(n <= want)).unwrap(), want);
        }
    }
}
