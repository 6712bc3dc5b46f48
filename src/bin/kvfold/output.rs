//! Files that appear only when they are complete.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// Writes a file beside its place and moves it there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name =
        path.file_name().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "names no file"))?;
    let mut part = name.to_owned();
    part.push(".part");
    let part = path.with_file_name(part);
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // What is reported is the failure to write.
        let _ = std::fs::remove_file(&part);
    }
    written
}
