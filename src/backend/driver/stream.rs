//! Streams and events.

use super::device::Device;
use super::raw::{Launch, RawEvent, RawStream};
use crate::error::Result;
use bytemuck::Pod;
use std::ffi::c_void;
use std::time::Duration;

/// A queue of work that runs in order.
#[derive(Debug)]
pub struct DeviceStream {
    device: Device,
    raw: RawStream,
    owned: bool,
}

impl DeviceStream {
    fn new(device: &Device) -> Result<Self> {
        let raw = device.driver().create_stream()?;
        Ok(Self { device: device.clone(), raw, owned: true })
    }

    /// # Safety
    /// `raw` is a stream of the device and outlives the result.
    unsafe fn borrow(device: &Device, raw: RawStream) -> Self {
        Self { device: device.clone(), raw, owned: false }
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The driver's handle: a `CUstream` of CUDA devices.
    pub fn raw(&self) -> RawStream {
        self.raw
    }

    /// Launches a kernel on its one parameter struct. An empty grid does nothing.
    ///
    /// # Errors
    /// A kernel of this name does not exist, or the shape exceeds the device.
    /// What goes wrong while the kernel runs is reported by a later call.
    ///
    /// # Safety
    /// `P` is the struct that the kernel takes. All memory that it names is live
    /// until the kernel has run, large enough, and not used by other work that
    /// runs meanwhile, unless both only read.
    pub unsafe fn launch<P: Pod>(&self, kernel: &str, shape: Launch, params: &P) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let params = bytemuck::bytes_of(params);
        // SAFETY: the caller's promise; the stream is the device's.
        unsafe { self.device.driver().launch(kernel, shape, params, self.raw) }
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// What went wrong in that work.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is live and the device's.
        unsafe { self.device.driver().synchronize(self.raw) }
    }

    /// Marks the present end of its work.
    pub fn record(&self, event: &DeviceEvent) -> Result<()> {
        self.device.expect(&event.device, "record an event")?;
        // SAFETY: both are live and the device's.
        unsafe { self.device.driver().record(event.raw, self.raw) }
    }

    /// Lets its later work wait for what `event` marks, on whichever stream.
    pub fn wait(&self, event: &DeviceEvent) -> Result<()> {
        self.device.expect(&event.device, "wait for an event")?;
        // SAFETY: both are live and the device's.
        unsafe { self.device.driver().wait(self.raw, event.raw) }
    }
}

impl Drop for DeviceStream {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: it is live, the device's, and gone after this.
            unsafe { self.device.driver().destroy_stream(self.raw) }
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct DeviceEvent {
    device: Device,
    raw: RawEvent,
}

impl DeviceEvent {
    fn new(device: &Device, timed: bool) -> Result<Self> {
        Ok(Self { device: device.clone(), raw: device.driver().create_event(timed)? })
    }

    /// Whether what it marks is done, seen from the host; also if it marks nothing yet.
    ///
    /// # Errors
    /// What went wrong in that work.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: it is live and the device's.
        unsafe { self.device.driver().is_done(self.raw) }
    }

    /// Lets the host wait until what it marks is done.
    ///
    /// # Errors
    /// What went wrong in that work.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: it is live and the device's.
        unsafe { self.device.driver().await_event(self.raw) }
    }

    /// The time from `start` to this event, both [timed](Device::timed_event) and recorded;
    /// waits for this one.
    /// On the emulated device a launch counts as one nanosecond.
    pub fn elapsed_since(&self, start: &DeviceEvent) -> Result<Duration> {
        self.device.expect(&start.device, "measure time")?;
        // SAFETY: both are live and the device's.
        unsafe { self.device.driver().elapsed(start.raw, self.raw) }
    }
}

impl Drop for DeviceEvent {
    fn drop(&mut self) {
        // SAFETY: it is live, the device's, and gone after this.
        unsafe { self.device.driver().destroy_event(self.raw) }
    }
}

impl Device {
    /// A new stream.
    pub fn stream(&self) -> Result<DeviceStream> {
        DeviceStream::new(self)
    }

    /// A stream that somebody else owns, a null one being the default stream.
    ///
    /// # Safety
    /// `stream` is a stream of this device's context (or, on the emulated device,
    /// null), and outlives the result.
    pub unsafe fn borrow_stream(&self, stream: *mut c_void) -> DeviceStream {
        // SAFETY: the caller's promise.
        unsafe { DeviceStream::borrow(self, RawStream(stream as u64)) }
    }

    /// A new event, which orders work and measures nothing.
    pub fn event(&self) -> Result<DeviceEvent> {
        DeviceEvent::new(self, false)
    }

    /// A new event that measures, too.
    pub fn timed_event(&self) -> Result<DeviceEvent> {
        DeviceEvent::new(self, true)
    }
}
