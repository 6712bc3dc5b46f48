//! Bytes from a reader into the `.part`, so that a cancel is heard at once
//! even while the reader blocks.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use super::fail::Fail;
use super::options::FetchOptions;
use super::place::Place;
use super::progress::Progress;

const CHUNK: usize = 256 << 10;

/// How often the cancel flag is looked at while nothing arrives.
const POLL: Duration = Duration::from_millis(50);

/// How a transfer ended.
pub(super) enum Ended {
    /// All bytes that were wanted are in the `.part`.
    Complete,
    /// Bytes are missing, for this reason; those that came are kept.
    Short(String),
    /// The source has more bytes than the manifest says.
    TooLong,
}

/// Runs `work` on a thread of its own and waits for its result. When
/// cancelled, the thread is left to end by itself.
pub(super) fn in_background<T: Send + 'static>(
    options: &FetchOptions,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fail> {
    let (sender, receiver) = sync_channel(1);
    spawn(move || {
        let _ = sender.send(work());
    })?;
    receive(&receiver, options)?.ok_or_else(|| Fail::Source("the worker thread failed".to_owned()))
}

/// Appends what `reader` gives to the `.part`: the file's bytes of `range`, whose start
/// is the size of the `.part`.
pub(super) fn into_part(
    mut reader: impl Read + Send + 'static,
    range: Range<u64>,
    place: &Place<'_>,
    options: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Ended, Fail> {
    let mut part = place.writer(range.start)?;
    let (sender, receiver) = sync_channel(4);
    spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = match reader.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read,
            };
            let last = !matches!(read, Ok(1..));
            let message = read.map(|n| {
                chunk.truncate(n);
                chunk
            });
            if sender.send(message).is_err() || last {
                return;
            }
        }
    })?;
    let total = place.size();
    let mut done = range.start;
    let mut reason = "the connection was closed".to_owned();
    progress.transferring();
    progress.bytes(done, total);
    while let Some(message) = receive(&receiver, options)? {
        match message {
            Ok(chunk) => {
                done += chunk.len() as u64;
                if done > range.end {
                    return Ok(Ended::TooLong);
                }
                part.write_all(&chunk).map_err(|error| place.write_failed(error))?;
                progress.bytes(done, total);
            }
            Err(error) => reason = error.to_string(),
        }
    }
    if done == range.end {
        return Ok(Ended::Complete);
    }
    Ok(Ended::Short(format!("{reason} after {done} of {total} bytes")))
}

/// Sleeps, unless cancelled.
pub(super) fn pause(time: Duration, options: &FetchOptions) -> Result<(), Fail> {
    let mut left = time;
    while !left.is_zero() {
        options.check_cancel()?;
        let step = left.min(POLL);
        thread::sleep(step);
        left -= step;
    }
    Ok(options.check_cancel()?)
}

/// The next message, or None when the sender is gone.
fn receive<T>(receiver: &Receiver<T>, options: &FetchOptions) -> Result<Option<T>, Fail> {
    loop {
        options.check_cancel()?;
        match receiver.recv_timeout(POLL) {
            Ok(message) => return Ok(Some(message)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Starts a thread that nobody joins.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Fail> {
    match thread::Builder::new().name("kvfold-fetch".to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::Source(format!("no thread could be started: {error}"))),
    }
}
