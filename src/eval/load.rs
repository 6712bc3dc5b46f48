//! Whether the machine was idle beside a measurement: speeds of a busy one say little.

use crate::ticks::Ticks;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Seconds below which the system's clock ticks are too coarse to tell.
const SHORTEST: f64 = 0.5;

/// The share of the cores that others may take of an idle machine.
const IDLE: f64 = 0.05;

/// What other processes took of the machine while something was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// How long it was looked at.
    pub seconds: f64,
    /// Cores that this process may run on.
    pub cores: usize,
    /// How many of them others took, in the mean; what a hypervisor took counts, too.
    pub others: f64,
    /// Processes that ran or wanted to, this one included: the system's mean over the last
    /// minute, at the end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub average: Option<f64>,
}

impl Load {
    /// Whether others left nearly all of the machine; `None`: it was not looked at for long
    /// enough.
    pub fn idle(&self) -> Option<bool> {
        let known = self.seconds >= SHORTEST && self.cores > 0 && self.others.is_finite();
        known.then_some(self.others <= IDLE * self.cores as f64)
    }
}

/// Looks at the machine from its making on.
#[derive(Debug)]
pub struct LoadWatch {
    start: Instant,
    ticks: Option<Ticks>,
}

impl LoadWatch {
    /// Begins to look.
    pub fn begin() -> Self {
        Self { start: Instant::now(), ticks: Ticks::now() }
    }

    /// What there was to see; `None` where the system does not tell.
    pub fn end(&self) -> Option<Load> {
        let (before, after) = (self.ticks?, Ticks::now()?);
        let share = after.others_since(&before)?;
        Some(Load {
            seconds: self.start.elapsed().as_secs_f64(),
            cores: after.cores,
            others: share * after.cores as f64,
            average: average(),
        })
    }
}

fn average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_looks_tell_nothing() {
        let load = |seconds, others| Load { seconds, cores: 2, others, average: None };
        assert_eq!(load(2.0, 0.05).idle(), Some(true));
        assert_eq!(load(2.0, 0.3).idle(), Some(false));
        assert_eq!(load(0.01, 0.0).idle(), None);
        assert_eq!(load(2.0, f64::NAN).idle(), None);
    }
}
