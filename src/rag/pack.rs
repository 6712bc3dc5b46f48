//! From hits to a context: as much as fits, in document order.

use super::retriever::{Hit, Passage, PassageId, Retriever};
use std::collections::HashSet;

/// What [`pack()`] chose.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// The pieces in document order.
    pub pieces: Vec<PackedPiece>,
    /// How many tokens [`render`](Self::render) has.
    pub tokens: usize,
    /// Whether nothing was found, so that these are only the first passages.
    pub fallback: bool,
    /// How many hits did not fit; repetitions of a packed text are not counted.
    pub left_out: usize,
}

/// One stretch of a document: a passage, or several that follow each other.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedPiece {
    /// What the document is called.
    pub source: String,
    /// First and last line, counted from 1.
    pub lines: (usize, usize),
    /// The headings that it stands under, outermost first.
    pub headings: Vec<String>,
    /// The text, without blank lines around it.
    pub text: String,
    /// The best score of its passages; 0 in a fallback.
    pub score: f32,
}

impl Packed {
    /// The text for the model: each piece under a line with its source, such as
    /// `[guide.md:10-24] Install > Linux`, with a blank line between pieces.
    pub fn render(&self) -> String {
        render(&self.pieces)
    }
}

fn render(pieces: &[PackedPiece]) -> String {
    let mut out = String::new();
    for piece in pieces {
        if !out.is_empty() {
            out += "\n\n";
        }
        let (first, last) = piece.lines;
        out += &format!("[{}:{first}-{last}]", piece.source);
        if !piece.headings.is_empty() {
            out += " ";
            out += &piece.headings.join(" > ");
        }
        out += "\n";
        out += &piece.text;
    }
    out
}

/// Chooses from `hits`, best first, what fits into `budget` tokens, where `count`
/// says how many tokens a text has.
///
/// A hit that does not fit is skipped and the next is tried; a text that is
/// already in is not taken again; passages that follow each other in a document
/// become one piece. With no hits, the first passages in document order are
/// taken instead and [`Packed::fallback`] is set. If no hit fits, the best one is cut off where
/// it must be. The rendered text, headers included, never has more than `budget` tokens; it is
/// empty if nothing fits.
pub fn pack(
    passages: &dyn Retriever,
    hits: &[Hit],
    budget: usize,
    count: &dyn Fn(&str) -> usize,
) -> Packed {
    let mut packer =
        Packer { budget, count, chosen: Vec::new(), texts: HashSet::new(), tokens: 0, exact: true };
    let mut left_out = 0;
    let found = |id| passages.passage(id);
    if hits.is_empty() {
        let ids = (0..passages.len()).filter_map(|id| u32::try_from(id).ok());
        let mut all: Vec<&Passage> = ids.filter_map(|id| found(PassageId(id))).collect();
        all.sort_by_key(|p| (p.document, p.bytes.start));
        for passage in all {
            // A beginning without gaps, unless even the first is too long.
            if packer.add(passage, 0.0) == Added::TooLong && !packer.chosen.is_empty() {
                break;
            }
        }
    } else {
        let mut best_first = hits.to_vec();
        best_first.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage)));
        for hit in best_first {
            let Some(passage) = found(hit.passage) else { continue };
            left_out += usize::from(packer.add(passage, hit.score) == Added::TooLong);
        }
    }
    let (mut chosen, mut tokens, removed) = packer.finish();
    // The beginning of the best is better than nothing.
    let best =
        hits.iter().max_by(|a, b| a.score.total_cmp(&b.score).then(b.passage.cmp(&a.passage)));
    if let (true, Some(hit)) = (chosen.is_empty(), best)
        && let Some(part) = found(hit.passage).and_then(|all| beginning(all, budget, count))
    {
        chosen = pieces(&[Chosen { passage: &part, score: hit.score }]);
        tokens = count(&render(&chosen));
    }
    Packed { pieces: chosen, tokens, fallback: hits.is_empty(), left_out: left_out + removed }
}

/// As much of a passage that is too long as fits, up to the end of a word if there is one.
fn beginning(passage: &Passage, budget: usize, count: &dyn Fn(&str) -> usize) -> Option<Passage> {
    let first = passage.text.len() - passage.text.trim_start().len();
    let cut = |end: usize| {
        let text = passage.text.get(first..end)?;
        let spoken = text.rfind(char::is_whitespace).filter(|_| end < passage.text.len());
        let text = text[..spoken.unwrap_or(text.len())].trim_end();
        let start = passage.bytes.start + first;
        let last_line = passage.lines.0 + text.matches('\n').count();
        let part = Passage {
            bytes: start..start + text.len(),
            lines: (passage.lines.0, last_line),
            text: text.to_owned(),
            ..passage.clone()
        };
        let fits = count(&render(&pieces(&[Chosen { passage: &part, score: 0.0 }]))) <= budget;
        (fits && !text.is_empty()).then_some(part)
    };
    // More text has more tokens, or nearly so.
    let ends: Vec<usize> = passage.text.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
    let fitting = ends.partition_point(|&end| end <= first || cut(end).is_some());
    ends[..fitting].iter().rev().find_map(|&end| cut(end))
}

