//! Results as one HTML page that needs nothing else: tables, pictures, what failed and
//! the spec.
//!
//! | module | what it does |
//! |---|---|
//! | `read` | rows from files |
//! | `group` | which rows are compared, and how they compare |
//! | `pareto`, `labels`, `heat`, `svg` | pictures |
//! | `page`, `facts` | words and numbers for `page.html` |

mod facts;
mod group;
mod heat;
mod labels;
mod page;
mod pareto;
mod read;
mod svg;

pub use page::{Options, page};
pub use read::Rows;

use crate::error::{Error, Result};
use std::path::Path;

/// Writes `html` to `path`, which has the old content or the new, never a part.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: impl AsRef<Path>, html: &str) -> Result<()> {
    let path = path.as_ref();
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = std::fs::write(&part, html).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        // What is reported is the failure to write.
        let _ = std::fs::remove_file(&part);
        Error::io(path, error)
    })
}
