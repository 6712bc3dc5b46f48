//! From token bytes to text a caller can print: whole characters only, and
//! nothing of a stop string.
//!
//! A token is a piece of bytes, not of text: an emoji is often spread over
//! three tokens, and a stop string over any number of them. [`TextStream`]
//! holds back exactly the bytes whose meaning the next token could change:
//!
//! ```text
//! token bytes ─▶ Utf8Decoder ─▶ StopMatcher ─▶ text for the caller
//!                holds back an   holds back what
//!                unfinished char may begin a stop string
//! ```
//!
//! What comes out, put together, does not depend on how the bytes were split.

use crate::error::{Error, Result};

/// What one step of a [`TextStream`] gives to the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextPiece {
    /// Text that is now certain; often empty.
    pub text: String,
    /// The index of the stop string that ended the stream, from the step that
    /// found it onwards. The stop string itself is never part of the text.
    pub stopped: Option<usize>,
}

/// Bytes of tokens in, printable pieces of text out, until a stop string.
#[derive(Debug, Clone)]
pub struct TextStream {
    decoder: Utf8Decoder,
    matcher: StopMatcher,
}

impl TextStream {
    /// A stream that ends at the first of `stops`; with none it never stops.
    ///
    /// # Errors
    /// [`Error::Config`] if a stop string is empty (it would match everywhere).
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        Ok(Self { decoder: Utf8Decoder::default(), matcher: StopMatcher::new(stops)? })
    }

    /// Adds the bytes of the next token. After a stop, further bytes are ignored.
    pub fn push(&mut self, bytes: &[u8]) -> TextPiece {
        let text = self.decoder.push(bytes);
        self.matcher.push(&text)
    }

    /// Ends the stream and gives what was held back: an unfinished character
    /// becomes U+FFFD, the beginning of a stop string is plain text after all.
    pub fn finish(&mut self) -> TextPiece {
        let tail = self.decoder.finish();
        let mut piece = self.matcher.push(&tail);
        if piece.stopped.is_none() {
            piece.text += &self.matcher.finish();
        }
        piece
    }
}

/// Decodes UTF-8 that arrives in arbitrary pieces.
///
/// The total output equals [`String::from_utf8_lossy`] of the total input.
#[derive(Debug, Clone, Default)]
pub struct Utf8Decoder {
    /// The valid beginning of a character whose end has not arrived: 0–3 bytes.
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Adds bytes and returns the characters that are complete. Bytes that can
    /// no longer become a character come out as U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut consumed = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            consumed += chunk.valid().len();
            let invalid = chunk.invalid();
            if consumed + invalid.len() == self.pending.len() && may_become_char(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                consumed += invalid.len();
            }
        }
        self.pending.drain(..consumed);
        text
    }

    /// Ends the input: an unfinished character becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        let unfinished = !self.pending.is_empty();
        self.pending.clear();
        if unfinished { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}