/// A passage that is in, with its score.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    passage: &'a Passage,
    score: f32,
}

#[derive(PartialEq, Eq)]
enum Added {
    Yes,
    Repeated,
    TooLong,
}

struct Packer<'a> {
    budget: usize,
    count: &'a dyn Fn(&str) -> usize,
    /// In the order of being chosen.
    chosen: Vec<Chosen<'a>>,
    /// The texts that are in, without the white space around them.
    texts: HashSet<&'a str>,
    /// Tokens of what is in: counted on the whole rendered text if `exact`, else
    /// the sum of counts of the parts.
    tokens: usize,
    exact: bool,
}

impl<'a> Packer<'a> {
    /// Takes `passage` in if it fits.
    ///
    /// Counting the whole rendered text for each passage would be quadratic, so
    /// that is done only where it matters: far below the budget, passages are
    /// counted alone, and what is too long without any header is turned away.
    fn add(&mut self, passage: &'a Passage, score: f32) -> Added {
        let text = passage.text.trim();
        if self.texts.contains(text) {
            return Added::Repeated;
        }
        let chosen = Chosen { passage, score };
        let alone = (self.count)(&format!("\n\n{}", render(&pieces(&[chosen]))));
        let comfortable = self.budget - self.budget / 8;
        if self.tokens.saturating_add(alone) <= comfortable {
            self.tokens += alone;
            self.exact = false;
        } else {
            if !self.exact {
                self.tokens = self.rendered_tokens();
                self.exact = true;
            }
            let least = if self.overlaps(passage) { 0 } else { (self.count)(text) };
            if self.tokens.saturating_add(least) > self.budget {
                return Added::TooLong;
            }
            self.chosen.push(chosen);
            let tokens = self.rendered_tokens();
            self.chosen.pop();
            if tokens > self.budget {
                return Added::TooLong;
            }
            self.tokens = tokens;
        }
        self.chosen.push(chosen);
        self.texts.insert(text);
        Added::Yes
    }

    /// Whether part of the passage is in already.
    fn overlaps(&self, passage: &Passage) -> bool {
        self.chosen.iter().any(|Chosen { passage: other, .. }| {
            other.document == passage.document
                && other.bytes.start < passage.bytes.end
                && passage.bytes.start < other.bytes.end
        })
    }

    fn rendered_tokens(&self) -> usize {
        (self.count)(&render(&pieces(&self.chosen)))
    }

    /// Pieces, their tokens, and how many passages had to go again because the
    /// whole has more tokens than its parts.
    fn finish(mut self) -> (Vec<PackedPiece>, usize, usize) {
        let mut removed = 0;
        loop {
            let pieces = pieces(&self.chosen);
            let tokens = (self.count)(&render(&pieces));
            if tokens <= self.budget || self.chosen.pop().is_none() {
                return (pieces, tokens, removed);
            }
            removed += 1;
        }
    }
}

/// A piece that may still grow.
struct Growing<'a> {
    first: &'a Passage,
    end: usize,
    last_line: usize,
    text: String,
    score: f32,
}

/// Sorts passages into document order and joins those that follow each other.
fn pieces(chosen: &[Chosen]) -> Vec<PackedPiece> {
    let mut sorted = chosen.to_vec();
    sorted.sort_by_key(|c| (c.passage.document, c.passage.bytes.start, c.passage.bytes.end));
    let mut growing: Vec<Growing> = Vec::new();
    for Chosen { passage, score } in sorted {
        if !growing.last_mut().is_some_and(|piece| piece.join(passage, score)) {
            growing.push(Growing {
                first: passage,
                end: passage.bytes.end,
                last_line: passage.lines.1,
                text: passage.text.clone(),
                score,
            });
        }
    }
    growing.into_iter().map(Growing::finish).collect()
}

impl Growing<'_> {
    /// Appends what `passage` adds, if it begins inside or right after this piece.
    fn join(&mut self, passage: &Passage, score: f32) -> bool {
        let same = passage.document == self.first.document && passage.source == self.first.source;
        // A retriever may rewrite texts; offsets into those mean nothing.
        let verbatim = passage.text.len() == passage.bytes.len()
            && self.text.len() == self.end - self.first.bytes.start;
        if !same || !verbatim || passage.bytes.start > self.end {
            return false;
        }
        if passage.bytes.end > self.end {
            let Some(new) = passage.text.get(self.end - passage.bytes.start..) else {
                return false;
            };
            self.text += new;
            self.end = passage.bytes.end;
        }
        self.last_line = self.last_line.max(passage.lines.1);
        self.score = self.score.max(score);
        true
    }

    fn finish(self) -> PackedPiece {
        // The indentation of the first line stays.
        let blank = self.text.len() - self.text.trim_start().len();
        let first_line = self.text[..blank].rfind('\n').map_or(0, |at| at + 1);
        PackedPiece {
            source: self.first.source.clone(),
            lines: (self.first.lines.0, self.last_line),
            headings: self.first.headings.clone(),
            text: self.text[first_line..].trim_end().to_owned(),
            score: self.score,
        }
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
