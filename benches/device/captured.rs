//! Runs recorded as one graph, as a model's steps are: a launch of it costs the host next
//! to nothing, and the gaps between its kernels are those of a captured step.

use crate::work::Work;
use kvfold::Result;
use kvfold::backend::driver::{Device, DeviceGraph, DeviceStream};

/// A work whose turns were captured.
pub struct Captured<W> {
    graph: DeviceGraph,
    device: Device,
    runs: usize,
    // What the graph names.
    work: W,
}

impl<W: Work> Captured<W> {
    /// Captures turns 0 to `runs` of a work, after the first was run once: what is loaded
    /// with a kernel's first launch cannot be captured.
    pub fn new(mut work: W, runs: usize, stream: &DeviceStream) -> Result<Self> {
        work.enqueue(0, stream)?;
        stream.synchronize()?;
        let all = |stream: &DeviceStream| (0..runs).try_for_each(|turn| work.enqueue(turn, stream));
        let graph = stream.capture(all)?;
        Ok(Self { graph, device: stream.device().clone(), runs, work })
    }

    /// What was captured.
    pub fn work(&self) -> &W {
        &self.work
    }
}

impl<W: Work> Work for Captured<W> {
    fn enqueue(&mut self, _turn: usize, stream: &DeviceStream) -> Result<()> {
        // SAFETY: all that it names is the work's, which lives as long; `drop` waits.
        unsafe { self.graph.launch(stream) }
    }

    fn runs(&self) -> usize {
        self.runs
    }
}

impl<W> Drop for Captured<W> {
    fn drop(&mut self) {
        // A device that failed has nothing left to wait for.
        let _ = self.device.driver().synchronize_all();
    }
}
