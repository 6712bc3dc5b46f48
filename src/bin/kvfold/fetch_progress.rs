//! Shows a fetch on stderr: a bar on a terminal, else a line now and then.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::size;
use crate::terminal::say;
use indicatif::{ProgressBar, ProgressStyle};
use kvfold::fetch::Progress;

/// Lines about a transfer are no closer than this.
const LEAST: Duration = Duration::from_secs(5);
/// After this long one comes although little has changed.
const MOST: Duration = Duration::from_secs(30);

/// Draws the steps of a fetch, each with the model's name.
pub struct Bar<'a> {
    model: &'a str,
    bar: ProgressBar,
    /// Where there is no terminal.
    lines: Option<(Instant, Lines)>,
    /// One bar for several files is being drawn.
    whole: bool,
}

impl<'a> Bar<'a> {
    /// Nothing is drawn yet.
    pub fn new(model: &'a str) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let lines = lines.then(|| (Instant::now(), Lines::default()));
        Self { model, bar: ProgressBar::hidden(), lines, whole: false }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
        self.whole = false;
    }

    fn say(&mut self, line: &str) {
        self.bar.suspend(|| say(format_args!("{}: {line}", self.model)));
    }

    fn start(&mut self, message: &'static str) {
        self.clear();
        if self.lines.is_some() {
            return;
        }
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar =
            ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_message(message);
    }
}

impl Progress for Bar<'_> {
    fn source(&mut self, what: &str) {
        self.clear();
        self.say(&format!("fetching from {what}"));
        self.start("fetching");
    }

    fn file(&mut self, _path: &Path) {
        if !self.whole {
            self.start("fetching");
            self.whole = true;
        }
    }

    fn transferring(&mut self) {
        self.bar.set_message("fetching");
    }

    fn bytes(&mut self, done: u64, total: u64) {
        // A new phase (pip, then its member) begins where the last one ended.
        if self.bar.length() != Some(total) || done < self.bar.position() {
            self.bar.reset();
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        if let Some((start, lines)) = &mut self.lines
            && let Some(line) = lines.next(start.elapsed(), done, total)
        {
            self.say(&line);
        }
    }

    fn verifying(&mut self, _path: &Path) {
        match self.whole {
            true => self.bar.set_message("verifying"),
            false => self.start("verifying"),
        }
    }

    fn failed(&mut self, what: &str, reason: &str) {
        self.say(&format!("{what}: {reason}"));
    }

    fn waiting(&mut self, _lock: &Path) {
        self.say("another process is fetching it; waiting");
    }

    fn done(&mut self, _path: &Path) {
        self.clear();
    }
}

/// When to say how far a transfer is, and what.
#[derive(Default)]
struct Lines {
    /// Where this transfer began, and its total.
    began: Option<(Duration, u64, u64)>,
    /// When the last line was said, and at how many bytes.
    said: (Duration, u64),
}

impl Lines {
    /// The line for `done` of `total` bytes at the time `now`, if one is due: a tenth further
    /// or half a minute later, but five seconds apart.
    fn next(&mut self, now: Duration, done: u64, total: u64) -> Option<String> {
        let (start, first) = match self.began {
            Some((start, first, of)) if of == total && done >= self.said.1 => (start, first),
            _ => {
                self.began = Some((now, done, total));
                self.said = (now, done);
                return None;
            }
        };
        let since = now.saturating_sub(self.said.0);
        let further = done.saturating_sub(self.said.1) >= total / 10;
        if since < LEAST || !(further || since >= MOST) || done >= total {
            return None;
        }
        self.said = (now, done);
        let seconds = now.saturating_sub(start).as_secs_f64();
        let rate = done.saturating_sub(first) as f64 / seconds.max(1e-3);
        let left = match rate > 0.0 {
            true => format!("{} left", duration((total - done) as f64 / rate)),
            false => "nothing arrives".to_owned(),
        };
        let percent = 100.0 * done as f64 / total as f64;
        let (done, total, rate) = (size::show(done), size::show(total), size::show(rate as u64));
        Some(format!("{done} of {total} ({percent:.0} %), {rate}/s, {left}"))
    }
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_now_and_then() {
        let mut lines = Lines::default();
        let mut at = |seconds: f64, done: u64| {
            lines.next(Duration::from_secs_f64(seconds), done, 1_000_000_000)
        };
        assert_eq!(at(0.0, 0), None);
        assert_eq!(at(4.9, 300_000_000), None, "too soon");
        let line = at(5.0, 300_000_000).unwrap();
        assert!(line.contains("(30 %)") && line.contains("/s, 12 s left"), "{line}");
        assert_eq!(at(11.0, 350_000_000), None, "too little has changed");
        let line = at(35.0, 350_000_000).unwrap();
        assert!(line.contains("(35 %)") && line.contains("1 min 5 s left"), "{line}");
        assert_eq!(at(45.0, 1_000_000_000), None, "it is done");
        // Another transfer, of the rest.
        assert_eq!(lines.next(Duration::from_secs(50), 10, 500), None);
        assert!(lines.next(Duration::from_secs(56), 100, 500).unwrap().contains("(20 %)"));
        let line = lines.next(Duration::from_secs(90), 100, 500).unwrap();
        assert!(line.contains(" left"), "{line}");
    }
}
