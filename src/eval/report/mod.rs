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
pub use read::ResultRows;
