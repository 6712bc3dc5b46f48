//! Passages, and what finds them for a question.

use crate::error::Result;
use std::ops::Range;

/// The number of a passage within one [`Retriever`]: 0, 1, 2, … as indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PassageId(pub u32);

/// A stretch of a document: what is searched for and packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// Which document, counted in input order.
    pub document: usize,
    /// What the document is called in a source reference, usually its path.
    pub source: String,
    /// Where the text stands in [`Document::text`](super::Document::text).
    pub bytes: Range<usize>,
    /// Its first and last line that is not blank, counted from 1.
    pub lines: (usize, usize),
    /// The headings that its beginning stands under, outermost first, without
    /// those that are part of the text itself.
    pub headings: Vec<String>,
    /// The text, equal to the document's at `bytes`.
    pub text: String,
}

/// A passage that has to do with a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Which passage.
    pub passage: PassageId,
    /// How well it fits: greater is better, comparable within one search only.
    pub score: f32,
}

/// Finds passages for a question.
///
/// [`Bm25`](super::Bm25) is the one implementation today. The richer stages to come (dense
/// vectors, a graph, a reranker, a remote index, and combinations of them)
/// implement this same trait, so that [`pack()`](super::pack()) and everything above it stay as
/// they are. An implementation promises:
///
/// - ids are given in the order of indexing, from 0 to `len() − 1`;
/// - a search returns at most `k` hits, best first, equal scores by lower id,
///   no passage twice, no NaN score; nothing found is an empty list;
/// - any text is a valid query: there is no query syntax;
/// - equal passages and queries give equal hits.
pub trait Retriever: Send + Sync {
    /// Adds passages; those of earlier calls stay. On an error none is added.
    ///
    /// # Errors
    /// [`crate::Error::Index`] if the index refuses them.
    fn index(&mut self, passages: Vec<Passage>) -> Result<()>;

    /// The up to `k` passages that fit `query` best.
    ///
    /// # Errors
    /// [`crate::Error::Index`] if the index fails.
    fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>>;

    /// The passage called `id`, if there is one.
    fn passage(&self, id: PassageId) -> Option<&Passage>;

    /// How many passages are indexed.
    fn len(&self) -> usize;

    /// Whether no passage is indexed.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
