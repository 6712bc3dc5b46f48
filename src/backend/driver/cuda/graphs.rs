//! Handles of streams; captures and the graphs that they become. A context is current
//! everywhere here.

use super::answer::{check, complain};
use crate::backend::driver::{RawGraph, RawStream};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};

/// The handle that a stream is.
pub(super) fn handle(stream: RawStream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

/// An error if the stream captures: a copy of ordinary host memory would be captured
/// with an address that may mean nothing any more when the graph runs.
///
/// # Safety
/// The stream is live.
pub(super) unsafe fn not_captured(stream: RawStream, doing: &str) -> Result<()> {
    let mut state = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's promise.
    check(doing, unsafe { sys::cuStreamIsCapturing(handle(stream), &mut state) })?;
    match state {
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(Error::device(doing, "not permitted during a capture")),
    }
}

/// Begins a capture that only this thread has to be careful of.
///
/// # Safety
/// The stream is live.
pub(super) unsafe fn begin(stream: RawStream) -> Result<()> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the caller's promise.
    check("begin a capture", unsafe { sys::cuStreamBeginCapture_v2(handle(stream), mode) })
}

/// Ends a capture and instantiates its graph.
///
/// # Safety
/// The stream is live.
pub(super) unsafe fn end(stream: RawStream) -> Result<RawGraph> {
    let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the caller's promise; the graph is used once and destroyed.
    let status = unsafe {
        check("end a capture", sys::cuStreamEndCapture(handle(stream), &mut graph))?;
        let status = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
        complain("destroy a captured graph", sys::cuGraphDestroy(graph));
        status
    };
    if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        let known = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        let free = if known == CUresult::CUDA_SUCCESS { free } else { 0 };
        let what = format!("the device's memory is full, {free} bytes are free; lower --kv-budget");
        return Err(Error::device("instantiate a graph", what));
    }
    check("instantiate a graph", status)?;
    Ok(RawGraph(ready as u64))
}
