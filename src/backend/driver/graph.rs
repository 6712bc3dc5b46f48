//! Work that is recorded once and launched as a whole, again and again.

use super::device::Device;
use super::raw::RawGraph;
use super::stream::DeviceStream;
use crate::error::Result;
use std::cell::Cell;
use std::marker::PhantomData;

/// Launches, copies and fills of one stream, in order, with their parameters and
/// addresses as they were when it was [captured](DeviceStream::capture).
#[derive(Debug)]
pub struct DeviceGraph {
    device: Device,
    raw: RawGraph,
    // A graph may move between threads, but drivers do not lock it.
    one_thread: PhantomData<Cell<()>>,
}

impl DeviceStream {
    /// Records what `work` enqueues on this stream instead of running it. An error of
    /// `work` ends the capture and discards what it recorded.
    ///
    /// Launches, [`copy_from`](super::DeviceBuffer::copy_from),
    /// [`fill`](super::DeviceBuffer::fill) and copies of pinned memory can be captured.
    /// Whatever waits for the stream, copies to or from ordinary host memory, and
    /// allocates or frees device memory cannot: it is an error, or spoils the capture,
    /// which is one at the end. Run the same work once before: kernels are loaded, and
    /// lists grow, when they are first used. Other threads are free to do what they
    /// like on other streams meanwhile.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Device`](crate::Error::Device) if the stream is the
    /// default one or captures already, or if something spoiled the capture.
    pub fn capture(&self, work: impl FnOnce(&DeviceStream) -> Result<()>) -> Result<DeviceGraph> {
        // SAFETY: the stream is live and the device's.
        unsafe { self.device().driver().begin_capture(self.raw())? };
        // Ends the capture if `work` fails or panics.
        let capture = Capture { stream: self };
        work(self)?;
        let graph = capture.end();
        std::mem::forget(capture);
        graph
    }
}

/// A stream that captures until this is dropped.
struct Capture<'a> {
    stream: &'a DeviceStream,
}

impl Capture<'_> {
    fn end(&self) -> Result<DeviceGraph> {
        let device = self.stream.device();
        // SAFETY: the stream is live and the device's.
        let raw = unsafe { device.driver().end_capture(self.stream.raw())? };
        Ok(DeviceGraph { device: device.clone(), raw, one_thread: PhantomData })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // Whether it was spoiled does not matter any more.
        drop(self.end());
    }
}

impl DeviceGraph {
    /// Runs what was captured, in the order of `stream`.
    ///
    /// # Errors
    /// What goes wrong while it runs is reported by a later call.
    ///
    /// # Safety
    /// What was promised for each captured launch and copy holds for this run, too: all
    /// memory that it names is live until it has run, and not used by other work that
    /// runs meanwhile, unless both only read. The graph is not dropped before that.
    pub unsafe fn launch(&self, stream: &DeviceStream) -> Result<()> {
        self.device.expect(stream.device(), "launch a graph")?;
        // SAFETY: the caller's promise; graph and stream are live and the device's.
        unsafe { self.device.driver().launch_graph(self.raw, stream.raw()) }
    }
}

impl Drop for DeviceGraph {
    fn drop(&mut self) {
        // SAFETY: it is live, the device's, and gone after this; the promise to
        // `launch` is that it has run.
        unsafe { self.device.driver().destroy_graph(self.raw) }
    }
}
