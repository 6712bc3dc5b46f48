//! Memory of score passes.

use crate::backend::cuda::params::ScoreTop;
use crate::backend::cuda::score::{ScoreStarts, TopScratch};
use crate::backend::driver::{Device, DeviceBuffer};
use crate::error::Result;

/// Memory of passes. It only grows, so that captured steps outlive a pass.
pub(super) struct ScoreBuffers {
    pub starts: ScoreStarts,
    pub scores: DeviceBuffer<f32>,
    pub tops: DeviceBuffer<ScoreTop>,
    pub parts: TopScratch,
}

impl ScoreBuffers {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            starts: ScoreStarts::new(device)?,
            scores: device.alloc(0)?,
            tops: device.alloc(0)?,
            parts: TopScratch::new(device)?,
        })
    }
}
