//! The packer over a retriever that only holds passages.

use super::*;
use crate::error::Result;
use crate::rag::{ChunkOptions, Document, chunk};
use proptest::prelude::*;

/// Passages without a search.
#[derive(Default)]
struct Shelf(Vec<Passage>);

impl Retriever for Shelf {
    fn index(&mut self, passages: Vec<Passage>) -> Result<()> {
        self.0.extend(passages);
        Ok(())
    }
    fn search(&self, _query: &str, _k: usize) -> Result<Vec<Hit>> {
        Ok(Vec::new())
    }
    fn passage(&self, id: PassageId) -> Option<&Passage> {
        self.0.get(id.0 as usize)
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

fn shelf(documents: &[&str]) -> Shelf {
    let options = ChunkOptions::default().with_target(1).with_limit(100);
    let cut = |(number, text): (usize, &&str)| {
        let document = Document::new(format!("{number}.md"), *text);
        chunk(&document, number, &options).unwrap()
    };
    Shelf(documents.iter().enumerate().flat_map(cut).collect())
}

fn hits(scores: &[(u32, f32)]) -> Vec<Hit> {
    scores.iter().map(|&(id, score)| Hit { passage: PassageId(id), score }).collect()
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

#[test]
fn pieces_come_in_document_order_and_neighbours_are_joined() {
    let shelf = shelf(&["a\n\nb\n\nc\n\nd\n", "e\n\nf\n"]);
    let packed = pack(&shelf, &hits(&[(5, 9.0), (3, 1.0), (0, 2.0), (1, 3.0)]), 100, &words);
    assert_eq!(packed.render(), "[0.md:1-3]\na\n\nb\n\n[0.md:7-7]\nd\n\n[1.md:3-3]\nf");
    assert_eq!(packed.tokens, 7);
    assert_eq!(packed.pieces[0].score, 3.0);
    assert!(!packed.fallback);
}

#[test]
fn what_does_not_fit_is_skipped_and_the_next_is_tried() {
    let shelf = shelf(&["a\n\nb b b b b b b\n\nc\n"]);
    let packed = pack(&shelf, &hits(&[(0, 3.0), (1, 2.0), (2, 1.0)]), 4, &words);
    assert_eq!(packed.render(), "[0.md:1-1]\na\n\n[0.md:5-5]\nc");
    assert_eq!((packed.tokens, packed.left_out), (4, 1));
}

#[test]
fn joining_saves_the_header_and_makes_room() {
    let shelf = shelf(&["a\n\nb\n"]);
    let packed = pack(&shelf, &hits(&[(0, 2.0), (1, 1.0)]), 3, &words);
    assert_eq!(packed.render(), "[0.md:1-3]\na\n\nb");
}

#[test]
fn equal_texts_are_packed_once() {
    let shelf = shelf(&["same\n\nother\n", "same\n"]);
    let packed = pack(&shelf, &hits(&[(0, 1.0), (2, 1.0)]), 100, &words);
    assert_eq!(packed.render(), "[0.md:1-1]\nsame");
    assert_eq!(packed.left_out, 0);
}

#[test]
fn without_hits_the_beginning_is_packed_and_flagged() {
    let shelf = shelf(&["a\n\nb\n\nc c c c\n\nd\n"]);
    let packed = pack(&shelf, &[], 4, &words);
    assert_eq!(packed.render(), "[0.md:1-3]\na\n\nb");
    assert!(packed.fallback);
}

#[test]
fn overlapping_passages_do_not_repeat_text() {
    let mut shelf = shelf(&["one two\n"]);
    let whole = shelf.0.remove(0);
    let part = |bytes: std::ops::Range<usize>| Passage {
        text: whole.text[bytes.clone()].to_owned(),
        bytes,
        ..whole.clone()
    };
    shelf.index(vec![part(0..5), part(2..8), part(3..4)]).unwrap();
    let packed = pack(&shelf, &hits(&[(0, 1.0), (1, 1.0), (2, 1.0)]), 100, &words);
    assert_eq!(packed.render(), "[0.md:1-1]\none two");
}

#[test]
fn the_path_of_headings_is_shown_and_indentation_kept() {
    let shelf = shelf(&["# A\n## B\nx\n\n    code\n"]);
    let packed = pack(&shelf, &hits(&[(1, 1.0)]), 100, &words);
    assert_eq!(packed.render(), "[0.md:5-5] A > B\n    code");
}

#[test]
fn nothing_fits_into_nothing() {
    let packed = pack(&shelf(&["a\n"]), &hits(&[(0, 1.0), (7, 1.0)]), 0, &words);
    assert_eq!(packed, Packed { left_out: 1, ..Packed::default() });
    assert_eq!(pack(&Shelf::default(), &[], 9, &words).render(), "");
}

#[test]
fn the_best_hit_is_cut_off_where_none_fits() {
    let shelf = shelf(&["one two three\nfour five six seven\n", "a b c d e f g h\n"]);
    let found = hits(&[(1, 1.0), (0, 2.0)]);
    let packed = pack(&shelf, &found, 6, &words);
    assert_eq!(packed.render(), "[0.md:1-2] one two three\nfour five".replacen(' ', "\n", 1));
    assert_eq!((packed.tokens, packed.left_out), (6, 2));
    // No blank to cut at.
    let shelf = self::shelf(&["학교에서공부한다\n"]);
    let letters = |text: &str| text.chars().count();
    assert_eq!(pack(&shelf, &hits(&[(0, 1.0)]), 15, &letters).render(), "[0.md:1-1]\n학교에서");
}

proptest! {
    #[test]
    fn the_budget_is_never_exceeded_and_nothing_that_fits_is_left(
        documents in proptest::collection::vec("([a-c ]{1,20}\n{1,3}){1,8}", 1..5),
        scores in proptest::collection::vec((0u32..40, 0.0f32..9.0), 0..30),
        budget in 0usize..80,
        counter in 0usize..4,
    ) {
        let borrowed: Vec<&str> = documents.iter().map(String::as_str).collect();
        let shelf = shelf(&borrowed);
        let counters: [&dyn Fn(&str) -> usize; 4] = [
            &words,
            &|text| text.len() / 4,
            &|text| text.len().div_ceil(4),
            // The whole costs more than its parts.
            &|text| text.len() * text.len() / 200,
        ];
        let count = counters[counter];
        let found = hits(&scores);
        let packed = pack(&shelf, &found, budget, count);
        let rendered = packed.render();
        prop_assert!(packed.tokens <= budget);
        prop_assert_eq!(packed.tokens, count(&rendered));
        prop_assert_eq!(&packed, &pack(&shelf, &found, budget, count));

        let places: Vec<_> = packed.pieces.iter().map(|p| (p.source.clone(), p.lines.0)).collect();
        prop_assert!(places.is_sorted());
        // Words add up exactly, so what is missing really had no room.
        if counter == 0 {
            for hit in &found {
                let Some(passage) = shelf.passage(hit.passage) else { continue };
                let text = passage.text.trim();
                let inside = packed.pieces.iter().any(|p| p.text.contains(text));
                prop_assert!(inside || packed.tokens + words(text) + 1 > budget);
            }
        }
    }
}
