//! Lexical search: Okapi BM25 (k1 = 1.2, b = 0.75) on an in-memory tantivy index.

use super::retriever::{Hit, Passage, PassageId, Retriever};
use super::terms::terms;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use tantivy::collector::TopDocs;
use tantivy::collector::sort_key::{SortBySimilarityScore, SortByStaticFastValue};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{BooleanQuery, Query, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{Language, Stemmer, TextAnalyzer, Token, TokenStream, Tokenizer};
use tantivy::{Index, IndexReader, IndexWriter, Order, ReloadPolicy, TantivyDocument, Term};

/// The name under which tantivy knows the analyzer.
const ANALYZER: &str = "words";

/// Memory that tantivy may fill before it writes a segment, in bytes.
const WRITER_BYTES: usize = 64 << 20;

/// The [`Retriever`] that needs nothing but the text.
///
/// Texts and questions are compared without regard to case, accents and Unicode forms;
/// words are stemmed (English rules, which leave most words of other languages alone),
/// and names of code are known by their words and as they are. A passage is searched by
/// its text and, once more, by the headings it stands under.
pub struct Bm25 {
    index: Index,
    reader: IndexReader,
    analyzer: TextAnalyzer,
    fields: Fields,
    passages: Vec<Passage>,
}

#[derive(Clone, Copy)]
struct Fields {
    text: Field,
    headings: Field,
    id: Field,
}

/// The name of the id field, by which equal scores are ordered.
const ID: &str = "id";

impl std::fmt::Debug for Bm25 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bm25").field("passages", &self.passages.len()).finish_non_exhaustive()
    }
}

impl Bm25 {
    /// An empty index.
    ///
    /// # Errors
    /// [`Error::Index`] if tantivy cannot create it.
    pub fn new() -> Result<Self> {
        let indexing = TextFieldIndexing::default()
            .set_tokenizer(ANALYZER)
            .set_index_option(IndexRecordOption::WithFreqs);
        let words = TextOptions::default().set_indexing_options(indexing);
        let mut schema = Schema::builder();
        let fields = Fields {
            text: schema.add_text_field("text", words.clone()),
            headings: schema.add_text_field("headings", words),
            id: schema.add_u64_field(ID, FAST),
        };
        let analyzer = TextAnalyzer::builder(Terms).filter(Stemmer::new(Language::English)).build();
        let index = Index::create_in_ram(schema.build());
        index.tokenizers().register(ANALYZER, analyzer.clone());
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { index, reader, analyzer, fields, passages: Vec::new() })
    }

    /// The distinct words of `text` as the index knows them, sorted.
    fn words(&self, text: &str) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        let mut analyzer = self.analyzer.clone();
        analyzer.token_stream(text).process(&mut |token| {
            words.insert(token.text.clone());
        });
        words
    }

    /// Writes `passages`, numbered from `first`, and makes them searchable.
    fn write(&self, first: usize, passages: &[Passage]) -> Result<()> {
        // One thread and no merging: the segments depend on the passages alone.
        let mut writer: IndexWriter = self.index.writer_with_num_threads(1, WRITER_BYTES)?;
        writer.set_merge_policy(Box::new(NoMergePolicy));
        for (id, passage) in (first as u64..).zip(passages) {
            let mut document = TantivyDocument::new();
            document.add_text(self.fields.text, &passage.text);
            document.add_text(self.fields.headings, passage.headings.join("\n"));
            document.add_u64(self.fields.id, id);
            writer.add_document(document)?;
        }
        writer.commit()?;
        self.reader.reload()?;
        Ok(())
    }
}

impl Retriever for Bm25 {
    fn index(&mut self, passages: Vec<Passage>) -> Result<()> {
        if u32::try_from(self.passages.len() + passages.len()).is_err() {
            return Err(Error::Index("more than 4 billion passages; index fewer documents".into()));
        }
        self.write(self.passages.len(), &passages)?;
        self.passages.extend(passages);
        Ok(())
    }

    /// Any passage with any word of the query is a candidate; the query is text,
    /// never syntax.
    fn search(&self, query: &str, k: usize) -> Result<Vec<Hit>> {
        let k = k.min(self.passages.len());
        let words = self.words(query);
        if k == 0 || words.is_empty() {
            return Ok(Vec::new());
        }
        let terms = words.iter().flat_map(|word| {
            [self.fields.text, self.fields.headings].map(|field| {
                let term = Term::from_field_text(field, word);
                Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs)) as Box<dyn Query>
            })
        });
        let any_word = BooleanQuery::union(terms.collect());
        let best_first = TopDocs::with_limit(k).order_by((
            (SortBySimilarityScore, Order::Desc),
            (SortByStaticFastValue::<u64>::for_field(ID), Order::Asc),
        ));
        let found = self.reader.searcher().search(&any_word, &best_first)?;
        let hits = found.into_iter().filter_map(|((score, id), _address)| {
            Some(Hit { passage: PassageId(u32::try_from(id?).ok()?), score })
        });
        Ok(hits.collect())
    }

    fn passage(&self, id: PassageId) -> Option<&Passage> {
        self.passages.get(id.0 as usize)
    }

    fn len(&self) -> usize {
        self.passages.len()
    }
}

