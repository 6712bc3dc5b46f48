//! The backend itself; what it does is in a file for each of its four traits.

use super::drawn::DrawnTokens;
use super::simd::Level;

/// An instruction set, and the tokens drawn.
pub struct CpuBackend {
    pub(super) level: Level,
    pub(super) drawn: DrawnTokens,
}

impl CpuBackend {
    /// A backend at the processor's best level.
    pub fn new() -> Self {
        Self::with_level(Level::best())
    }

    /// A backend at a given level; one that the processor lacks runs portably.
    pub fn with_level(level: Level) -> Self {
        Self { level, drawn: DrawnTokens::default() }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}
