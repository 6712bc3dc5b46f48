//! What the user reads: messages on stderr, answers and tables on stdout.
//!
//! Both may quote files, so what a terminal would obey is spelled out: in messages always,
//! on stdout where that is a terminal; what goes to a pipe or file stays as it is.

use anyhow::{Context, Result};
use kvfold::printable::{printable, printable_lines};
use std::fmt::Display;
use std::io::{IsTerminal, StdoutLock, Write};

/// A line on stderr.
pub fn say(line: impl Display) {
    // A closed stderr has no reader.
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}

/// A line on stderr that says what the user may not expect.
pub fn note(text: impl Display) {
    say(format_args!("note: {text}"));
}

/// Several lines on stderr.
pub fn say_lines(text: &str) {
    let _ = std::io::stderr().write_all(printable_lines(text).as_bytes());
}

/// Prints a text on stdout, all at once.
///
/// # Errors
/// If it cannot be written.
pub fn print(text: &str) -> Result<()> {
    Screen::stdout().print(text)
}

/// Prints a text on stdout, or on stderr where stdout has been `taken` by a result.
///
/// # Errors
/// If it cannot be written.
pub fn print_beside(text: &str, taken: bool) -> Result<()> {
    if !taken {
        return print(text);
    }
    say_lines(text);
    Ok(())
}

/// A place that text is streamed to.
pub struct Screen<W> {
    out: W,
    is_terminal: bool,
}

impl Screen<StdoutLock<'static>> {
    /// Standard output.
    pub fn stdout() -> Self {
        let out = std::io::stdout();
        Self { is_terminal: out.is_terminal(), out: out.lock() }
    }
}

impl<W: Write> Screen<W> {
    /// Writes a text, which is seen at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn print(&mut self, text: &str) -> Result<()> {
        let written = match self.is_terminal {
            true => self.out.write_all(printable_lines(text).as_bytes()),
            false => self.out.write_all(text.as_bytes()),
        };
        written.and_then(|()| self.out.flush()).context("standard output")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_is_spared() {
        let text = "one\ttwo\n\x1b[2J\x07";
        for (is_terminal, shown) in [(true, "one\ttwo\n\\u{1b}[2J\\u{7}"), (false, text)] {
            let mut screen = Screen { out: Vec::new(), is_terminal };
            // In parts, as an answer comes.
            for part in text.split_inclusive(' ') {
                screen.print(part).unwrap();
            }
            assert_eq!(String::from_utf8(screen.out).unwrap(), shown);
        }
    }
}
