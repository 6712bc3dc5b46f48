//! CUDA devices, through the driver API.
//!
//! Kernels are looked up by name in the embedded fatbins. Nothing here links to
//! CUDA: cudarc opens the driver's library when it is first needed.

mod answer;
pub(super) mod context;
mod functions;
mod graphs;
mod memory;
mod probe;

pub use context::{Context, Current};
pub use probe::{devices, driver_version};

use super::raw::{DeviceInfo, Driver, Launch, MemoryInfo, RawEvent, RawGraph, RawStream};
use crate::error::{Error, Result};
use answer::{check, complain, refused};
use cudarc::driver::sys;
use functions::KernelFunctions;
use graphs::handle;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// A CUDA device in one context.
pub struct CudaDriver {
    context: Arc<Context>,
    functions: KernelFunctions,
    info: DeviceInfo,
    /// Whether copies may read ordinary host memory after they were asked for.
    reads_host_pages: bool,
}

impl CudaDriver {
    /// Device number `ordinal`, in its primary context.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoKernelForArch`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let count = probe::init()?;
        if ordinal >= count {
            let what = format!("{ordinal} is not below {count}, the number of CUDA devices");
            return Err(Error::config("device", what));
        }
        let device = probe::device(ordinal)?;
        probe::serves(&probe::describe(device)?)?;
        Self::new(Context::primary(device)?)
    }

    /// Somebody else's context.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Safety
    /// `context` is a live `CUcontext` that outlives the result.
    pub unsafe fn borrow(context: *mut c_void) -> Result<Self> {
        probe::init()?;
        if context.is_null() {
            return Err(Error::misuse("context", "it is null"));
        }
        // SAFETY: the caller's promise.
        Self::new(unsafe { Context::borrow(context.cast())? })
    }

    fn new(context: Context) -> Result<Self> {
        let info = probe::describe(context.device())?;
        probe::serves(&info)?;
        let reads_host_pages = probe::reads_host_pages(context.device())?;
        let context = Arc::new(context);
        let functions = KernelFunctions::load(context.clone(), &info)?;
        Ok(Self { context, functions, info, reads_host_pages })
    }
}

