//! Files that appear only when they are complete.

use crate::error::{Error, Result};
use std::path::Path;

/// Writes `bytes` to `path`, which has the old content or the new, never a part.
///
/// # Errors
/// [`Error::Io`].
pub fn write_whole(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        // What is reported is the failure to write.
        let _ = std::fs::remove_file(&part);
        Error::io(path, error)
    })
}
