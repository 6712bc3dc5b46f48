//! The file of results: appended to, line by line, by one process at a time.

use super::row::Row;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open file of results. A row is on disk when [`append`](Self::append) returns; the
/// system drops the lock however the process ends.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
    /// Bytes of the complete lines.
    len: u64,
    rows: Vec<Row>,
    cut: Option<usize>,
}

impl ResultFile {
    /// Opens or creates `path`, locks it and reads what is in it. A last line that was
    /// cut off while it was written is removed: [`cut`](Self::cut) says so.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for what is no file, as nothing can be found there
    /// again, if another process is writing to it, or naming the first line that is not a
    /// row; nothing is changed then.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let no_file = std::fs::metadata(&path).is_ok_and(|known| !known.is_file());
        if no_file || path == Path::new("-") {
            let what =
                "results are added to a file, where the next run finds them, and this is none";
            return Err(Error::bad_file(&path, what, "name a file; `tail -f` follows it"));
        }
        let io = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => {
                let remedy = "create it, or choose another --output";
                Error::bad_file(&path, "its folder does not exist", remedy)
            }
            _ => Error::io(&path, error),
        };
        let mut how = OpenOptions::new();
        let mut file = how.create(true).read(true).append(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::bad_file(
                    &path,
                    "another process is writing to it",
                    "wait until it is done, or choose another --output",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let complete = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let (lines, rest) = bytes.split_at(complete);
        let mut rows = parse(&path, lines)?;
        let mut output = Self { path, file, len: complete as u64, rows: Vec::new(), cut: None };
        match parse(&output.path, rest) {
            _ if rest.is_empty() => {}
            // Only the end of the line is missing.
            Ok(row) => {
                rows.extend(row);
                output.file.write_all(b"\n").map_err(|e| output.io(e))?;
                output.len = bytes.len() as u64 + 1;
            }
            Err(_) => {
                output.file.set_len(output.len).map_err(|e| output.io(e))?;
                output.cut = Some(rest.len());
            }
        }
        output.rows = rows;
        Ok(output)
    }

    /// The rows that were there and those that were appended, oldest first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the last line that was cut off, if one was.
    pub fn cut(&self) -> Option<usize> {
        self.cut
    }

    /// Writes a row to the disk.
    ///
    /// # Errors
    /// [`Error::Io`]; what was written of the row is taken back.
    pub fn append(&mut self, row: Row) -> Result<()> {
        let mut line = serde_json::to_vec(&row).map_err(|e| self.io(e.into()))?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // If this fails, too, the next run cuts the line off.
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::End(0));
            return Err(self.io(error));
        }
        self.len += line.len() as u64;
        self.rows.push(row);
        Ok(())
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io(&self.path, error)
    }
}

impl Drop for ResultFile {
    /// Closing alone would not do: a process being started has a copy of the file until
    /// it runs its own program, and the lock would live as long.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// Reads rows, one a line; blank lines are passed over.
///
/// # Errors
/// [`Error::BadFile`] naming the first line that is none.
pub(in crate::eval) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        rows.push(serde_json::from_slice(line).map_err(|error| {
            let what = format!("line {}: not a row of results: {error}", index + 1);
            Error::bad_file(path, what, "remove the line, or choose another file")
        })?);
    }
    Ok(rows)
}
