//! From documents and a question to a context, in one call.

use super::bm25::Bm25;
use super::chunk::{ChunkOptions, chunk};
use super::documents::Document;
use super::pack::{Packed, pack};
use super::retriever::Retriever;
use crate::error::Result;

/// How many hits [`fill`] asks for: far more than fit into any context it is
/// meant for, so that the packer always has smaller passages to fall back on.
const MAX_HITS: usize = 1000;

/// Hits below this share of the best score share little but common words with the
/// question; packing them because there is room distracts small models.
const WEAK_HIT: f32 = 0.75;

/// Passages are paragraphs or little more, in characters: what stands around an answer misleads
/// small models, and neighbours that are found, too, become one piece again.
const PASSAGE: usize = 300;

/// Chooses from `documents` what has to do with `query`, in at most `budget`
/// tokens as counted by `count`: chunk, index in memory, search, pack.
///
/// # Errors
/// [`crate::Error::Index`] if the index fails.
pub fn fill(
    documents: &[Document],
    query: &str,
    budget: usize,
    count: &dyn Fn(&str) -> usize,
) -> Result<Packed> {
    let options = ChunkOptions::default().with_target(PASSAGE);
    let mut passages = Vec::new();
    for (number, document) in documents.iter().enumerate() {
        passages.extend(chunk(document, number, &options)?);
    }
    let mut index = Bm25::new()?;
    index.index(passages)?;
    let mut hits = index.search(query, MAX_HITS)?;
    let best = hits.iter().map(|hit| hit.score).fold(0.0, f32::max);
    hits.retain(|hit| hit.score >= best * WEAK_HIT);
    Ok(pack(&index, &hits, budget, count))
}
