//! Whether a disk has room for what is to be fetched.

use std::path::Path;

use crate::error::{Error, Result};

/// Refuses if the disk of `folder`, which need not exist yet, lacks `needed` bytes. Where
/// the system does not say what is free, the write itself will.
pub(super) fn check(folder: &Path, needed: u64) -> Result<()> {
    let Some(there) = folder.ancestors().find(|path| path.is_dir()) else { return Ok(()) };
    // Some network file systems say that they have no room at all, in all.
    let known = fs4::total_space(there).is_ok_and(|total| total > 0);
    match fs4::available_space(there) {
        Ok(free) if known && free < needed => {
            Err(Error::DiskFull { folder: folder.to_owned(), needed })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_disk_is_refused_and_little_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("not/yet");
        assert!(check(&absent, 1).is_ok() && check(folder.path(), 0).is_ok());
        let error = check(&absent, 1 << 62).unwrap_err();
        assert!(matches!(error, Error::DiskFull { needed, .. } if needed == 1 << 62), "{error}");
    }
}
