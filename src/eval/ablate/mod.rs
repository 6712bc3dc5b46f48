//! Grids of measurements: what a spec spans, measured once a cell, a line each.
//!
//! ```text
//! Spec ─▶ grid: cells in a fixed order, a key each ─▶ run ─▶ ResultFile: JSON lines
//!          less those whose key has a line already ──┘   └─ workers ─▶ report
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `spec`, `locate` | the TOML file; errors with line, column and key |
//! | `grid`, `identity` | cells and their keys |
//! | `row`, `output` | a line; the file of lines, which survives being interrupted |
//! | `runner` | cells side by side within a limit of memory |
//! | `local`, `process` | measuring a cell; doing so in processes of their own |
//! | `memory` | how much a cell takes, and how much there is |

mod grid;
mod identity;
mod local;
mod locate;
mod memory;
mod output;
mod process;
mod row;
mod runner;
mod spec;

pub use grid::{ModelFiles, Planned, grid};
pub use identity::identity;
pub use local::{Job, Local};
pub use memory::{ModelFacts, available};
pub use output::ResultFile;
pub use process::{Processes, serve};
pub use row::{Cell, Machine, Row, cores};
pub use runner::{
    CellLimits, Executor, Failure, Measured, Need, Plan, Summary, Watch, Worker, pending, run,
};
pub use spec::{NO_POLICY, POLICIES, Spec};

pub(in crate::eval) use output::parse;