/// [`terms()`] for tantivy.
#[derive(Clone)]
struct Terms;

impl Tokenizer for Terms {
    type TokenStream<'a> = TermStream;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> TermStream {
        let mut list = Vec::new();
        terms(text, &mut |term| list.push(term));
        TermStream { list: list.into_iter(), token: Token::default() }
    }
}

struct TermStream {
    list: std::vec::IntoIter<String>,
    token: Token,
}

impl TokenStream for TermStream {
    fn advance(&mut self) -> bool {
        let next = self.list.next();
        self.token.position = self.token.position.wrapping_add(1);
        next.is_some_and(|term| {
            self.token.text = term;
            true
        })
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

impl From<tantivy::TantivyError> for Error {
    fn from(error: tantivy::TantivyError) -> Self {
        Self::Index(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passage(text: &str) -> Passage {
        Passage {
            document: 0,
            source: "d".into(),
            bytes: 0..text.len(),
            lines: (1, 1),
            headings: Vec::new(),
            text: text.into(),
        }
    }

    fn indexed(texts: &[&str]) -> Bm25 {
        let mut index = Bm25::new().unwrap();
        index.index(texts.iter().map(|t| passage(t)).collect()).unwrap();
        index
    }

    fn ids(index: &Bm25, query: &str) -> Vec<u32> {
        index.search(query, 10).unwrap().iter().map(|h| h.passage.0).collect()
    }

    #[test]
    fn words_are_lowercased_stemmed_and_of_any_script() {
        let index = indexed(&[]);
        let words = |text| index.words(text).into_iter().collect::<Vec<_>>();
        assert_eq!(words("Sealing SEALED seals"), ["seal"]);
        assert_eq!(words("kv_budget=2"), ["2", "budget", "kv", "kvbudget", "kvbudget_"]);
        assert_eq!(words("Ключ ÉTÉ"), ["ete", "été", "ключ"]);
        assert_eq!(words("密钥。"), ["密", "密钥", "钥"]);
        // Stemmed, but for the exact name.
        assert_eq!(words("getUsers"), ["get", "getus", "getusers_", "user"]);
        assert_eq!(words("\"()[]:*?^~ -- "), Vec::<String>::new());
    }

    #[test]
    fn the_rarer_word_counts_more() {
        let index = indexed(&["the page", "the page", "the seal", "the page"]);
        assert_eq!(ids(&index, "page seal")[0], 2);
    }

    #[test]
    fn equal_scores_come_by_id_also_across_calls() {
        let mut index = indexed(&["one page", "two pages"]);
        index.index(vec![passage("six pages"), passage("ten pages")]).unwrap();
        assert_eq!(index.len(), 4);
        assert_eq!(ids(&index, "page"), [0, 1, 2, 3]);
        let best = index.search("page", 2).unwrap();
        assert_eq!(best.iter().map(|h| h.passage.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn headings_are_searched() {
        let mut index = indexed(&["nothing here"]);
        let headings = vec!["Installing".to_owned()];
        index.index(vec![Passage { headings, ..passage("run it") }]).unwrap();
        assert_eq!(ids(&index, "how do I install this?"), [1]);
    }

    #[test]
    fn nothing_in_common_or_nothing_asked_is_no_hit() {
        let index = indexed(&["a page"]);
        assert_eq!(index.search("zebra", 10).unwrap(), []);
        assert_eq!(index.search("", 10).unwrap(), []);
        assert_eq!(index.search("page", 0).unwrap(), []);
        assert_eq!(index.search("page", usize::MAX).unwrap().len(), 1);
        assert_eq!(indexed(&[]).search("page", 10).unwrap(), []);
        assert!(index.passage(PassageId(1)).is_none());
    }

    #[test]
    fn query_syntax_is_plain_text() {
        let index = indexed(&["the sealed page", "other words"]);
        for query in [
            "\"sealed",
            "text:sealed AND (",
            "sealed^^ +",
            "-sealed",
            "[sealed TO",
            "id:sealed",
            "sealed\\",
            "{sealed} *",
            "sealed\0",
            "/sealed/",
        ] {
            assert_eq!(ids(&index, query)[0], 0, "{query}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_can_be_indexed_and_asked_for(text in any::<String>(), query in any::<String>()) {
            let index = indexed(&[&text]);
            let common = !index.words(&text).is_disjoint(&index.words(&query));
            prop_assert_eq!(!index.search(&query, 3).unwrap().is_empty(), common);
        }
    }
}
