//! Steps that are captured once and repeated: one launch instead of hundreds.

use crate::backend::GraphKey;
use crate::backend::driver::{DeviceGraph, DeviceStream};
use crate::error::Result;
use std::collections::HashMap;

/// What a captured work is known by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub work: GraphKey,
    /// The arena that it uses.
    pub arena: u64,
    /// The sequences of its step.
    pub seqs: usize,
}

/// Works seen so far. A graph holds addresses, so all are forgotten as soon as a buffer was
/// allocated or freed on the device.
pub(super) struct Repeats {
    /// Whether works are captured at all.
    pub captures: bool,
    works: HashMap<Key, Work>,
    changes: u64,
    /// Steps that were done by launching a graph.
    pub repeated: u64,
}

enum Work {
    /// It has run, so its kernels are loaded and its buffers are large enough.
    Ran,
    Captured(DeviceGraph),
    /// It could not be captured, so each step of it is launched kernel by kernel.
    Plain,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { captures: true, works: HashMap::new(), changes: 0, repeated: 0 }
    }
}

impl Repeats {
    /// What is known of a work.
    pub fn stage(&mut self, key: &Key, stream: &DeviceStream) -> Result<Stage> {
        let now = stream.device().changes();
        if self.changes != now {
            self.forget(stream)?;
            self.changes = now;
        }
        Ok(match self.works.get(key) {
            None => Stage::New,
            Some(Work::Ran) => Stage::Ran,
            Some(Work::Captured(_)) => Stage::Captured,
            Some(Work::Plain) => Stage::Plain,
        })
    }

    /// A work has run for the first time, and may have allocated what it needs.
    pub fn ran(&mut self, key: Key, stream: &DeviceStream) -> Result<()> {
        self.stage(&key, stream)?;
        self.works.insert(key, Work::Ran);
        Ok(())
    }

    /// A work was captured, or could not be.
    pub fn captured(&mut self, key: Key, graph: Option<DeviceGraph>) {
        self.works.insert(key, graph.map_or(Work::Plain, Work::Captured));
    }

    /// Launches a captured work.
    ///
    /// # Safety
    /// Everything that it uses has lived since it was captured, lives until the stream
    /// has done it, and is used on this stream alone.
    pub unsafe fn launch(&mut self, key: &Key, stream: &DeviceStream) -> Result<()> {
        if let Some(Work::Captured(graph)) = self.works.get(key) {
            // SAFETY: the caller's promise; graphs are dropped by `forget`, which waits.
            unsafe { graph.launch(stream)? };
            self.repeated += 1;
        }
        Ok(())
    }

    /// Drops all graphs, once the stream has done with them.
    pub fn forget(&mut self, stream: &DeviceStream) -> Result<()> {
        if !self.works.is_empty() {
            stream.synchronize()?;
            self.works.clear();
        }
        Ok(())
    }
}

/// How far a work has come.
pub(super) enum Stage {
    New,
    Ran,
    Captured,
    Plain,
}
