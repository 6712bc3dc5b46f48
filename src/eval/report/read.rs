//! Rows from files of results.

use crate::error::{Error, Result};
use crate::eval::ablate::{Row, parse};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Rows of all files, the last one of each cell.
#[derive(Debug, Default)]
pub struct ResultRows {
    /// In the order in which the cells came first.
    pub rows: Vec<Row>,
    /// Files whose last line is not complete: they are still being written to, or the
    /// run was killed. That line is left out.
    pub incomplete: Vec<PathBuf>,
}

impl ResultRows {
    /// Reads files of results.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] naming file and line; [`Error::Document`] if
    /// there is no row at all.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = Self::default();
        let mut places: HashMap<String, usize> = HashMap::new();
        for path in paths {
            let path = path.as_ref();
            let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
            let complete = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
            let mut rows = parse(path, &bytes[..complete])?;
            match parse(path, &bytes[complete..]) {
                Ok(last) => rows.extend(last),
                // The only line of a file is more likely one of something else.
                Err(error) if complete == 0 => return Err(error),
                Err(_) => all.incomplete.push(path.to_owned()),
            }
            for row in rows {
                match places.get(&row.key) {
                    Some(&place) => all.rows[place] = row,
                    None => {
                        places.insert(row.key.clone(), all.rows.len());
                        all.rows.push(row);
                    }
                }
            }
        }
        if let (true, Some(first)) = (all.rows.is_empty(), paths.first()) {
            return Err(Error::Document {
                path: first.as_ref().to_owned(),
                what: "holds no rows of results".into(),
                remedy: "run `kvfold ablate` first".into(),
            });
        }
        Ok(all)
    }
}
