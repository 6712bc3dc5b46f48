//! The floor under devices: what a driver must do.

use crate::error::Result;
use std::ptr::NonNull;
use std::time::Duration;

/// What a device is; it does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Its architecture: ten times the compute capability, 90 for `sm_90`.
    pub arch: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block can have.
    pub shared_bytes: u32,
    /// Bytes of the second-level cache.
    pub l2_bytes: u32,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that could still be allocated.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The shape of a launch: a grid of one-dimensional blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y and z. If one of them is 0, nothing is launched.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads, without shared memory.
    pub fn new(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], threads, shared_bytes: 0 }
    }

    /// A three-dimensional grid of blocks of `threads` threads.
    pub fn grid(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, threads, shared_bytes: 0 }
    }

    /// With `bytes` of dynamic shared memory.
    pub fn shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }
}

/// A stream of a [`Driver`]: its own handle in a word. 0 is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawStream(pub u64);

/// An event of a [`Driver`]: its own handle in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEvent(pub u64);

/// Captured work of a [`Driver`]: its own handle in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawGraph(pub u64);

/// The floor under [`Device`](super::Device): untyped memory and handles.
///
/// Work on one stream runs in order. Addresses are the device's; nothing is
/// checked here, which is why most of it is unsafe.
///
/// # Safety of all unsafe functions
/// Ranges lie within live allocations of this driver, streams, events and graphs are
/// live ones of this driver, and no range is used by two operations at once of
/// which one writes. Captured work must keep to this whenever its graph is launched.
pub trait Driver: Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;
    /// Its memory now.
    fn memory(&self) -> Result<MemoryInfo>;

    /// The CUDA context that its memory and streams are of, for libraries that work in
    /// it; none if it is no CUDA device.
    #[cfg(feature = "cuda")]
    fn cuda_context(&self) -> Option<&super::cuda::context::Context> {
        None
    }

    /// Allocates `bytes > 0` bytes of unspecified content, aligned to 256.
    fn alloc(&self, bytes: u64) -> Result<u64>;
    /// Frees what [`alloc`](Self::alloc) gave, once all work that uses it is done.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free(&self, address: u64);

    /// Copies to the device, in stream order. `from` may be reused on return.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn write(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()>;
    /// Copies from the device once the stream's earlier work is done, and waits.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn read(&self, from: u64, to: &mut [u8], stream: RawStream) -> Result<()>;
    /// Copies within the device, in stream order; the ranges do not overlap.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy(&self, from: u64, to: u64, bytes: u64, stream: RawStream) -> Result<()>;
    /// Sets bytes, in stream order.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn fill(&self, at: u64, value: u8, bytes: u64, stream: RawStream) -> Result<()>;
    /// Launches a kernel with its one parameter struct, in stream order.
    ///
    /// # Safety
    /// See the trait, for all memory that the kernel uses; `params` are the bytes
    /// of the struct that it takes.
    unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        stream: RawStream,
    ) -> Result<()>;

    /// Blocks of a kernel that one multiprocessor holds at once, when they are launched with
    /// as many threads and bytes of dynamic shared memory: at least 1.
    fn resident_blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<u32>;

    /// A new stream, independent of all others.
    fn create_stream(&self) -> Result<RawStream>;
    /// Releases a stream; its work is completed all the same.
    ///
    /// # Safety
    /// See the trait; it is not used again.
    unsafe fn destroy_stream(&self, stream: RawStream);
    /// Waits until all work of a stream is done.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn synchronize(&self, stream: RawStream) -> Result<()>;

    /// Waits until all work of all streams is done.
    fn synchronize_all(&self) -> Result<()>;

    /// A new event. Only one that is `timed` measures; one that does not costs less.
    fn create_event(&self, timed: bool) -> Result<RawEvent>;
    /// Releases an event.
    ///
    /// # Safety
    /// See the trait; it is not used again.
    unsafe fn destroy_event(&self, event: RawEvent);
    /// Marks the present end of a stream's work.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()>;
    /// Lets a stream's later work wait for a recorded event.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()>;
    /// The time between two recorded events that are timed; waits for the later one.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn elapsed(&self, start: RawEvent, end: RawEvent) -> Result<Duration>;
    /// Whether what an event marks is done; true if it was never recorded.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn is_done(&self, event: RawEvent) -> Result<bool>;
    /// Lets the host wait for what an event marks.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn await_event(&self, event: RawEvent) -> Result<()>;

    /// From now on, launches, copies and fills on the stream are recorded, not run.
    /// While that lasts, what waits for the stream, copies to or from ordinary host
    /// memory, and allocations by this thread are errors, which spoil the capture.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()>;
    /// Ends the capture, whatever it returns, and makes what it recorded ready to run.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph>;
    /// Runs what was captured, in stream order.
    ///
    /// # Safety
    /// See the trait, for all that was captured; no other thread launches the graph
    /// meanwhile.
    unsafe fn launch_graph(&self, graph: RawGraph, stream: RawStream) -> Result<()>;
    /// Releases a graph.
    ///
    /// # Safety
    /// See the trait; it has run and is not used again.
    unsafe fn destroy_graph(&self, graph: RawGraph);

    /// Allocates `bytes > 0` bytes of page-locked host memory, all 0, aligned to a page.
    fn alloc_host(&self, bytes: u64) -> Result<NonNull<u8>>;
    /// Frees what [`alloc_host`](Self::alloc_host) gave.
    ///
    /// # Safety
    /// `memory` came from there, with these `bytes`; no copy uses it still.
    unsafe fn free_host(&self, memory: NonNull<u8>, bytes: u64);
    /// Copies from page-locked host memory to the device, in stream order, and does
    /// not wait for it.
    ///
    /// # Safety
    /// See the trait; `from` is live and not written before the copy is done.
    unsafe fn write_pinned(
        &self,
        to: u64,
        from: *const u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()>;
    /// Copies from the device to page-locked host memory, in stream order, and does
    /// not wait for it.
    ///
    /// # Safety
    /// See the trait; `to` is live and not used before the copy is done.
    unsafe fn read_pinned(
        &self,
        from: u64,
        to: *mut u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()>;

    /// What sizes and addresses of virtual memory are multiples of.
    fn granularity(&self) -> Result<u64>;
    /// Reserves a range of addresses without memory behind them.
    fn reserve(&self, bytes: u64) -> Result<u64>;
    /// Puts memory of unspecified content behind a part of a reserved range.
    ///
    /// # Safety
    /// The part lies in a reserved range, and none of it has memory yet.
    unsafe fn commit(&self, address: u64, bytes: u64) -> Result<()>;
    /// Takes the memory away again.
    ///
    /// # Safety
    /// One call to [`commit`](Self::commit) gave memory to exactly this part; all work
    /// that uses it is done.
    unsafe fn decommit(&self, address: u64, bytes: u64);
    /// Gives a reserved range up.
    ///
    /// # Safety
    /// [`reserve`](Self::reserve) gave exactly this range; it has no memory left, and all
    /// work that uses it is done.
    unsafe fn release(&self, address: u64, bytes: u64);
}
