//! Standard input: who would write to it, waiting for the first byte, and what it is for.

use crate::run_args::RunArgs;
use crate::terminal::{note, say};
use anyhow::{Context, Result, bail};
use kvfold::rag::{Document, read_document};
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long input that was not asked for may take to begin. Programs that start others often
/// leave a pipe open to which nobody writes; `--file -` waits for as long as it takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Other names of standard input, which are opened and read as files.
const DEVICES: [&str; 3] = ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// When the user is told what is waited for.
const SILENT: Duration = Duration::from_secs(1);

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// There is something to read.
    Comes,
    /// It has ended, or cannot be read.
    Ended,
    /// Nothing came in time.
    Silent,
}

/// Whether a person or program has put something there: a pipe, a file or a socket, as
/// opposed to a terminal or a device such as `/dev/null`.
#[cfg(unix)]
fn is_piped() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return false;
    }
    let own = stdin.as_fd().try_clone_to_owned().map(std::fs::File::from);
    own.and_then(|own| own.metadata()).is_ok_and(|known| {
        let kind = known.file_type();
        kind.is_fifo() || kind.is_file() || kind.is_socket()
    })
}

#[cfg(not(unix))]
fn is_piped() -> bool {
    !std::io::stdin().is_terminal()
}

/// Waits for the first byte, no longer than `patience`; after a second the user is told.
fn wait(patience: Option<Duration>) -> Input {
    let (found, first) = channel();
    // It goes on waiting when this function gives up, and ends with the process.
    std::thread::spawn(move || {
        let comes = std::io::stdin().lock().fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        let _ = found.send(comes);
    });
    let input = |comes| if comes { Input::Comes } else { Input::Ended };
    match first.recv_timeout(SILENT) {
        Ok(comes) => return input(comes),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => return Input::Ended,
    }
    match patience {
        _ if std::io::stdin().is_terminal() => say("reading from the terminal until Ctrl-D"),
        None => say("waiting for standard input"),
        Some(patience) => say(format_args!(
            "waiting up to {} s for standard input, which is open (</dev/null: go on at once)",
            patience.as_secs()
        )),
    }
    let Some(patience) = patience else { return first.recv().map_or(Input::Ended, input) };
    match first.recv_timeout(patience.saturating_sub(SILENT)) {
        Ok(comes) => input(comes),
        Err(RecvTimeoutError::Timeout) => Input::Silent,
        Err(RecvTimeoutError::Disconnected) => Input::Ended,
    }
}

/// What was piped in without being asked for, if anything was. What was asked for is waited
/// for and left to be read where it is named.
///
/// # Errors
/// If it is not text, or named more than once.
pub fn piped(args: &RunArgs) -> Result<Option<Document>> {
    let stdin = Path::new("-");
    let named = || args.file.iter().chain(&args.docs);
    let opened = named().any(|path| DEVICES.iter().any(|name| path == Path::new(name)));
    match named().filter(|path| *path == stdin).count() {
        0 if opened || !is_piped() => return Ok(None),
        0 => {}
        1 if !opened => {
            wait(None);
            return Ok(None);
        }
        _ => bail!("standard input can be read only once; name - once"),
    }
    let is_question = args.question.trim().is_empty() && !args.show_context;
    match wait((!is_question).then_some(PATIENCE)) {
        Input::Comes => Ok(Some(read_document(stdin).context("standard input")?)),
        Input::Ended => Ok(None),
        Input::Silent => {
            note("nothing came, so standard input is not used; --file - waits for it");
            Ok(None)
        }
    }
}