/// Whether more bytes could turn `bytes` into a character.
fn may_become_char(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

/// Finds stop strings in text that arrives in arbitrary pieces.
///
/// The match that is *complete* first wins, because generation ends there; of
/// several that end at the same character, the longest. So the result is the
/// same whether the text arrives in one piece or character by character.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not yet given out: the beginning of some stop string.
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`; with none, all text passes at once.
    ///
    /// # Errors
    /// [`Error::Config`] if a stop string is empty.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::config("stop", "a stop string is empty; leave it out instead"));
        }
        Ok(Self { stops, held: String::new(), stopped: None })
    }

    /// Adds text. After a stop, further text is ignored.
    pub fn push(&mut self, text: &str) -> TextPiece {
        if self.stopped.is_some() {
            return TextPiece { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            self.stopped = Some(stop);
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return TextPiece { text, stopped: self.stopped };
        }
        let keep_from = self.first_possible_start();
        let rest = self.held.split_off(keep_from);
        TextPiece { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// Ends the text and returns what was held back; empty after a stop.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start and stop-string index of the match that is complete first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        matches.min().map(|(_end, start, index)| (start, index))
    }

    /// Where the longest suffix begins that could grow into a stop string.
    fn first_possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = (self.held.len() + 1).saturating_sub(longest);
        (earliest..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (String, Option<usize>) {
        let mut stream = TextStream::new(stops.iter().copied()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            text += &stream.push(piece).text;
        }
        let last = stream.finish();
        (text + &last.text, last.stopped)
    }

    /// Cuts `bytes` at the given places (taken modulo the length).
    fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
    }

    /// The definition, one character at a time.
    fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
        let ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
        for end in ends {
            let longest = (0..stops.len())
                .filter(|&s| text[..end].ends_with(&stops[s]))
                .min_by_key(|&s| (end - stops[s].len(), s));
            if let Some(s) = longest {
                return (text[..end - stops[s].len()].to_owned(), Some(s));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn an_emoji_comes_out_whole() {
        let mut stream = TextStream::new([] as [&str; 0]).unwrap();
        let bytes = "a🦀".as_bytes();
        assert_eq!(stream.push(&bytes[..2]).text, "a");
        assert_eq!(stream.push(&bytes[2..4]).text, "");
        assert_eq!(stream.push(&bytes[4..]).text, "🦀");
        assert_eq!(stream.finish(), TextPiece::default());
    }

    #[test]
    fn invalid_bytes_are_replaced_as_soon_as_they_are_hopeless() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"\xff"), "\u{fffd}");
        assert_eq!(decoder.push(b"\xf0\x9f"), "");
        assert_eq!(decoder.push(b"x"), "\u{fffd}x");
        assert_eq!(decoder.push(b"\xe2\x82"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let mut stream = TextStream::new(["\nUser:"]).unwrap();
        assert_eq!(stream.push(b"Yes.\nUs").text, "Yes.");
        assert_eq!(stream.push(b"age").text, "\nUsage");
        assert_eq!(stream.push(b" up\nUse").text, " up");
        assert_eq!(stream.push(b"r: no"), TextPiece { text: String::new(), stopped: Some(0) });
        assert_eq!(stream.push(b"more"), TextPiece { text: String::new(), stopped: Some(0) });
        assert_eq!(stream.finish(), TextPiece { text: String::new(), stopped: Some(0) });
    }

    #[test]
    fn the_match_complete_first_wins_then_the_longest() {
        assert_eq!(run(&["abcd", "c"], &[b"xabcd"]), ("xab".into(), Some(1)));
        assert_eq!(run(&["c", "bc", "abc"], &[b"xabc"]), ("x".into(), Some(2)));
        assert_eq!(run(&["aab"], &[b"a", b"a", b"a", b"b"]), ("a".into(), Some(0)));
    }

    #[test]
    fn a_held_beginning_is_given_out_at_the_end() {
        assert_eq!(run(&["</s>"], &[b"ok </", b"s"]), ("ok </s".into(), None));
    }

    #[test]
    fn a_stop_string_may_complete_in_finish() {
        assert_eq!(run(&["\u{fffd}"], &[b"a\xf0\x9f"]), ("a".into(), Some(0)));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        let error = TextStream::new(["x", ""]).unwrap_err();
        assert!(error.to_string().starts_with("stop: "), "{error}");
    }

    proptest! {
        #[test]
        fn decoding_does_not_depend_on_the_split(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0xa6), Just(0x80), Just(0xe2), Just(b'a')],
                0..60,
            ),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let (text, _) = run(&[], &split(&bytes, &cuts));
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn stops_are_found_exactly_where_naive_search_finds_them(
            text in "[abé🦀\n]{0,40}",
            stops in proptest::collection::vec("[abé🦀\n]{1,5}", 0..4),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (got, stopped) = run(&borrowed, &split(text.as_bytes(), &cuts));
            prop_assert_eq!(stopped.is_some(), stops.iter().any(|s| text.contains(s)));
            prop_assert_eq!((got, stopped), naive(&text, &stops));
        }

        #[test]
        fn nothing_is_held_that_no_stop_string_begins_with(
            text in "[ab ]{0,30}",
            stops in proptest::collection::vec("[ab]{1,4}", 1..3),
        ) {
            let mut matcher = StopMatcher::new(stops.iter().cloned()).unwrap();
            matcher.push(&text);
            let held = matcher.finish();
            prop_assert!(held.is_empty() || stops.iter().any(|s| s.starts_with(&held)));
        }
    }
}
