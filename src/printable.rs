//! Text of files, made harmless for a terminal (floor 0).
//!
//! Names out of files (of files, tensors, tokens, models) may hold characters that a terminal
//! obeys: they clear it, ring, move what is read elsewhere, or begin a line of their own.

use std::fmt::{self, Display, Write};

/// Whether a terminal shows `c` rather than obeys it: control characters (C0, DEL, C1), line
/// and paragraph separators and what turns the direction of writing are not shown.
pub fn is_printable(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !(c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns)
}

/// `text` on one line, with `\n`, `\u{1b}` and the like where it holds what a terminal obeys.
pub fn printable(text: &str) -> String {
    Printable(text).to_string()
}

/// `text` with its line ends and tabs, and with all other control characters spelled out.
pub fn printable_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if is_printable(c) => out.push(c),
            c => out.extend(c.escape_default()),
        }
    }
    out
}

/// Shows a value as [`printable`] shows its text.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Escapes what passes through.
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|c| match is_printable(c) {
                    true => self.0.write_char(c),
                    false => write!(self.0, "{}", c.escape_default()),
                })
            }
        }

        write!(Escape(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        for (text, shown) in [
            ("model.gguf", "model.gguf"),
            ("naïve 模型 🙂 שלום", "naïve 模型 🙂 שלום"),
            ("a\\nb", "a\\nb"),
            ("\x1b[2J", "\\u{1b}[2J"),
            ("two\nlines\r\n\there", "two\\nlines\\r\\n\\there"),
            ("\0\x07\x7f", "\\u{0}\\u{7}\\u{7f}"),
            // CSI as one character.
            ("\u{9b}2J", "\\u{9b}2J"),
            ("a\u{2028}b\u{2029}", "a\\u{2028}b\\u{2029}"),
            // Reads as "model.exe" of another kind.
            ("ledom\u{202e}fugg.", "ledom\\u{202e}fugg."),
            ("\u{2066}\u{2069}\u{202a}", "\\u{2066}\\u{2069}\\u{202a}"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable(shown), shown, "what is escaped stays so");
            assert!(printable_lines(text).chars().all(|c| "\n\t".contains(c) || is_printable(c)));
        }
        assert_eq!(printable_lines("a\tb\nc\r\x1b[1m"), "a\tb\nc\\r\\u{1b}[1m");
    }
}
