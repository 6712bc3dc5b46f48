//! A cell and what became of it.

use crate::work::Cell;

/// What became of a cell.
pub enum Outcome {
    /// Median seconds of one run.
    Measured(f64),
    /// Why it was not measured.
    Skipped(String),
}

/// A cell with its outcome.
pub struct Row {
    /// With its family's.
    pub name: String,
    pub bytes: u64,
    pub flops: u64,
    pub outcome: Outcome,
}

impl Row {
    pub fn new(family: &str, cell: &Cell, outcome: Outcome) -> Self {
        let name = format!("{family}/{}", cell.name);
        Self { name, bytes: cell.bytes, flops: cell.flops, outcome }
    }

    pub fn seconds(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Measured(seconds) => Some(seconds),
            Outcome::Skipped(_) => None,
        }
    }
}
