//! A context, owned or borrowed, and making it current.

use super::status::{check, complain};
use crate::error::Result;
use cudarc::driver::sys;

/// A context of a device.
pub struct Context {
    raw: sys::CUcontext,
    device: sys::CUdevice,
    /// Whether the primary context was retained, and is released on drop.
    retained: bool,
}

// SAFETY: the driver's contexts may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Context {}

impl Context {
    /// The primary context of a device, shared with all who use the runtime API.
    pub(super) fn primary(device: sys::CUdevice) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the driver is initialised and gave the device.
        let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) };
        check("create the context", status)?;
        Ok(Self { raw, device, retained: true })
    }

    /// Somebody else's context.
    ///
    /// # Safety
    /// `raw` is a live context that outlives the result.
    pub(super) unsafe fn borrow(raw: sys::CUcontext) -> Result<Self> {
        let mut context = Self { raw, device: 0, retained: false };
        let current = context.enter()?;
        let mut device = 0;
        // SAFETY: the context is current.
        check("find the context's device", unsafe { sys::cuCtxGetDevice(&mut device) })?;
        drop(current);
        context.device = device;
        Ok(context)
    }

    /// Its device.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Makes the context current on this thread until the guard is dropped, which
    /// restores the one before it.
    pub fn enter(&self) -> Result<Current> {
        // SAFETY: the context is live.
        check("make the context current", unsafe { sys::cuCtxPushCurrent_v2(self.raw) })?;
        Ok(Current(std::marker::PhantomData))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.retained {
            // SAFETY: retained once, released once.
            let status = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
            complain("release the context", status);
        }
    }
}

/// The context is current while this lives; it stays on its thread.
pub struct Current(std::marker::PhantomData<*const ()>);

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: `enter` pushed one.
        complain("restore the context", unsafe { sys::cuCtxPopCurrent_v2(&mut context) });
    }
}
