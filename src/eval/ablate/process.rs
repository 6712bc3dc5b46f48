//! Workers that are processes of their own.
//!
//! The pool of threads behind the dense layers is one a process and serves one caller at
//! a time, so cells run side by side only in several. It also keeps a worker that is
//! killed for want of memory from taking the others along, and gives all memory back.
//!
//! ```text
//! run ── a Job a line ──▶ worker's stdin      closed when the run ends, however it ends:
//! run ◀── a Told a line ── worker's stdout    the worker then stops, too
//! ```

use super::local::{Job, Local};
use super::memory::ModelFacts;
use super::row::Cell;
use super::runner::{Executor, Failure, Measured, Need, Worker};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a worker says, one JSON object a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// So many steps of so many are done.
    Step(usize, usize),
    /// The cell is done.
    Done(Box<Measured>),
    /// It failed.
    Failed(String),
}

/// The worker's side: measures the jobs that come in until there are no more.
///
/// # Errors
/// [`Error::Io`] if nobody listens, [`Error::Config`] for a line that is no job.
pub fn serve(input: impl BufRead + Send + 'static, mut output: impl Write) -> Result<()> {
    let cancel = Arc::new(AtomicBool::new(false));
    let (jobs, lines) = channel();
    let over = cancel.clone();
    std::thread::spawn(move || {
        for line in input.lines() {
            let Ok(line) = line else { break };
            if jobs.send(line).is_err() {
                break;
            }
        }
        // The run has ended; a cell in the middle is of no use to anyone.
        over.store(true, Ordering::Relaxed);
    });
    let mut local = Local::default();
    for line in lines {
        let job: Job = serde_json::from_str(&line)
            .map_err(|error| Error::config("job", format!("not a job: {error}")))?;
        let mut unheard = Ok(());
        let result = local.run(&job, &cancel, &mut |done, of| {
            if unheard.is_ok() {
                unheard = tell(&mut output, &Told::Step(done, of));
            }
        });
        unheard?;
        let told = match result {
            Ok(measured) => Told::Done(Box::new(measured)),
            Err(Error::Cancelled) => return Ok(()),
            Err(error) => Told::Failed(error.to_string()),
        };
        tell(&mut output, &told)?;
    }
    Ok(())
}

fn tell(output: &mut impl Write, told: &Told) -> Result<()> {
    let send = |output: &mut dyn Write| -> std::io::Result<()> {
        let mut line = serde_json::to_vec(told)?;
        line.push(b'\n');
        output.write_all(&line)?;
        output.flush()
    };
    send(output).map_err(|error| Error::io("stdout", error))
}

/// Starts workers by a command that ends in [`serve`].
pub struct Processes<F> {
    /// Models by their names in the spec.
    pub models: BTreeMap<String, ModelFacts>,
    /// The command of a worker.
    pub command: F,
}

impl<F: Fn() -> Command + Sync> Executor for Processes<F> {
    fn need(&self, cell: &Cell) -> Need {
        self.models.get(&cell.model).map(|model| model.need(cell)).unwrap_or_default()
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>> {
        let mut command = (self.command)();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // An interruption from the keyboard is for the run, which tells its workers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| Error::io(command.get_program(), error))?;
        let (told, hear) = channel();
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(stdout) = stdout {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                    if told.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let last_words = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = stderr {
            let last_words = last_words.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(|line| line.ok()) {
                    *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
                }
            });
        }
        Ok(Box::new(Process { models: &self.models, child, stdin, hear, last_words }))
    }
}

/// A worker process.
struct Process<'a> {
    models: &'a BTreeMap<String, ModelFacts>,
    child: Child,
    stdin: Option<ChildStdin>,
    hear: Receiver<String>,
    /// The last line of its stderr.
    last_words: Arc<Mutex<String>>,
}

impl Process<'_> {
    /// Why it says nothing any more.
    fn ended(&mut self) -> Failure {
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = if words.is_empty() { String::new() } else { format!(": {words}") };
        Failure::Failed(format!(
            "the worker process ended ({how}){words}; if memory was short, lower --memory or --jobs"
        ))
    }
}

impl Worker for Process<'_> {
    fn run(
        &mut self,
        cell: &Cell,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Measured, Failure> {
        let model = self.models.get(&cell.model);
        let path = model.ok_or_else(|| Error::NotFound { what: cell.model.clone() })?.path.clone();
        let job = Job { path, cell: cell.clone() };
        let mut line =
            serde_json::to_vec(&job).map_err(|error| Error::config("job", error.to_string()))?;
        line.push(b'\n');
        let sent = self.stdin.as_mut().map(|stdin| stdin.write_all(&line));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.ended());
        }
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Failure::Cancelled);
            }
            let line = match self.hear.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            };
            match serde_json::from_str(&line) {
                Ok(Told::Step(done, of)) => progress(done, of),
                Ok(Told::Done(measured)) => return Ok(*measured),
                Ok(Told::Failed(why)) => return Err(Failure::Failed(why.replace('\n', " "))),
                Err(error) => {
                    let what = format!("the worker said what is no answer ({error}): {line}");
                    return Err(Failure::Failed(what));
                }
            }
        }
    }
}

impl Drop for Process<'_> {
    /// Ends it at once: what it has not reported is not wanted.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
