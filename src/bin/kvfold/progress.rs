//! How far a long prompt has come: a bar where stderr is a terminal, else a line now and then.

use crate::terminal::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is done sooner needs no bar.
const SOON: Duration = Duration::from_secs(1);
/// Between lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(15);

/// The progress of one prompt.
pub struct Prefill {
    bar: ProgressBar,
    /// Shows the bar after [`SOON`], unless the other end is dropped before.
    timer: Option<(Sender<()>, JoinHandle<()>)>,
    /// When the last line was written, where lines are.
    said: Option<Instant>,
}

impl Prefill {
    /// Of a prompt of so many tokens, whose computation begins now; nothing is shown if
    /// `quiet`.
    pub fn begin(tokens: usize, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(tokens as u64), ProgressDrawTarget::hidden());
        if let Ok(style) =
            ProgressStyle::with_template("prompt [{bar:30}] {pos}/{len} tokens {eta}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        let is_terminal = std::io::stderr().is_terminal();
        let timer = (!quiet && is_terminal).then(|| {
            let (over, done) = channel();
            let bar = bar.clone();
            let timer = std::thread::spawn(move || {
                if done.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.tick();
                }
            });
            (over, timer)
        });
        let said = (!quiet && !is_terminal).then(Instant::now);
        Self { bar, timer, said }
    }

    /// So many tokens are done.
    pub fn step(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if self.said.is_some_and(|said| said.elapsed() >= EVERY) {
            say(format_args!("prompt: {done} of {} tokens", self.bar.length().unwrap_or(0)));
            self.said = Some(Instant::now());
        }
    }

    /// Takes the bar away, before anything else is printed.
    pub fn end(&mut self) {
        if self.bar.is_finished() {
            return;
        }
        if let Some((over, timer)) = self.timer.take() {
            drop(over);
            // It only draws.
            let _ = timer.join();
        }
        self.bar.finish_and_clear();
    }
}