impl Driver for CudaDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let _current = self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current.
        let status = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check("read the free memory", status)?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn cuda_context(&self) -> Option<&Context> {
        Some(&self.context)
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        let current = self.context.enter()?;
        let mut address = 0;
        // SAFETY: the context is current.
        let status = unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) };
        drop(current);
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = self.memory().map_or(0, |m| m.free);
            return Err(Error::DeviceOutOfMemory { needed: bytes, free });
        }
        check("allocate memory", status)?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise; it waits for work that is under way.
        let status = unsafe { sys::cuMemFree_v2(address) };
        complain("free memory", status);
    }

    unsafe fn write(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise. Ordinary memory has been staged on return, unless
        // the device reads it by itself; page-locked memory may still be read. Both are
        // waited for.
        unsafe {
            graphs::not_captured(stream, "copy to the device")?;
            let host = from.as_ptr().cast();
            let status = sys::cuMemcpyHtoDAsync_v2(to, host, from.len(), handle(stream));
            check("copy to the device", status)?;
            match self.reads_host_pages || is_page_locked(host) {
                true => check("copy to the device", sys::cuStreamSynchronize(handle(stream))),
                false => Ok(()),
            }
        }
    }

    unsafe fn read(&self, from: u64, to: &mut [u8], stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise; the copy is waited for.
        unsafe {
            graphs::not_captured(stream, "copy from the device")?;
            let host = to.as_mut_ptr().cast();
            let status = sys::cuMemcpyDtoHAsync_v2(host, from, to.len(), handle(stream));
            check("copy from the device", status)?;
            check("copy from the device", sys::cuStreamSynchronize(handle(stream)))
        }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: u64, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, handle(stream)) };
        check("copy within the device", status)
    }

    unsafe fn fill(&self, at: u64, value: u8, bytes: u64, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let status = unsafe { sys::cuMemsetD8Async(at, value, bytes as usize, handle(stream)) };
        check("fill memory", status)
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        stream: RawStream,
    ) -> Result<()> {
        let _current = self.context.enter()?;
        let function = self.functions.get(kernel, shape.shared_bytes, &self.info)?;
        let [x, y, z] = shape.grid;
        let mut bytes = params.len();
        // The parameters go as one buffer with its size, so that the driver can
        // refuse a struct of the wrong size.
        let mut extra: [*mut c_void; 5] = [
            CU_LAUNCH_PARAM_BUFFER_POINTER,
            params.as_ptr().cast_mut().cast(),
            CU_LAUNCH_PARAM_BUFFER_SIZE,
            (&raw mut bytes).cast(),
            CU_LAUNCH_PARAM_END,
        ];
        // SAFETY: the function is of this context; `extra` lives through the call,
        // which copies the parameters; the caller answers for what they name.
        let status = unsafe {
            let none = std::ptr::null_mut();
            let (threads, shared) = (shape.threads, shape.shared_bytes);
            let extra = extra.as_mut_ptr();
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared,
                handle(stream),
                none,
                extra,
            )
        };
        match status {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            _ => Err(refused(&format!("launch {kernel} as {shape:?}"), status)),
        }
    }

    fn resident_blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<u32> {
        let _current = self.context.enter()?;
        let function = self.functions.get(kernel, shared_bytes, &self.info)?;
        let doing = || format!("count the blocks of {kernel} that fit a multiprocessor");
        let mut blocks = 0;
        // SAFETY: the function is of this context.
        let status = unsafe {
            let (threads, shared) = (threads as i32, shared_bytes as usize);
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, threads, shared)
        };
        check(&doing(), status)?;
        match blocks {
            1.. => Ok(blocks as u32),
            _ => {
                let what = format!("none with {threads} threads and {shared_bytes} shared bytes");
                Err(Error::device(doing(), what))
            }
        }
    }

    fn create_stream(&self) -> Result<RawStream> {
        let _current = self.context.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current.
        check("create a stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(RawStream(stream as u64))
    }

    unsafe fn destroy_stream(&self, stream: RawStream) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise.
        complain("destroy a stream", unsafe { sys::cuStreamDestroy_v2(handle(stream)) });
    }

    unsafe fn synchronize(&self, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        check("wait for the device", unsafe { sys::cuStreamSynchronize(handle(stream)) })
    }

    fn synchronize_all(&self) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the context is current.
        check("wait for the device", unsafe { sys::cuCtxSynchronize() })
    }

    fn create_event(&self, timed: bool) -> Result<RawEvent> {
        let _current = self.context.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = match timed {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        // SAFETY: the context is current.
        check("create an event", unsafe { sys::cuEventCreate(&mut event, flags as u32) })?;
        Ok(RawEvent(event as u64))
    }

    unsafe fn destroy_event(&self, event: RawEvent) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise.
        complain("destroy an event", unsafe { sys::cuEventDestroy_v2(event.0 as sys::CUevent) });
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        let event = event.0 as sys::CUevent;
        // SAFETY: the caller's promise.
        check("record an event", unsafe { sys::cuEventRecord(event, handle(stream)) })
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let _current = self.context.enter()?;
        let event = event.0 as sys::CUevent;
        // SAFETY: the caller's promise; 0 is the only flag value for plain waits.
        check("wait for an event", unsafe { sys::cuStreamWaitEvent(handle(stream), event, 0) })
    }

    unsafe fn elapsed(&self, start: RawEvent, end: RawEvent) -> Result<Duration> {
        let _current = self.context.enter()?;
        let (start, end) = (start.0 as sys::CUevent, end.0 as sys::CUevent);
        let mut milliseconds = 0f32;
        // SAFETY: the caller's promise.
        unsafe {
            check("measure time", sys::cuEventSynchronize(end))?;
            check("measure time", sys::cuEventElapsedTime(&mut milliseconds, start, end))?;
        }
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }

    unsafe fn is_done(&self, event: RawEvent) -> Result<bool> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        match unsafe { sys::cuEventQuery(event.0 as sys::CUevent) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("ask for an event", status).map(|()| true),
        }
    }

    unsafe fn await_event(&self, event: RawEvent) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        check("wait for an event", unsafe { sys::cuEventSynchronize(event.0 as sys::CUevent) })
    }

    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the context is current; the caller's promise.
        unsafe { graphs::begin(stream) }
    }

    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        let _current = self.context.enter()?;
        // SAFETY: the context is current; the caller's promise.
        unsafe { graphs::end(stream) }
    }

    unsafe fn launch_graph(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        let _current = self.context.enter()?;
        let graph = graph.0 as sys::CUgraphExec;
        // SAFETY: the caller's promise.
        check("launch a graph", unsafe { sys::cuGraphLaunch(graph, handle(stream)) })
    }

    unsafe fn destroy_graph(&self, graph: RawGraph) {
        let Ok(_current) = self.context.enter() else { return };
        let graph = graph.0 as sys::CUgraphExec;
        // SAFETY: the caller's promise.
        complain("destroy a graph", unsafe { sys::cuGraphExecDestroy(graph) });
    }

    fn alloc_host(&self, bytes: u64) -> Result<NonNull<u8>> {
        let _current = self.context.enter()?;
        memory::alloc_host(bytes)
    }

    unsafe fn free_host(&self, memory: NonNull<u8>, _bytes: u64) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise.
        complain("free pinned host memory", unsafe { sys::cuMemFreeHost(memory.as_ptr().cast()) });
    }

    unsafe fn write_pinned(
        &self,
        to: u64,
        from: *const u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let status =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes as usize, handle(stream)) };
        check("copy to the device", status)
    }

    unsafe fn read_pinned(
        &self,
        from: u64,
        to: *mut u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()> {
        let _current = self.context.enter()?;
        // SAFETY: the caller's promise.
        let status =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes as usize, handle(stream)) };
        check("copy from the device", status)
    }

    fn granularity(&self) -> Result<u64> {
        let _current = self.context.enter()?;
        memory::granularity(self.context.device())
    }

    fn reserve(&self, bytes: u64) -> Result<u64> {
        let _current = self.context.enter()?;
        memory::reserve(bytes)
    }

    unsafe fn commit(&self, address: u64, bytes: u64) -> Result<()> {
        let current = self.context.enter()?;
        // SAFETY: the caller's promise; the context is current.
        let status = unsafe { memory::commit(self.context.device(), address, bytes) };
        drop(current);
        status.map_err(|refused| {
            refused.unwrap_or_else(|| {
                let free = self.memory().map_or(0, |m| m.free);
                Error::DeviceOutOfMemory { needed: bytes, free }
            })
        })
    }

    unsafe fn decommit(&self, address: u64, bytes: u64) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise; nothing else holds on to the memory.
        complain("unmap memory", unsafe { sys::cuMemUnmap(address, bytes as usize) });
    }

    unsafe fn release(&self, address: u64, bytes: u64) {
        let Ok(_current) = self.context.enter() else { return };
        // SAFETY: the caller's promise.
        complain("free addresses", unsafe { sys::cuMemAddressFree(address, bytes as usize) });
    }
}

// Markers in cuLaunchKernel's `extra` (cuda.h).
const CU_LAUNCH_PARAM_END: *mut c_void = std::ptr::null_mut();
const CU_LAUNCH_PARAM_BUFFER_POINTER: *mut c_void = std::ptr::without_provenance_mut(1);
const CU_LAUNCH_PARAM_BUFFER_SIZE: *mut c_void = std::ptr::without_provenance_mut(2);

/// Whether the driver has page-locked this host memory, so that copies from it
/// are truly asynchronous.
///
/// # Safety
/// A context is current.
unsafe fn is_page_locked(host: *const c_void) -> bool {
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is 32 bits wide; addresses unknown to the driver are an
    // error and not touched.
    let status =
        unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, host as u64) };
    status == sys::CUresult::CUDA_SUCCESS && kind != 0
}
