//! From a document to passages, along its structure.

use super::blocks::{Heading, blocks};
use super::documents::Document;
use super::retriever::Passage;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How long passages are, in characters (about four make a token of English).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ChunkOptions {
    /// Blocks are joined up to this length. Default 1,000.
    pub target: usize,
    /// A single paragraph or code fence is torn apart only if it is longer than
    /// this; no passage is ever longer. Default 2,000.
    pub limit: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { target: 1000, limit: 2000 }
    }
}

impl ChunkOptions {
    /// Sets [`target`](Self::target), in characters.
    pub fn with_target(mut self, chars: usize) -> Self {
        self.target = chars;
        self
    }

    /// Sets [`limit`](Self::limit), in characters.
    pub fn with_limit(mut self, chars: usize) -> Self {
        self.limit = chars;
        self
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Config`] if the target is 0 or above the limit.
    pub fn validate(&self) -> Result<()> {
        if self.target == 0 {
            return Err(Error::config("chunk target", "0 characters; it must be at least 1"));
        }
        if self.limit < self.target {
            let what = format!("{} is below the target of {}", self.limit, self.target);
            return Err(Error::config("chunk limit", what));
        }
        Ok(())
    }
}

/// Cuts `document`, the one with this `number` in input order, into passages.
///
/// Paragraphs, code fences and headings with what follows them stay whole where
/// `options` allow it, and are joined up to the target; a section begins a new
/// passage once the one before is half full. The passages are in order, do not
/// overlap, and leave out nothing but white space.
///
/// # Errors
/// [`Error::Config`] if the options are out of range.
pub fn chunk(document: &Document, number: usize, options: &ChunkOptions) -> Result<Vec<Passage>> {
    options.validate()?;
    let text = document.text();
    let mut chunker = Chunker {
        document,
        number,
        passages: Vec::new(),
        open: None,
        path: Vec::new(),
        line: 1,
        counted: 0,
    };
    for block in blocks(text, document.has_headings()) {
        let mut headings = block.headings;
        for range in pieces(text, block.range, options) {
            chunker.add(range, std::mem::take(&mut headings), options.target);
        }
    }
    chunker.close();
    Ok(chunker.passages)
}

/// Joins pieces into passages.
struct Chunker<'a> {
    document: &'a Document,
    number: usize,
    passages: Vec<Passage>,
    open: Option<Open>,
    /// The headings that the next piece stands under.
    path: Vec<Heading>,
    /// The line, from 1, in which byte `counted` stands.
    line: usize,
    counted: usize,
}

/// The passage that is being put together.
struct Open {
    range: Range<usize>,
    chars: usize,
    headings: Vec<String>,
}

impl Chunker<'_> {
    /// Adds the next piece of the document, which begins with `headings`.
    fn add(&mut self, range: Range<usize>, headings: Vec<Heading>, target: usize) {
        let chars = self.document.text()[range.clone()].chars().count();
        let full = self.open.as_ref().is_some_and(|open| {
            let section = !headings.is_empty() && open.chars >= target / 2;
            section || open.chars + chars > target
        });
        if full {
            self.close();
        }
        if let Some(first) = headings.first() {
            self.path.retain(|above| above.level < first.level);
        }
        let above = self.path.iter().map(|heading| heading.title.clone());
        match &mut self.open {
            Some(open) => {
                open.range.end = range.end;
                open.chars += chars;
            }
            None => self.open = Some(Open { range, chars, headings: above.collect() }),
        }
        for heading in headings {
            self.path.retain(|above| above.level < heading.level);
            self.path.push(heading);
        }
    }

    /// Finishes the open passage, unless it is all white space.
    fn close(&mut self) {
        let Some(Open { range, headings, .. }) = self.open.take() else { return };
        let text = &self.document.text()[range.clone()];
        let visible = text.trim();
        if visible.is_empty() {
            return;
        }
        let begin = range.start + (text.len() - text.trim_start().len());
        let first = self.line + newlines(&self.document.text()[self.counted..begin]);
        (self.line, self.counted) = (first, begin);
        self.passages.push(Passage {
            document: self.number,
            source: self.document.source().to_owned(),
            lines: (first, first + newlines(visible)),
            headings,
            text: text.to_owned(),
            bytes: range,
        });
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|&b| b == b'\n').count()
}

/// The block itself, or if it is too long, pieces of at most the target.
fn pieces(text: &str, block: Range<usize>, options: &ChunkOptions) -> Vec<Range<usize>> {
    let Range { mut start, end } = block;
    let longer_than = |start: usize, chars| text[start..end].char_indices().nth(chars);
    let mut pieces = Vec::new();
    if longer_than(start, options.limit).is_some() {
        while let Some((window, _)) = longer_than(start, options.target) {
            let cut = start + good_cut(&text[start..start + window]);
            pieces.push(start..cut);
            start = cut;
        }
    }
    pieces.push(start..end);
    pieces
}

/// Where to cut a text that must be cut: after the last line, else sentence,
/// else word in its second half, else at its end.
fn good_cut(window: &str) -> usize {
    let second_half = |cut: &usize| *cut > window.len() / 2;
    let after_line = || window.rfind('\n').map(|at| at + 1);
    let after_sentence = || {
        let ends = [". ", "! ", "? ", "。", "！", "？"];
        ends.iter().filter_map(|end| Some(window.rfind(end)? + end.len())).max()
    };
    let after_word = || {
        let (at, space) = window.char_indices().rfind(|(_, c)| c.is_whitespace())?;
        Some(at + space.len_utf8())
    };
    after_line()
        .filter(second_half)
        .or_else(|| after_sentence().filter(second_half))
        .or_else(|| after_word().filter(second_half))
        .unwrap_or(window.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(target: usize, limit: usize) -> ChunkOptions {
        ChunkOptions { target, limit }
    }

    fn cut(text: &str, target: usize, limit: usize) -> Vec<Passage> {
        chunk(&Document::new("a.md", text), 0, &options(target, limit)).unwrap()
    }

    fn texts(passages: &[Passage]) -> Vec<&str> {
        passages.iter().map(|p| p.text.as_str()).collect()
    }

    #[test]
    fn paragraphs_are_joined_up_to_the_target() {
        let passages = cut("one\n\ntwo\n\nthree\n\nfour\n", 12, 20);
        assert_eq!(texts(&passages), ["one\n\ntwo\n\n", "three\n\nfour\n"]);
        assert_eq!(passages[0].lines, (1, 3));
        assert_eq!(passages[1].lines, (5, 7));
        assert_eq!(passages[1].bytes, 10..22);
    }

    #[test]
    fn a_paragraph_up_to_the_limit_stays_whole_a_longer_one_is_cut_at_words() {
        assert_eq!(texts(&cut("aaa bbb ccc ddd", 10, 15)), ["aaa bbb ccc ddd"]);
        assert_eq!(texts(&cut("aaa bbb ccc ddd", 10, 14)), ["aaa bbb ", "ccc ddd"]);
        assert_eq!(texts(&cut("Go. aaa bbb ccc", 6, 9)), ["Go. ", "aaa ", "bbb ", "ccc"]);
        assert_eq!(texts(&cut("éééééé", 4, 5)), ["éééé", "éé"]);
    }

    #[test]
    fn a_section_begins_a_passage_when_the_last_is_half_full() {
        let passages = cut("# A\nlong enough\n## B\nx\n## C\ny\n", 20, 40);
        assert_eq!(texts(&passages), ["# A\nlong enough\n", "## B\nx\n## C\ny\n"]);
    }

    #[test]
    fn the_headings_above_are_kept_and_not_those_inside() {
        let passages = cut("# A\n## B\nfirst part\n\nsecond part\n\n# C\nthird part\n", 20, 40);
        let found: Vec<_> =
            passages.iter().map(|p| (p.headings.join(">"), p.text.trim())).collect();
        let expected = [
            (String::new(), "# A\n## B\nfirst part"),
            ("A>B".to_owned(), "second part"),
            (String::new(), "# C\nthird part"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_huge_single_line_stays_within_the_limit() {
        let passages = cut(&"x".repeat(1_000_000), 1000, 2000);
        assert_eq!(passages.len(), 1000);
        assert!(passages.iter().all(|p| p.lines == (1, 1) && p.text.len() == 1000));
    }

    #[test]
    fn crlf_counts_lines_as_lf_does() {
        let passages = cut("one\r\n\r\ntwo\r\n", 4, 9);
        assert_eq!(texts(&passages), ["one\n\n", "two\n"]);
        assert_eq!(passages[1].lines, (3, 3));
    }

    #[test]
    fn comments_of_a_script_are_no_headings() {
        let script = Document::new("run.sh", "# one\nls\n\n# two\nls\n");
        let passages = chunk(&script, 3, &options(10, 40)).unwrap();
        assert_eq!(texts(&passages), ["# one\nls\n\n", "# two\nls\n"]);
        assert!(passages.iter().all(|p| p.headings.is_empty() && p.document == 3));
    }

    #[test]
    fn options_out_of_range_are_named() {
        let document = Document::new("a", "b");
        let error = chunk(&document, 0, &options(0, 5)).unwrap_err().to_string();
        assert!(error.starts_with("chunk target: "), "{error}");
        let error = chunk(&document, 0, &options(6, 5)).unwrap_err().to_string();
        assert!(error.starts_with("chunk limit: "), "{error}");
    }

    proptest! {
        #[test]
        fn passages_cover_the_text_in_order_within_the_limit(
            text in "([a-z.é🦀# ]{0,12}(\n|\r\n|```\n|\n\n|# )){0,30}",
            target in 1usize..40,
            more in 0usize..40,
        ) {
            let document = Document::new("a.md", text);
            let text = document.text();
            let passages = chunk(&document, 0, &options(target, target + more)).unwrap();
            let mut end = 0;
            for passage in &passages {
                prop_assert!(passage.text.chars().count() <= target + more);
                prop_assert_eq!(&text[passage.bytes.clone()], passage.text.as_str());
                prop_assert!(text[end..passage.bytes.start].trim().is_empty());
                end = passage.bytes.end;
                let (first, last) = passage.lines;
                let lines: Vec<&str> = text.lines().collect();
                let visible = passage.text.trim();
                prop_assert!(lines[first - 1].contains(visible.lines().next().unwrap().trim()));
                prop_assert!(lines[last - 1].contains(visible.lines().last().unwrap().trim()));
                prop_assert_eq!(last - first, visible.lines().count() - 1);
            }
            prop_assert!(text[end..].trim().is_empty());
        }
    }
}
