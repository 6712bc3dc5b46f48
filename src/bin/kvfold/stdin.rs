//! Standard input: who would write to it, and waiting for the first byte.

use crate::terminal::say;
use std::io::{BufRead, IsTerminal};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long input that was not asked for may take to begin. Programs that start others often
/// leave a pipe open to which nobody writes; `--file -` waits for as long as it takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// When the user is told what is waited for.
const SILENT: Duration = Duration::from_secs(1);

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
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
pub fn is_piped() -> bool {
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
pub fn is_piped() -> bool {
    !std::io::stdin().is_terminal()
}

/// Waits for the first byte, no longer than `patience`; after a second the user is told.
pub fn wait(patience: Option<Duration>) -> Input {
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
